"""Checks of the Triton backend against the reference, which its tests run in another process."""

from __future__ import annotations

import copy
import multiprocessing
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from backend_calls import assert_as_exact_in_most, rms, served
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode

from elstm.nn import BNLSTM, ELSTMBN, LayerNormLSTM, backends
from elstm.nn.backends import cuda
from elstm.nn.backends.cuda import autograd, blocks, launch
from elstm.nn.recurrence import recurrence


def check(device: str = "cpu", resident: bool = True, draws: int = 1, **case: Any) -> None:
    """Compares with the reference; see assert_as_exact_in_most."""
    found = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        if not resident:
            monkeypatch.setattr(blocks, "_RESIDENT", 0)
        launch.blocks_for.cache_clear()
        for seed in range(draws):
            exact = served(recurrence, torch.float64, device, seed=seed, **case)
            plain = served(recurrence, torch.float32, device, seed=seed, **case)
            ours = served(
                cuda.recurrence, torch.float32, device, refuses=cuda.refuses, seed=seed, **case
            )
            found.append((ours, exact, plain))
    launch.blocks_for.cache_clear()
    assert_as_exact_in_most(found)


def start_concurrently(
    kernel: Any, grid: tuple[int, ...], arguments: list[Any], options: dict[str, Any]
) -> None:
    """Runs every program of a grid with a barrier in a process of its own, on shared memory."""
    from triton.runtime import interpreter

    if "BARRIER" not in kernel.arg_names:
        kernel[grid](*arguments, **options)
        return
    (programs,) = grid
    builder = interpreter.interpreter_builder
    set_size, set_index = builder.set_grid_dim, builder.set_grid_idx
    for argument in arguments:
        if isinstance(argument, Tensor):
            argument.untyped_storage().share_memory_()

    def run(program: int) -> None:
        builder.set_grid_dim = lambda *size: set_size(programs, 1, 1)
        builder.set_grid_idx = lambda *index: set_index(program, 0, 0)
        # Copies arguments onto themselves afterwards, and so what other programs wrote meanwhile.
        interpreter.GridExecutor._restore_args_dev = lambda *arguments: None
        kernel[(1,)](*arguments, **options)

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
        monkeypatch.setattr(launch, "persistent", lambda device: True)
        monkeypatch.setattr(launch, "start", start_concurrently)
        check(**case)


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


def check_rest() -> None:
    torch.manual_seed(0)
    layer = ELSTMBN(3, 5, backend="triton")
    x = torch.randn(2, 4, 3, requires_grad=True)

    # A second derivative is the reference's; a second backward pass gives the same gradient.
    twin = copy.deepcopy(layer)
    twin.backend = "reference"
    penalties = []
    for module in (layer, twin):
        loss = module(x)[0].sum()
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        (second,) = torch.autograd.grad(loss, x, retain_graph=True)
        torch.testing.assert_close(second, first.detach(), rtol=1e-4, atol=1e-5)
        penalties += torch.autograd.grad(first.square().sum(), module.weight_hh_l0)
    assert penalties[1].abs().max() > 1e-4
    torch.testing.assert_close(penalties[0], penalties[1], rtol=1e-3, atol=1e-5)

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


def check_compile() -> None:
    torch.manual_seed(0)
    layer = BNLSTM(3, 5, backend="triton")
    x = torch.randn(2, 4, 3)
    expected = copy.deepcopy(layer)(x)[0]
    torch.testing.assert_close(torch.compile(layer, backend="eager")(x)[0], expected)
    assert layer.last_backend == "triton"


class Hopper:
    """A GPU of compute capability 9.0, as far as the compiler asks for it."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


def compile_for_hopper(batch: int, hidden: int, train: bool) -> list[tuple[str, str, int]]:
    """Compiles a pass each way; Triton's last form, PTX and spilled bytes of the two long kernels.

    The other kernels are compiled as well, for their errors.
    """
    import triton

    compiled = []

    def start(
        kernel: Any, grid: tuple[int, ...], arguments: list[Any], options: dict[str, Any]
    ) -> None:
        found = kernel.warmup(*arguments, grid=grid, **options)
        if "BARRIER" in kernel.arg_names:
            compiled.append(found)

    triton.runtime.driver.set_active(Hopper())
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(launch, "interpreted", lambda: True)  # takes CPU tensors
        monkeypatch.setattr(launch, "persistent", lambda device: True)
        monkeypatch.setattr(launch, "multiprocessors", lambda device: 132)
        monkeypatch.setattr(launch, "start", start)
        launch.blocks_for.cache_clear()
        layer = ELSTMBN(3, hidden, backend="triton").train(train)
        layer(torch.randn(2, batch, 3))[0].sum().backward()
    assert all(kernel.metadata.launch_cooperative_grid for kernel in compiled)
    return [(found.asm["ttgir"], found.asm["ptx"], spilled(found.asm["ptx"])) for found in compiled]


def compile_layer_norm(batch: int, hidden: int) -> list[int]:
    """Spilled bytes of LayerNormLSTM's two kernels."""
    import triton

    compiled = []

    def start(
        kernel: Any, grid: tuple[int, ...], arguments: list[Any], options: dict[str, Any]
    ) -> None:
        compiled.append(spilled(kernel.warmup(*arguments, grid=grid, **options).asm["ptx"]))

    triton.runtime.driver.set_active(Hopper())
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(launch, "interpreted", lambda: True)  # takes CPU tensors
        monkeypatch.setattr(launch, "start", start)
        layer = LayerNormLSTM(3, hidden, backend="triton")
        packed = pack_padded_sequence(
            torch.randn(2, batch, 3), torch.tensor([2] + [1] * (batch - 1))
        )
        layer(packed)[0].data.sum().backward()
    return compiled


def spilled(ptx: str) -> int:
    """Bytes of registers that each thread writes to memory, as the assembler reports them."""
    from triton.backends.nvidia.compiler import get_ptxas

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        command = [get_ptxas(90).path, "-v", "--gpu-name=sm_90a", "-o", "/dev/null", str(path)]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return int(re.findall(r"(\d+) bytes spill stores", report)[0])


class Operations(TorchDispatchMode):
    """Records the operations of torch that launch something on a GPU: no views, no allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        schema = operation._schema
        name = schema.name.removeprefix("aten::")
        is_view = not schema.is_mutable and any(part.alias_info for part in schema.returns)
        if not is_view and "empty" not in name and not name.startswith(("split", "detach")):
            self.names.append(name)
        return operation(*args, **(kwargs or {}))


def launches(layer: torch.nn.Module, x: Any, classifier: bool) -> tuple[list[str], list[str]]:
    """Names the kernels and the operations of torch in a training step on a GPU.

    Nothing is computed: the kernels are not run. `classifier`: the loss depends on h_n alone.
    """
    kernels: list[str] = []

    def step() -> None:
        for parameter in layer.parameters():
            parameter.grad = None
        output, (h_n, _) = layer(x)
        end = output if isinstance(output, Tensor) else output.data
        end = h_n if classifier else end
        end.backward(end.detach())

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(launch, "interpreted", lambda: True)  # takes CPU tensors
        monkeypatch.setattr(launch, "persistent", lambda device: True)
        monkeypatch.setattr(launch, "multiprocessors", lambda device: 132)
        monkeypatch.setattr(
            launch, "start", lambda kernel, *rest: kernels.append(kernel.fn.__name__)
        )
        # `Operations` is a mode of torch, with which a backend does not run.
        monkeypatch.setattr(backends, "why_unreadable_call", lambda call: None)
        monkeypatch.setattr(autograd, "needs_reference", lambda *tensors: False)
        launch.blocks_for.cache_clear()
        step()  # what is made once
        kernels.clear()
        with Operations() as operations:
            step()
    launch.blocks_for.cache_clear()
    return kernels, operations.names


def check_layer_norm(device: str = "cpu", steps: int = 3, batch: int = 5, hidden: int = 6) -> None:
    """Output, state and gradients against the reference in float64, padded and packed."""
    torch.manual_seed(0)
    layer = LayerNormLSTM(3, hidden, 2, bidirectional=True, learn_initial_state=True)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(steps, batch, 3)
    lengths = torch.linspace(steps, 1, batch).round().long()

    def results(backend: str, dtype: torch.dtype, packed: bool) -> list[Tensor]:
        module = copy.deepcopy(layer).to(device, dtype)
        module.backend = backend
        leaf = x.to(device, dtype).requires_grad_()
        batches: Any = pack_padded_sequence(leaf, lengths) if packed else leaf
        output, (h_n, c_n) = module(batches)
        assert module.last_backend == backend
        output = output.data if packed else output
        weights = torch.linspace(-1, 1, output.numel(), device=device, dtype=dtype)
        loss = (output.flatten() * weights).sum() + h_n.square().sum() + c_n.sum()
        gradients = torch.autograd.grad(loss, [leaf, *module.parameters()])
        with torch.no_grad():  # keeps nothing for a backward pass
            assert torch.equal(module(batches)[1][0], h_n)
        return [part.detach().double().cpu() for part in (output, h_n, c_n, *gradients)]

    for packed in (False, True):
        exact = results("reference", torch.float64, packed)
        plain = results("reference", torch.float32, packed)
        ours = results("triton", torch.float32, packed)
        for index, (found, other, expected) in enumerate(zip(ours, plain, exact, strict=True)):
            bound = max(2 * rms(other - expected), 2e-6 * rms(expected))
            assert rms(found - expected) <= bound, (packed, index)
