"""The Triton backend against the reference.

Without a GPU the kernels run under Triton's interpreter, in a process of their own, because
TRITON_INTERPRET counts when they are imported: one step a launch, or, to cross the barrier, every
program in a process. What is left, compiler and memory model, one test checks as far as it can: it
compiles for sm_90 and reads the result. With a GPU the last tests run the persistent launch.
"""

from __future__ import annotations

import copy
import multiprocessing
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from elstm.nn import BNLSTM, ELSTMBN, LSTM, backends
from elstm.nn.backends import triton as triton_backend
from elstm.nn.backends import triton_blocks
from elstm.nn.recurrence import NormInputs, recurrence

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")

Run = Callable[..., Any]


def process(**environment: str) -> ProcessPoolExecutor:
    """One fresh process with these variables set."""
    executor = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        executor.submit(int).result()  # starts it
    return executor


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Run]:
    """Calls a function of this module where the kernels are interpreted."""
    with process(TRITON_INTERPRET="1") as executor:
        yield lambda function, *args, **options: executor.submit(
            function, *args, **options
        ).result()


# What is compared: output, state and every gradient, by name; then the statistics.


def served(
    function: Callable[..., Any],
    dtype: torch.dtype,
    device: str,
    *,
    steps: int,
    batch: int,
    inputs: int,
    hidden: int,
    cell_norm: str,
    norm_ih: bool = True,
    norm_hh: bool = True,
    bias: bool = True,
    sizes: list[int] | None = None,
    batch_steps: int | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """One call and its gradients on random numbers that are the same for every dtype and device."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        numbers = torch.randn(shape, generator=generator) * scale
        return numbers.to(device, dtype).requires_grad_()

    def norm(features: int, beta: bool) -> NormInputs:
        mean, var = draw(steps, features).detach(), draw(steps, features).detach().square() + 0.1
        return NormInputs(draw(features), draw(features) if beta else None, mean, var, 0.1)

    leaves: dict[str, Any] = {
        "x": draw(steps, batch, inputs),
        "h_0": draw(batch, hidden),
        "c_0": draw(batch, hidden),
        "weight_ih": draw(4 * hidden, inputs, scale=inputs**-0.5),
        "weight_hh": draw(4 * hidden, hidden, scale=hidden**-0.5),
        "bias": draw(4 * hidden) if bias else None,
    }
    norms = {
        "ih": norm(4 * hidden, False) if norm_ih else None,
        "hh": norm(4 * hidden, False) if norm_hh else None,
        "c": norm(hidden, True) if cell_norm != "none" else None,
    }
    batch_steps = steps if batch_steps is None else batch_steps
    x, *others = leaves.values()
    call = (x, sizes, batch_steps, *others, *norms.values(), None, cell_norm)
    if function is triton_backend.recurrence:
        assert triton_backend.refuses(*call) is None
    output, h_n, c_n, statistics = function(*call)
    found = {"output": output, "h_n": h_n, "c_n": c_n}
    loss = sum((part * draw(*part.shape).detach()).sum() for part in found.values())
    loss.backward()

    for name, inputs_of_norm in norms.items():
        if inputs_of_norm is not None:
            leaves[f"gamma_{name}"], leaves[f"beta_{name}"] = inputs_of_norm[:2]
    found |= {f"d_{name}": leaf.grad for name, leaf in leaves.items() if leaf is not None}
    for name, pair in zip(norms, statistics, strict=False):
        assert (pair is None) == (norms[name] is None)
        if pair is not None:
            found |= {f"mean_{name}": pair.mean, f"var_{name}": pair.var}
    assert statistics[3] is None
    return {name: part.detach().double().cpu() for name, part in found.items()}


def check(device: str = "cpu", resident: bool = True, **case: Any) -> None:
    """Errors against float64: no more than twice those of the reference in float32."""
    exact = served(recurrence, torch.float64, device, **case)
    plain = served(recurrence, torch.float32, device, **case)
    with pytest.MonkeyPatch.context() as monkeypatch:
        if not resident:
            monkeypatch.setattr(triton_blocks, "_TILES", 0)
        triton_backend._blocks.cache_clear()
        found = served(triton_backend.recurrence, torch.float32, device, **case)
    triton_backend._blocks.cache_clear()
    assert found.keys() == exact.keys()
    for name, part in found.items():
        assert part.shape == exact[name].shape, name
        if not part.numel():
            continue
        error, of_plain = ((other - exact[name]).abs().max() for other in (part, plain[name]))
        # Few numbers may leave the reference without an error: 8 roundings of the largest instead.
        bound = max(2 * of_plain, 1e-6 * exact[name].abs().max())
        assert error <= bound, f"{name}: error {error:.1e}, bound {bound:.1e}"


SMALL = {"steps": 3, "batch": 5, "inputs": 3, "hidden": 7}
CASES = {
    "update": {"cell_norm": "update"},
    "output, packed": {"cell_norm": "output", "sizes": [5, 5, 2]},
    "none": {"cell_norm": "none"},
    "plain, packed": {
        "cell_norm": "none", "norm_ih": False, "norm_hh": False, "bias": False, "sizes": [5, 3, 1],
    },
    "one step, two sequences": {"cell_norm": "update", "steps": 1, "batch": 2},
    "eval": {"cell_norm": "update", "batch_steps": 0},
    "eval, packed": {"cell_norm": "output", "batch_steps": 0, "sizes": [5, 4, 1]},
    "one sequence left": {"cell_norm": "update", "sizes": [5, 2, 1], "batch_steps": 2},
    "no norm_hh": {"cell_norm": "update", "norm_hh": False},
    "no norm_ih": {"cell_norm": "output", "norm_ih": False, "bias": False},
    "several tiles": {"cell_norm": "update", "steps": 2, "batch": 19, "hidden": 70},
    "weights not kept": {"cell_norm": "output", "steps": 2, "hidden": 70, "resident": False},
}  # fmt: skip


@needs_triton
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_equals_the_reference(interpreted: Run, case: dict[str, Any]) -> None:
    interpreted(check, **SMALL | case)


def start_concurrently(kernel: Any, programs: int, arguments: dict[str, Any]) -> None:
    """Runs every program of a grid in a process of its own, on shared memory."""
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    set_size, set_index = builder.set_grid_dim, builder.set_grid_idx
    for argument in arguments.values():
        if isinstance(argument, Tensor):
            argument.untyped_storage().share_memory_()

    def run(program: int) -> None:
        builder.set_grid_dim = lambda *size: set_size(programs, 1, 1)
        builder.set_grid_idx = lambda *index: set_index(program, 0, 0)
        # Copies arguments onto themselves afterwards, and so what other programs wrote meanwhile.
        interpreter.GridExecutor._restore_args_dev = lambda *arguments: None
        kernel[(1,)](**arguments)

    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=run, args=(program,)) for program in range(programs)]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + 60
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))
    stuck = [worker for worker in workers if worker.is_alive()]
    for worker in stuck:
        worker.kill()
    assert programs > 1
    assert not stuck, "a program waits for ever at the barrier"
    assert all(worker.exitcode == 0 for worker in workers)


def check_barrier(**case: Any) -> None:
    """The persistent launch, which the interpreter alone, one program after another, cannot run."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(triton_backend, "_persistent", lambda device: True)
        monkeypatch.setattr(triton_backend, "_start", start_concurrently)
        check(**case)


@needs_triton
@pytest.mark.parametrize(
    "name", ["output, packed", "none", "one sequence left", "weights not kept"]
)
def test_barrier(interpreted: Run, name: str) -> None:
    interpreted(check_barrier, **SMALL | CASES[name])


def check_layers(layer: torch.nn.Module, device: str = "cpu") -> None:
    """Padded, with a learned state; the input is not contiguous."""
    layer = layer.to(device)
    x = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(1)).to(device)
    results = []
    for backend in ("reference", "triton"):
        module = copy.deepcopy(layer)
        module.backend = backend
        leaf = x.clone().requires_grad_()
        strided = leaf.transpose(1, 2).contiguous().transpose(1, 2)
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            strided, [3, 1, 2, 1], batch_first=True, enforce_sorted=False
        )
        output, (h_n, c_n) = module(packed)
        assert module.last_backend == backend
        (output.data.square().sum() + h_n.sum() + c_n.square().sum()).backward()
        module.eval()
        with torch.no_grad():
            evaluated = module(strided)[0]
        results.append(
            {"output": output.data, "h_n": h_n, "c_n": c_n, "x": leaf.grad, "eval": evaluated}
            | {name: parameter.grad for name, parameter in module.named_parameters()}
            | dict(module.named_buffers())
        )
    for name, expected in results[0].items():
        torch.testing.assert_close(results[1][name], expected, rtol=1e-4, atol=1e-5, msg=name)


def make_layer(kind: type[torch.nn.Module], layers: int) -> torch.nn.Module:
    torch.manual_seed(0)
    two_ways = layers > 1
    return kind(3, 4, layers, batch_first=True, bidirectional=two_ways, learn_initial_state=True)


@needs_triton
@pytest.mark.parametrize(("kind", "layers"), [(LSTM, 1), (BNLSTM, 1), (ELSTMBN, 2)])
def test_layers(interpreted: Run, kind: type[torch.nn.Module], layers: int) -> None:
    interpreted(check_layers, make_layer(kind, layers))


def check_rest() -> None:
    torch.manual_seed(0)
    layer = ELSTMBN(3, 5, backend="triton")
    x = torch.randn(2, 4, 3, requires_grad=True)

    # A second derivative raises rather than being wrong; a second backward pass is right.
    loss = layer(x)[0].square().sum()
    (first,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        first.sum().backward()
    (second,) = torch.autograd.grad(loss, x)
    assert torch.equal(first, second)

    c_n = layer(x)[1][1]  # the kernel changes its gradient, the caller's stays
    gradient = torch.ones_like(c_n)
    torch.autograd.grad(c_n, x, gradient)
    assert torch.equal(gradient, torch.ones_like(c_n))

    expected = layer.eval()(x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(x)[0]
        assert output.dtype == torch.bfloat16
        output.float().square().sum().backward()
    torch.testing.assert_close(output.float(), expected, rtol=0.02, atol=0.02)
    half = copy.deepcopy(layer).bfloat16()
    output = half(x.bfloat16())[0]
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.05)

    layer.backend = "auto"
    layer(x)
    assert layer.last_backend != "triton"


@needs_triton
def test_derivatives_dtypes_and_auto(interpreted: Run) -> None:
    interpreted(check_rest)


def check_compile() -> None:
    torch.manual_seed(0)
    layer = BNLSTM(3, 5, backend="triton")
    x = torch.randn(2, 4, 3)
    expected = copy.deepcopy(layer)(x)[0]
    torch.testing.assert_close(torch.compile(layer, backend="eager")(x)[0], expected)
    assert layer.last_backend == "triton"


@needs_triton
def test_torch_compile(interpreted: Run) -> None:
    interpreted(check_compile)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (ELSTMBN(3, 4, backend="triton"), "needs CUDA tensors, got cpu|needs the package triton"),
        (ELSTMBN(3, 4, cell_norm="carry", backend="triton"), "none, output, update; got 'carry'"),
        (ELSTMBN(3, 4, backend="triton").double(), "computes in float32, got torch.float64"),
    ],
)
def test_refusals(layer: ELSTMBN, reason: str) -> None:
    x = torch.randn(2, 4, 3, dtype=layer.weight_ih_l0.dtype)
    with pytest.raises(ValueError, match=f"backend 'triton' cannot serve this call: .*({reason})"):
        layer(x)


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_backend, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package triton"):
        BNLSTM(3, 4, backend="triton")(torch.randn(2, 4, 3))
    layer = BNLSTM(3, 4)
    layer(torch.randn(2, 4, 3))
    assert "triton" in backends.BACKENDS
    assert layer.last_backend != "triton"


@pytest.mark.parametrize(
    ("batch", "hidden"), [(1, 1), (128, 128), (100, 100), (64, 512), (1000, 128), (32, 4096)]
)
def test_blocks_cover_the_shape(batch: int, hidden: int) -> None:
    for depth, width in ((hidden, 4), (4 * hidden, 1)):
        blocks = triton_blocks.choose_blocks(batch, hidden, 132, depth=depth, width=width)
        assert blocks is not None
        assert blocks.programs <= 132  # all resident at once
        assert (blocks.programs - 1) * blocks.UNITS < hidden <= blocks.programs * blocks.UNITS
        assert batch <= blocks.BLOCK_B
        assert blocks.BLOCK_B * blocks.BLOCK_K <= 8192 or blocks.BLOCK_K == 8


def test_blocks_that_do_not_fit() -> None:
    assert triton_blocks.choose_blocks(8192, 128, 132, depth=128, width=4) is None
    assert triton_blocks.choose_blocks(16, 10000, 132, depth=10000, width=4) is None


class Hopper:
    """A GPU of compute capability 9.0, as far as the compiler asks for it."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


def compile_for_hopper() -> list[tuple[str, str]]:
    """What a GPU would run in one training step, forward and backward: Triton's last form, PTX."""
    import triton

    from elstm.nn.backends import triton_kernels

    compiled = []

    def start(kernel: Any, programs: int, arguments: dict[str, Any]) -> None:
        compiled.append(kernel.warmup(grid=(programs,), **arguments))

    triton.runtime.driver.set_active(Hopper())
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(triton_kernels, "INTERPRETED", True)  # takes CPU tensors
        monkeypatch.setattr(triton_backend, "_persistent", lambda device: True)
        monkeypatch.setattr(triton_backend, "_start", start)
        ELSTMBN(3, 24, backend="triton")(torch.randn(2, 20, 3))[0].sum().backward()
    assert all(kernel.metadata.launch_cooperative_grid for kernel in compiled)
    return [(kernel.asm["ttgir"], kernel.asm["ptx"]) for kernel in compiled]


@needs_triton
def test_compiles_for_hopper(tmp_path: Path) -> None:
    with process(TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path)) as executor:
        compiled = executor.submit(compile_for_hopper).result()
    assert len(compiled) == 2
    for ttgir, ptx in compiled:
        # A step: wait (an acquire, then all threads), the product, all threads' stores, arrive.
        acquire, release = (
            ttgir.index(f"tt.atomic_rmw add, {kind}, gpu") for kind in ("acquire", "release")
        )
        dots = [match.start() for match in re.finditer(r"tt\.dot ", ttgir)]
        assert dots
        assert all(acquire < dot < release for dot in dots)
        assert "ttg.barrier all" in ttgir[acquire : dots[0]]
        last_store = ttgir.rindex("tt.store", 0, release)
        assert "ttg.barrier all" in ttgir[last_store:release]
        assert "acquire" in ptx
        assert "release" in ptx
        assert "tf32" not in ptx


@needs_gpu
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_on_a_gpu(case: dict[str, Any]) -> None:
    check("cuda", **SMALL | case)


@needs_gpu
@pytest.mark.parametrize(
    "case",
    [
        {"steps": 28, "batch": 128, "inputs": 28, "hidden": 128, "cell_norm": "update"},
        {"steps": 100, "batch": 100, "inputs": 1, "hidden": 100, "cell_norm": "output"},
        {"steps": 20, "batch": 64, "inputs": 512, "hidden": 512, "cell_norm": "update"},
        {"steps": 5, "batch": 1000, "inputs": 4, "hidden": 128, "cell_norm": "update"},
    ],
)
def test_on_a_gpu_in_full_size(case: dict[str, Any]) -> None:
    check("cuda", **case)


@needs_gpu
@pytest.mark.parametrize("kind", [LSTM, BNLSTM, ELSTMBN])
def test_layers_on_a_gpu(kind: type[torch.nn.Module]) -> None:
    check_layers(make_layer(kind, 2), "cuda")
