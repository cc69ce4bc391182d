"""A layer's copies: on disk, in memory, in other dtypes, compiled, exported."""

import copy
import io
import pickle

import pytest
import torch
import torch._dynamo.testing
from numpy_lstm import packed, randomize, sequences
from torch import nn

from elstm.nn import (
    BNLSTM,
    CELL_NORMS,
    ELSTMBN,
    LSTM,
    batch_statistics,
    recompute_statistics,
    statistics_norms,
)

T, B, F, H = 3, 4, 2, 3
CELLS = ["lstm", *CELL_NORMS]


def make(cell="update", **options):
    if cell == "lstm":
        options.pop("max_steps", None)
        return randomize(LSTM(F, H, **options))
    return randomize(ELSTMBN(F, H, cell_norm=cell, **{"max_steps": T} | options))


def inputs(seed=0, dtype=torch.float32):
    return sequences(T, B, F, seed=seed, dtype=dtype)


def flat(result):
    output, (h_n, c_n) = result
    return [output, h_n, c_n]


def assert_equal(layer, other, x=None, **tolerance):
    x = inputs() if x is None else x
    torch.testing.assert_close(
        flat(layer(x)), flat(other(x)), **({"rtol": 0, "atol": 0} | tolerance)
    )


# --- state_dict, copy, pickle


@pytest.mark.parametrize("cell", CELLS)
def test_state_dict_round_trip_through_a_file(cell, tmp_path):
    options = {"num_layers": 2, "bidirectional": True, "learn_initial_state": True}
    layer = make(cell, **options)
    layer(inputs())
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    torch.manual_seed(1)
    other = make(cell, **options)
    other.reset_parameters()
    other.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
    for training in (False, True, False):
        assert_equal(layer.train(training), other.train(training))


def test_the_counters_of_batch_renormalisation_are_refused():
    """Layers with that option are gone; their state_dicts do not load as if it did not matter."""
    layer = make("update")
    state = layer.state_dict() | {"norm_c_l0.num_batches_trained": torch.zeros(4)}
    with pytest.raises(RuntimeError, match=r"Unexpected key.*num_batches_trained"):
        layer.load_state_dict(state)


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("cell", ["lstm", "terms"])
def test_copies_are_equal_and_independent(cell, copy_of):
    layer = make(cell)
    layer(inputs())
    other = copy_of(layer)
    assert type(other) is type(layer)
    assert_equal(layer.eval(), other.eval())
    before = flat(layer(inputs()))
    other.train()
    other(inputs(seed=1))[0].sum().backward()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    assert all(parameter.grad is None for parameter in layer.parameters())
    torch.testing.assert_close(flat(layer(inputs())), before, rtol=0, atol=0)


def test_a_whole_layer_through_torch_save():
    layer = make("update").eval()
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    assert_equal(layer, torch.load(buffer, weights_only=False))


def test_repr_shows_what_it_is():
    layer = BNLSTM(F, H, num_layers=2, batch_first=True, dropout=0.5, max_steps=9)
    expected = "2, 3, num_layers=2, batch_first=True, dropout=0.5, cell_norm=output"
    assert repr(layer).splitlines()[1].strip() == expected
    assert "StepBatchNorm(12, max_steps=9, eps=0.1, momentum=0.1)" in repr(layer)


# --- devices and dtypes


@pytest.mark.parametrize(
    "cast",
    [
        lambda m: m.half(),
        lambda m: m.bfloat16(),
        lambda m: m.to(torch.bfloat16),
        lambda m: nn.Sequential(m).to("cpu", torch.float16)[0],
        lambda m: make("terms", dtype=torch.bfloat16),
    ],
    ids=["half", "bfloat16", "to", "inside", "dtype"],
)
def test_statistics_stay_float32_in_half_precision(cast):
    single = make("terms")
    kept = dict(copy.deepcopy(single).named_buffers())
    layer = cast(single)
    dtype = layer.weight_ih_l0.dtype
    assert dtype.itemsize == 2
    for name, buffer in layer.named_buffers():
        if "running" in name:
            assert buffer.dtype == torch.float32
            assert torch.equal(buffer, kept[name])  # not rounded on the way
    exact = make("terms")
    for training in (True, False):
        output, (h_n, c_n) = layer.train(training)(inputs(dtype=dtype))
        assert {output.dtype, h_n.dtype, c_n.dtype} == {dtype}
        expected = exact.train(training)(inputs())[0]
        torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.05)
    output.sum().backward()
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in layer.parameters())
    recompute_statistics(layer, [inputs(dtype=dtype)])
    assert all(norm.running_var.dtype == torch.float32 for _, norm in statistics_norms(layer))
    # And back: the statistics follow the layer up, to where torch can be more exact.
    assert {b.dtype for b in layer.float().buffers()} == {torch.float32, torch.int64}
    assert {b.dtype for b in layer.double().buffers()} == {torch.float64, torch.int64}


def test_double_is_as_exact_as_double():
    single, double = make(), make(dtype=torch.float64)
    for (name, a), (_, b) in zip(
        single.double().state_dict().items(), double.state_dict().items(), strict=True
    ):
        assert a.dtype == b.dtype, name
    assert_equal(single.eval(), double.eval(), inputs(dtype=torch.float64), rtol=1e-5, atol=1e-5)


def test_moving_keeps_the_statistics_module_s_buffers():
    layer = make()
    meta = copy.deepcopy(layer).to("meta")
    assert all(b.is_meta for b in meta.buffers())
    assert all(p.is_meta for p in meta.parameters())
    empty = meta.to_empty(device="cpu")
    empty.load_state_dict(layer.state_dict())
    assert_equal(layer.eval(), empty.eval())
    built = ELSTMBN(F, H, max_steps=T, device="meta")
    assert all(v.is_meta for v in built.state_dict().values())


@pytest.mark.parametrize("cell", ["output", "update"])
@pytest.mark.parametrize("training", [True, False])
def test_autocast(cell, training):
    layer, twin = (make(cell).train(training) for _ in range(2))
    exact = layer(inputs())[0]
    with torch.autocast("cpu", torch.bfloat16):
        output = twin(inputs())[0]
    torch.testing.assert_close(output.float(), exact, rtol=0.05, atol=0.05)
    assert not torch.equal(output.float(), exact)  # bf16 took part
    output.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in twin.parameters())
    for (_, a), (_, b) in zip(statistics_norms(layer), statistics_norms(twin), strict=True):
        assert b.running_mean.dtype == b.running_var.dtype == torch.float32
        torch.testing.assert_close(a.running_mean, b.running_mean, rtol=0.05, atol=0.02)
        torch.testing.assert_close(a.running_var, b.running_var, rtol=0.05, atol=0.02)


def test_autocast_sums_the_statistics_in_float32():
    """Checks that a variance of 1 of 4096 values near 100 survives, which bf16 sums would lose."""
    layer = ELSTMBN(1, 1, max_steps=1, cell_norm="none", normalize_hidden=False, momentum=1.0)
    nn.init.ones_(layer.weight_ih_l0)
    x = (100 + 4 * sequences(1, 4096, 1)).bfloat16().float()
    with torch.autocast("cpu", torch.bfloat16):
        layer(x)
    torch.testing.assert_close(layer.norm_ih_l0.running_var[0, 0], x.var())
    torch.testing.assert_close(layer.norm_ih_l0.running_mean[0, 0], x.mean())


# --- torch.compile, torch.export


@pytest.fixture
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize(
    ("cell", "backend", "options"),
    [
        pytest.param("update", "reference", {}, marks=pytest.mark.slow),
        pytest.param("update", "reference", {"recompute": True}, marks=pytest.mark.slow),
        *(("update", "auto", {"recompute": recompute}) for recompute in (False, True)),
        ("lstm", "auto", {}),
    ],
)
def test_compiled(cell, backend, options):
    """Compiles in one graph, by every backend; dynamo does not trace torch.nn.LSTM."""
    layer = make(cell, backend=backend, **options)
    whole = cell != "lstm"
    compiled = torch.compile(copy.deepcopy(layer), backend="aot_eager", fullgraph=whole)
    for training in (True, True, False):
        layer.train(training)
        compiled.train(training)
        assert_equal(layer, compiled, rtol=1e-5, atol=1e-6)
    for module in (layer, compiled):
        module(inputs())[0].square().sum().backward()
    names = dict(layer.named_buffers())
    for name, buffer in compiled._orig_mod.named_buffers():
        torch.testing.assert_close(buffer, names[name])
    for a, b in zip(layer.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("cell", CELLS)
def test_compiled_by_inductor(cell):
    layer = make(cell)
    compiled = torch.compile(copy.deepcopy(layer))
    for training in (True, False):
        assert_equal(layer.train(training), compiled.train(training), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_compiler")
def test_compiled_model_and_its_statistics():
    """The two functions reach through a compiled model, and no graphs pile up."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = make(backend="reference")
            self.head = nn.Linear(H, 2)

        def forward(self, x):
            return self.head(self.rnn(x)[1][0][-1])

    plain = Model()
    counters = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(copy.deepcopy(plain), backend=counters, fullgraph=True)
    batches = [inputs(seed) for seed in range(3)]
    for _ in range(3):
        for model in (plain, compiled):
            model.train()
            for x in batches:
                model(x)
            recompute_statistics(model, batches)
        for a, b in zip(plain.buffers(), compiled.buffers(), strict=True):
            torch.testing.assert_close(a, b)
        with batch_statistics(plain), batch_statistics(compiled):
            torch.testing.assert_close(plain(batches[0]), compiled(batches[0]))
        torch.testing.assert_close(plain.eval()(batches[0]), compiled.eval()(batches[0]))
    assert counters.frame_count == 4  # training, recomputing, batch statistics, evaluation


@pytest.mark.filterwarnings("ignore:The tensor attributes self._flat_weights")  # torch.nn.LSTM's
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch.export.load's
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("cell", ["update", "output", "lstm"])
def test_exported_in_eval_mode(cell):
    """One program for any number of sequences; a file of it needs no elstm to run."""
    layer = make(cell).eval()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(layer, (inputs(),), dynamic_shapes=({1: batch},))
    for size in (B, 1, 7):
        x = sequences(T, size, F, dtype=torch.float32)
        assert_equal(layer, program.module(), x, rtol=1e-5, atol=1e-6)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    assert_equal(layer, torch.export.load(buffer).module(), rtol=1e-5, atol=1e-6)


def test_functional_call():
    """Other parameters and statistics give what a layer with those gives."""
    layer, other = make("carry").eval(), randomize(make("carry"), seed=9).eval()
    x = packed(inputs(), [2, 3, 1, 3])
    values = dict(other.named_parameters()) | dict(other.named_buffers())
    actual, _ = torch.func.functional_call(layer, values, (x,))
    torch.testing.assert_close(actual.data, other(x)[0].data)
