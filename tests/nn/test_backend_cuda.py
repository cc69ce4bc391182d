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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_checks import (
    check,
    check_barrier,
    check_compile,
    check_layer_norm,
    check_layers,
    check_rest,
    compile_for_hopper,
    compile_layer_norm,
    launches,
)
from torch.nn.utils.rnn import pack_padded_sequence

from elstm.nn import BNLSTM, ELSTMBN, LSTM, backends
from elstm.nn.backends.cuda import blocks, launch

needs_triton = pytest.mark.skipif(not launch.available(), reason="needs triton 3.6")
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
    """Calls a function where the kernels are interpreted."""
    with process(TRITON_INTERPRET="1") as executor:
        yield lambda function, *args, **options: executor.submit(
            function, *args, **options
        ).result()


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
    "eval, in chunks": {"cell_norm": "update", "batch_steps": 0, "batch": 35},
    "eval, packed": {"cell_norm": "output", "batch_steps": 0, "sizes": [5, 4, 1]},
    "one sequence left": {"cell_norm": "update", "sizes": [5, 2, 1], "batch_steps": 2},
    "no norm_hh": {"cell_norm": "update", "norm_hh": False},
    "no norm_ih": {"cell_norm": "output", "norm_ih": False, "bias": False},
    "several tiles": {"cell_norm": "update", "steps": 2, "batch": 19, "hidden": 70},
    "weights not kept": {"cell_norm": "output", "steps": 2, "hidden": 70, "resident": False},
}  # fmt: skip


SOME = ("output, packed", "eval, in chunks", "one sequence left", "several tiles")


def slow_but(quick: tuple[str, ...], names: Iterable[str]) -> list[Any]:
    """The names as parameters, marked slow where they are not `quick`."""
    return [pytest.param(name, marks=[] if name in quick else pytest.mark.slow) for name in names]


@needs_triton
@pytest.mark.parametrize("name", slow_but(SOME, CASES))
def test_equals_the_reference(interpreted: Run, name: str) -> None:
    interpreted(check, **SMALL | CASES[name])


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("name", ["eval", "eval, packed"])
def test_is_as_exact_as_the_reference_over_many_draws(interpreted: Run, name: str) -> None:
    interpreted(check, draws=11, **SMALL | CASES[name])


PROJECTIONS = ["mm"]  # W_x x_t
STATISTICS = ["_foreach_mul", "_foreach_lerp_", "_foreach_add_"]
STATES = ["stack", "stack"]  # h_n and c_n
GRADIENTS = ["mm", "mm", "mm", "sum", "mm", "mm"]  # both projections, W_x x_t; γ_x, W_x, W_h
PACKED_STATISTICS = [
    "_to_copy", "sub", "div", "mul", "mul", "mul", "_foreach_lerp_", "_foreach_add_",
]  # fmt: skip


@needs_triton
@pytest.mark.parametrize("kind", [BNLSTM, ELSTMBN])
@pytest.mark.parametrize("classifier", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_launches_of_a_training_step(
    kind: type[torch.nn.Module], classifier: bool, packed: bool
) -> None:
    """Each launch costs the host some microseconds, and nn.LSTM's step takes 1,100 at this shape.

    The list also shows that nothing is read on the host, and that nothing is made from Python
    numbers: neither could be captured in a CUDA graph.
    """
    x: Any = torch.randn(28, 128, 28)
    first, last = ["new_zeros"], []
    statistics = STATISTICS
    if packed:
        lengths = torch.linspace(28, 14, 128).round().long()
        x = pack_padded_sequence(x, lengths)
        first, statistics = ["index_select", "new_zeros"], PACKED_STATISTICS
        last = ["index_select"] if classifier else ["index_select", "new_zeros", "index_add"]
    layer = kind(28, 128, max_steps=28, backend="triton")
    kernels, operations = launches(layer, x, classifier)
    assert kernels == [
        "before_forward", "forward", "before_backward", "backward", "normalize_inputs_backward",
    ]  # fmt: skip
    assert operations == [*first, *PROJECTIONS, *statistics, *STATES, *last, *GRADIENTS]


@needs_triton
@pytest.mark.parametrize(
    "name",
    slow_but(
        ("one sequence left",),
        ["output, packed", "none", "one sequence left", "weights not kept", "eval, in chunks"],
    ),
)
def test_barrier(interpreted: Run, name: str) -> None:
    interpreted(check_barrier, **SMALL | CASES[name])


def make_layer(kind: type[torch.nn.Module], layers: int) -> torch.nn.Module:
    torch.manual_seed(0)
    two_ways = layers > 1
    return kind(3, 4, layers, batch_first=True, bidirectional=two_ways, learn_initial_state=True)


@needs_triton
@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        pytest.param(LSTM, 1, marks=pytest.mark.slow),
        pytest.param(BNLSTM, 1, marks=pytest.mark.slow),
        (ELSTMBN, 2),
    ],
)
def test_layers(interpreted: Run, kind: type[torch.nn.Module], layers: int) -> None:
    interpreted(check_layers, make_layer(kind, layers))


@needs_triton
def test_derivatives_dtypes_and_auto(interpreted: Run) -> None:
    interpreted(check_rest)


@needs_triton
@pytest.mark.slow
def test_layer_normalisation(interpreted: Run) -> None:
    interpreted(check_layer_norm)


@needs_gpu
@pytest.mark.parametrize("sizes", [(3, 5, 6), (28, 128, 128), (50, 100, 100), (10, 64, 512)])
def test_layer_normalisation_on_a_gpu(sizes: tuple[int, int, int]) -> None:
    check_layer_norm("cuda", *sizes)


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


def test_auto_takes_it_where_it_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    capability = (9, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    automatic = backends._AUTOMATIC["triton"]
    assert automatic(torch.device("cuda"))
    assert not automatic(torch.device("cpu"))
    assert backends.untested_backend(torch.device("cuda"), "reference") is None
    capability = (8, 6)
    assert not automatic(torch.device("cuda"))
    assert backends.untested_backend(torch.device("cuda"), "reference") == "triton"
    assert backends.untested_backend(torch.device("cuda"), "triton") is None
    assert backends.untested_backend(torch.device("cpu"), "reference") is None
    capability = (7, 5)
    assert backends.untested_backend(torch.device("cuda"), "reference") is None


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "available", lambda: False)
    with pytest.raises(ValueError, match="needs the package triton"):
        BNLSTM(3, 4, backend="triton")(torch.randn(2, 4, 3))
    layer = BNLSTM(3, 4)
    layer(torch.randn(2, 4, 3))
    assert "triton" in backends.BACKENDS
    assert layer.last_backend != "triton"


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    ("batch", "hidden"), [(1, 1), (128, 128), (100, 100), (64, 512), (1000, 128), (32, 4096)]
)
def test_blocks_cover_the_shape(batch: int, hidden: int, whole: bool) -> None:
    for depth, width in ((hidden, 4), (4 * hidden, 1)):
        found = blocks.choose_blocks(batch, hidden, 132, depth=depth, width=width, full_batch=whole)
        assert found is not None
        assert found.programs * found.chunks <= 132  # all resident at once
        assert (found.programs - 1) * found.UNITS < hidden <= found.programs * found.UNITS
        assert (found.chunks - 1) * found.BLOCK_B < batch <= found.chunks * found.BLOCK_B
        assert found.chunks == 1 or not whole


def test_blocks_that_do_not_fit() -> None:
    assert blocks.choose_blocks(1025, 128, 132, depth=128, width=4) is None
    assert blocks.choose_blocks(16, 10000, 132, depth=10000, width=4) is None


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "hidden", "train", "bytes_spilled"),
    [  # some of W_h spills; before the blocks minded it, wide spilled 2,220 and eval 12,728 bytes
        (128, 128, True, 200),
        (100, 100, True, 200),
        (64, 512, True, 200),
        (128, 128, False, 1500),
    ],
)
def test_compiles_for_hopper(
    tmp_path: Path, batch: int, hidden: int, train: bool, bytes_spilled: int
) -> None:
    with process(TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path)) as executor:
        compiled = executor.submit(compile_for_hopper, batch, hidden, train).result()
    assert len(compiled) == 2
    for _, _, spilled in compiled:
        assert spilled <= bytes_spilled
    for ttgir, ptx, _ in compiled:
        # A step: wait (an acquire, then all threads), the product, all threads' stores, arrive.
        acquire, release = (
            ttgir.index(f"tt.atomic_rmw add, {kind}, gpu") for kind in ("acquire", "release")
        )
        sums = [match.start() for match in re.finditer(r'"tt\.reduce"', ttgir)]
        assert sums
        assert all(acquire < place < release for place in sums)
        assert re.search("(ttg.barrier all|gpu.barrier)", ttgir[acquire : sums[0]])
        last_store = ttgir.rindex("tt.store", 0, release)
        assert re.search("(ttg.barrier all|gpu.barrier)", ttgir[last_store:release])
        assert "acquire" in ptx
        assert "release" in ptx
        assert "tf32" not in ptx


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize(("batch", "hidden"), [(128, 128), (64, 512)])
def test_layer_normalisation_compiles_for_hopper(tmp_path: Path, batch: int, hidden: int) -> None:
    with process(TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path)) as executor:
        spilled = executor.submit(compile_layer_norm, batch, hidden).result()
    assert len(spilled) == 2
    assert max(spilled) <= 16


@needs_gpu
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_on_a_gpu(case: dict[str, Any]) -> None:
    check("cuda", draws=31, **SMALL | case)


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


@needs_gpu
@pytest.mark.parametrize("packed", [False, True])
def test_cuda_graph(packed: bool) -> None:
    """A captured training step gives the bits of one without a graph, batch after batch."""
    layer, x = ELSTMBN(3, 20, max_steps=4).cuda(), torch.randn(4, 6, 3, device="cuda")
    batch: Any = pack_padded_sequence(x, torch.tensor([4, 4, 3, 2, 2, 1])) if packed else x
    data = batch.data if packed else batch
    names = [name for name, _ in layer.named_parameters()]

    def step(module: torch.nn.Module) -> list[torch.Tensor]:
        output, (h_n, c_n) = module(batch)
        output = output.data if packed else output
        loss = output.square().sum() + h_n.sum() + c_n.square().sum()
        return [loss.detach(), *torch.autograd.grad(loss, list(module.parameters()))]

    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(layer)  # compiles the kernels
    torch.cuda.current_stream().wait_stream(stream)
    other = copy.deepcopy(layer)
    with torch.cuda.graph(graph, stream=stream):
        captured = step(layer)
    for seed in range(3):
        data.copy_(torch.randn(data.shape, generator=torch.Generator().manual_seed(seed)))
        graph.replay()
        for name, found, expected in zip(["loss", *names], captured, step(other), strict=True):
            assert torch.equal(found, expected), name
        for (name, found), expected in zip(layer.named_buffers(), other.buffers(), strict=True):
            assert torch.equal(found, expected), name


# torch's own capture computes gradients on another stream than the parameters' own.
@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream")
@needs_gpu
def test_make_graphed_callables() -> None:
    layer, x = ELSTMBN(3, 20, max_steps=4).cuda(), torch.randn(4, 6, 3, device="cuda")
    other = copy.deepcopy(layer)
    before = copy.deepcopy(layer.state_dict())
    graphed = torch.cuda.make_graphed_callables(layer, (x.clone().requires_grad_(),))
    layer.load_state_dict(before)  # the warm-up has moved the running statistics
    leaf = x.clone().requires_grad_()
    output, (h_n, _) = graphed(leaf)
    (output.square().sum() + h_n.sum()).backward()
    expected, (h_n, _) = other(x)
    (expected.square().sum() + h_n.sum()).backward()
    torch.testing.assert_close(output, expected)
    for (name, found), parameter in zip(layer.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found.grad, parameter.grad, msg=name)
    for (name, buffer), own in zip(layer.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(buffer, own, msg=name)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@needs_gpu
def test_packed_batches_do_not_wait_for_the_gpu() -> None:
    layer = ELSTMBN(3, 20, 2, max_steps=4, bidirectional=True).cuda()
    x = torch.randn(4, 6, 3, device="cuda")
    compiled = False  # compiling the kernels may wait
    for lengths in ([4, 4, 3, 2, 2, 1], [4, 3, 3, 3, 2, 2], [4, 4, 4, 4, 3, 1]):
        packed = pack_padded_sequence(x, torch.tensor(lengths))
        torch.cuda.set_sync_debug_mode("error" if compiled else "default")
        try:
            layer(packed)[0].data.sum().backward()
            compiled = True
        finally:
            torch.cuda.set_sync_debug_mode("default")
