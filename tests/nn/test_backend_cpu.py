"""The fused CPU recurrence against the reference."""

from __future__ import annotations

import copy
import multiprocessing
import os
import platform
import stat
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path

import pytest
import torch
from backend_calls import assert_as_exact, served

from elstm.nn import BNLSTM, ELSTMBN, LSTM, batch_statistics
from elstm.nn.backends.cpu import backend as cpu
from elstm.nn.backends.cpu import build, library
from elstm.nn.recurrence import recurrence

CELLS = ("none", "output", "update", "center")
SHAPES = {
    "one step, one unit": {"steps": 1, "batch": 2, "inputs": 1, "hidden": 1},
    "odd": {"steps": 5, "batch": 7, "inputs": 3, "hidden": 33},
    "slices and wide inputs": {"steps": 6, "batch": 17, "inputs": 40, "hidden": 50},
    "long, narrow input": {"steps": 60, "batch": 5, "inputs": 1, "hidden": 16},
}
PACKED = {"steps": 6, "batch": 5, "inputs": 3, "hidden": 7, "sizes": [5, 5, 3, 2, 1, 1]}

pytestmark = pytest.mark.skipif(library.unavailable(32) is not None, reason="no C compiler")


@pytest.fixture(params=(1, 2, 4), ids="{}-threads".format)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def check(**case):
    exact = pooled(recurrence, torch.float64, **case)
    plain = pooled(recurrence, torch.float32, **case)
    assert_as_exact(pooled(cpu.recurrence, torch.float32, **case), exact, plain)
    double = pooled(cpu.recurrence, torch.float64, **case)
    for name, part in double.items():
        torch.testing.assert_close(part, exact[name], rtol=1e-9, atol=1e-9, msg=name)


def pooled(function, dtype, **case):
    """Pools errors over several draws, because a small case has too few numbers."""
    refuses = cpu.refuses if function is cpu.recurrence else None
    draws = [served(function, dtype, "cpu", seed=n, refuses=refuses, **case) for n in range(4)]
    return {name: torch.cat([found[name].flatten() for found in draws]) for name in draws[0]}


@pytest.mark.parametrize("cell_norm", CELLS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_training(cell_norm, shape):
    check(cell_norm=cell_norm, **shape)


def test_training_by_several_threads(threads):
    check(cell_norm="update", **SHAPES["slices and wide inputs"])


@pytest.mark.parametrize("cell_norm", CELLS)
@pytest.mark.parametrize(("norm_ih", "norm_hh"), [*product((False, True), repeat=2)])
def test_with_and_without_norms_of_the_projections(cell_norm, norm_ih, norm_hh):
    check(cell_norm=cell_norm, norm_ih=norm_ih, norm_hh=norm_hh, **SHAPES["odd"])


@pytest.mark.parametrize("cell_norm", CELLS)
@pytest.mark.parametrize("batch_steps", [4, 0])
def test_packed_with_population_statistics(cell_norm, batch_steps):
    check(cell_norm=cell_norm, batch_steps=batch_steps, **PACKED)


@pytest.mark.parametrize("sizes", [None, [25, 11, 1]])
@pytest.mark.parametrize("cell_norm", CELLS)
def test_population_statistics_with_rows_shared_out(cell_norm, sizes, threads):
    """Covers eval mode, in which threads share sequences instead of units if there are enough."""
    shape = {"steps": 3, "batch": 25, "inputs": 3, "hidden": 37}  # random statistics: errors grow
    for norm in (True, False):
        check(cell_norm=cell_norm, batch_steps=0, sizes=sizes, norm_ih=norm, norm_hh=norm, **shape)


def test_without_bias():
    check(cell_norm="update", bias=False, **SHAPES["odd"])


def test_the_same_bits_in_every_run():
    case = {"cell_norm": "update", **SHAPES["slices and wide inputs"]}
    first, second = (served(cpu.recurrence, torch.float32, "cpu", **case) for _ in range(2))
    for name, part in first.items():
        assert torch.equal(part, second[name]), name


@pytest.mark.parametrize(("norm_ih", "norm_hh"), [*product((False, True), repeat=2)])
@pytest.mark.parametrize("cell_norm", CELLS)
def test_recomputing_gives_the_same_bits(cell_norm, norm_ih, norm_hh, threads):
    case = {"cell_norm": cell_norm, "norm_ih": norm_ih, "norm_hh": norm_hh}
    wide = SHAPES["slices and wide inputs"]
    for shape in (wide, wide | {"batch_steps": 0}, PACKED | {"batch_steps": 4}):
        plain, again = (
            served(cpu.recurrence, torch.float32, "cpu", recompute=r, **case, **shape)
            for r in (False, True)
        )
        for name, part in plain.items():
            assert torch.equal(part, again[name]), name


@pytest.mark.parametrize(("inputs", "recompute", "expected"), [(1, 0, 5), (40, 0, 9), (40, 1, 1)])
def test_what_is_kept_for_the_backward_pass(inputs, recompute, expected):
    """Counts numbers of T * B * H beside the output, as the module and the layers document it."""
    kept = []
    x = torch.randn(20, 50, inputs, requires_grad=True)
    layer = ELSTMBN(inputs, 64, backend="cpu", recompute=bool(recompute))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        output, _ = layer(x)
    known = {t.data_ptr() for t in (x, output, *layer.parameters())}
    numbers = sum(t.numel() for t in kept if t.data_ptr() not in known)
    assert numbers / output.numel() == pytest.approx(expected, abs=0.5)  # and the statistics


@pytest.mark.parametrize("mode", ["train", "eval", "batch statistics"])
def test_nothing_is_kept_where_no_gradient_is_wanted(mode, monkeypatch):
    kept = []
    forward = library.forward

    def spy(*call):
        results = forward(*call)
        kept.append(sum(part.numel() for part in results.kept))
        return results

    monkeypatch.setattr(library, "forward", spy)
    layer = ELSTMBN(3, 5, max_steps=4, backend="cpu").train(mode == "train")
    x = torch.randn(4, 6, 3)
    wanted = layer(x)[0]
    with torch.no_grad():
        unwanted = layer(x)[0]
        if mode == "batch statistics":
            with batch_statistics(layer):
                layer(x)
    layer.requires_grad_(False)
    layer(x)
    first, *others = kept
    assert first > 0
    assert not any(others)
    assert torch.equal(wanted, unwanted)
    assert wanted.requires_grad
    assert not unwanted.requires_grad


def test_saturated_gates():
    """Inputs that drive the exponentials out of range give no NaN and the reference's numbers."""
    torch.manual_seed(0)
    options = {"cell_norm": "none", "normalize_input": False, "normalize_hidden": False}
    layers = [ELSTMBN(3, 5, backend=name, **options) for name in ("cpu", "reference")]
    layers[1].load_state_dict(layers[0].state_dict())
    results = []
    for layer in layers:
        x = (
            500 * torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(1))
        ).requires_grad_()
        output, _ = layer(x)
        output.sum().backward()
        results.append((output.detach(), x.grad))
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("kind", [LSTM, BNLSTM, ELSTMBN])
def test_whole_layers(kind, training):
    """Two layers, both directions, padded, the state learned or given, nothing contiguous."""
    layer = kind(3, 7, 2, bidirectional=True, learn_initial_state=True, dtype=torch.float64)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    draw = torch.randn(5, 4, 20, dtype=torch.float64)
    for lengths, given in product(([5, 2, 1, 3], None), (True, False)):
        results = []
        for backend in ("cpu", "reference"):
            module = copy.deepcopy(layer).train(training)
            module.backend = backend
            leaf = draw.clone().requires_grad_()
            x, states = leaf[:, :, :6:2], leaf[:4, :, 6:].transpose(0, 1)
            if lengths is not None:
                x = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
            hx = (states[..., :7].transpose(0, 1), states[..., 7:].transpose(0, 1))
            output, (h_n, c_n) = module(x, hx if given else None)
            assert module.last_backend == backend
            output = output if lengths is None else output.data
            (output.square().sum() + h_n.sum() + c_n.square().sum()).backward()
            gradients = {name: p.grad for name, p in module.named_parameters()}
            results.append(
                {"output": output, "h_n": h_n, "c_n": c_n, "x": leaf.grad, **gradients}
                | dict(module.named_buffers())
            )
        for name, expected in results[1].items():
            found = results[0][name]
            assert (found is None) == (expected is None), name  # h_0 and c_0, where given
            if found is not None:
                torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9, msg=name)


def test_input_that_is_not_contiguous():
    torch.manual_seed(0)
    layer = ELSTMBN(6, 5, batch_first=True, backend="cpu")
    x = torch.randn(8, 4, 12)[:, :, ::2]
    torch.testing.assert_close(layer(x)[0], layer(x.contiguous())[0])


@pytest.mark.parametrize("cell_norm", ["increment", "terms", "carry", "update_output"])
def test_other_readings_run_on_the_reference_and_are_refused_by_name(cell_norm):
    layer = ELSTMBN(2, 3, cell_norm=cell_norm)
    layer(torch.randn(3, 4, 2))
    assert layer.last_backend == "reference"
    with pytest.raises(ValueError, match=f"backend 'cpu' cannot serve this call.*{cell_norm}"):
        ELSTMBN(2, 3, cell_norm=cell_norm, backend="cpu")(torch.randn(3, 4, 2))


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="flags of x86-64 compilers")
@pytest.mark.parametrize("target", ["-march=x86-64", "-march=x86-64-v3"])
def test_narrower_vectors(target, monkeypatch):
    lanes = library.library(32).elstm_lanes()
    for bits in (32, 64):
        narrow = library.library(bits, target)
        monkeypatch.setattr(library, "library", _instead(library.library, bits, narrow))
    assert library.library(32).elstm_lanes() <= lanes
    wide = SHAPES["slices and wide inputs"]
    check(cell_norm="update", **wide)
    check(cell_norm="update", **wide | {"batch_steps": 0, "steps": 3})  # as above: errors grow


def _instead(library, bits, narrow):
    return lambda asked, *target: narrow if asked == bits else library(asked, *target)


RUN = """
import sys
import torch
from elstm.nn import ELSTMBN
layer = ELSTMBN(2, 3)
layer(torch.ones(3, 4, 2))
print(layer.last_backend)
assert "torch._dynamo" not in sys.modules  # whose import takes as long as torch's
"""


def run_with(**environment):
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_without_a_compiler_the_reference_runs_and_one_line_says_so(tmp_path):
    done = run_with(CC="no-such-compiler", XDG_CACHE_HOME=str(tmp_path))
    assert done.stdout == "reference\n"
    assert done.stderr.count("\n") == 1
    assert "no C compiler was found" in done.stderr


def gradients_of(layer, rank):
    x = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(rank))
    layer(x)[0].square().sum().backward()
    return [p.grad.tolist() for p in layer.parameters()]


def by_ddp(rank, meeting):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=2)
    try:
        torch.manual_seed(0)
        layer = ELSTMBN(3, 5, backend="cpu")
        return gradients_of(torch.nn.parallel.DistributedDataParallel(layer), rank)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_ddp_averages_its_gradients(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as executor:
        found = list(executor.map(by_ddp, range(2), [str(tmp_path / "meeting")] * 2))
    alone = []
    for rank in range(2):
        torch.manual_seed(0)
        alone.append(gradients_of(ELSTMBN(3, 5, backend="reference"), rank))
    for ours, other, first, second in zip(*found, *alone, strict=True):
        assert ours == other
        average = (torch.tensor(first) + torch.tensor(second)) / 2
        torch.testing.assert_close(torch.tensor(ours), average, rtol=1e-4, atol=1e-5)


def test_each_kind_of_cpu_has_a_library_of_its_own(monkeypatch):
    compiler, flags = build._compiler(), ("-O2",)
    here = build._key(compiler, flags)
    assert build._key(compiler, flags) == here != build._key(compiler, ("-O3",))
    monkeypatch.setattr(build, "_cpu", lambda: ["flags: sse2"])
    assert build._key(compiler, flags) != here


@pytest.mark.slow
def test_the_cache_is_private_and_two_may_build_at_once(tmp_path):
    command = [sys.executable, "-c", RUN]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    both = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=120)[0] for process in both] == ["cpu\n"] * 2
    folder = Path(tmp_path, "elstm")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert sorted(path.suffix for path in folder.iterdir()) == [".sha256", ".so"]
