"""The reference recurrence as a function: one layer, one direction, against NumPy."""

import numpy as np
import pytest
import torch
from numpy_lstm import assert_close, lstm, packed, population_row, randomize, sequences, to_numpy

from elstm.nn import CELL_NORMS, ELSTMBN
from elstm.nn.recurrence import Call, NormInputs, Statistics, recurrence

NORMS = ("norm_ih", "norm_hh", "norm_c", "norm_c2")
T, B, F, H = 5, 4, 3, 3
SIZES = [4, 3, 3, 1, 1]  # alive at each step: lengths 5, 3, 3, 1
LENGTHS = [5, 3, 3, 1]
MODES = {  # batch_sizes and batch_steps
    "batch": (None, T),
    "population": (None, 0),
    "batch, packed": (SIZES, 3),  # from step 3 on one sequence is alive
    "population, packed": (SIZES, 0),
}


def make(cell_norm, **options):
    layer = ELSTMBN(F, H, cell_norm=cell_norm, max_steps=T, dtype=torch.float64, **options)
    return randomize(layer)


def arguments(layer, x, h_0, c_0, batch_sizes, batch_steps):
    """The call that the layer's contract asks for, put together by hand."""
    state = dict(layer.named_parameters()) | dict(layer.named_buffers())

    def norm(name):
        name = f"{name}_l0"
        if f"{name}.running_mean" not in state:
            return None
        population = [state.get(f"{name}.{kind}") for kind in ("running_mean", "running_var")]
        if batch_steps < T:
            rows = [population_row(to_numpy(layer), name, t) for t in range(x.shape[0])]
            population = [None if part is None else part[rows] for part in population]
        else:
            population = [None, None]
        weight, bias = state.get(f"{name}.weight"), state.get(f"{name}.bias")
        return NormInputs(weight, bias, *population, layer.get_submodule(name).eps, batch_steps)

    weights = state["weight_ih_l0"], state["weight_hh_l0"], state.get("bias_l0")
    norms = [norm(name) for name in NORMS]
    return Call(x, batch_sizes, h_0, c_0, *weights, *norms, layer.cell_norm)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cell_norm", CELL_NORMS)
def test_follows_the_equations(cell_norm, mode):
    batch_sizes, batch_steps = MODES[mode]
    layer = make(cell_norm)
    x, h_0, c_0 = sequences(T, B, F), sequences(B, H, seed=1), sequences(B, H, seed=2)
    output, h_n, c_n, statistics = recurrence(
        arguments(layer, x, h_0, c_0, batch_sizes, batch_steps)
    )
    expected = lstm(
        layer,
        x.numpy(),
        h_0[None].numpy(),
        c_0[None].numpy(),
        lengths=LENGTHS if batch_sizes else None,
        batch_mode=batch_steps > 0,
    )
    assert_close(output, expected.output)
    assert_close(h_n[None], expected.h_n)
    assert_close(c_n[None], expected.c_n)
    present = [name for name in NORMS if getattr(layer, f"{name}_l0", None) is not None]
    assert present == ["norm_ih", "norm_hh", *CELL_NORMS[cell_norm]]
    for name, got in zip(NORMS, statistics, strict=True):
        if name not in present:
            assert got is None
        elif batch_steps:
            values = expected.values[f"{name}_l0"]
            assert isinstance(got, Statistics)
            assert (got.var is None) == (cell_norm == "center" and name == "norm_c")
            moments = [np.mean, np.var][: 1 if got.var is None else 2]  # the variance is biased
            for parts, moment in zip(got, moments, strict=False):
                assert len(values) == batch_steps == len(parts)
                for part, v in zip(parts, values, strict=True):
                    assert_close(part, moment(v, axis=0))
                assert not parts.requires_grad
        else:
            assert got is None or not any(len(part) for part in got if part is not None)


@pytest.mark.parametrize("steps", [0, 2])
def test_steps_from_batch_steps_on_read_the_population(steps):
    """batch_steps may lie anywhere: the contract of a backend, wider than what a layer asks."""
    layer = make("update")
    x, h_0, c_0 = sequences(T, B, F), sequences(B, H, seed=1), sequences(B, H, seed=2)
    output, h_n, c_n, statistics = recurrence(arguments(layer, x, h_0, c_0, None, steps))
    h, c = h_0[None].numpy(), c_0[None].numpy()
    parts = []
    if steps:
        first = lstm(layer, x[:steps].numpy(), h, c, batch_mode=True)
        parts, h, c = [first.output], first.h_n, first.c_n
    state = to_numpy(layer)
    for name in state:  # row 0 of what follows is step `steps`
        if "running" in name or "tracked" in name:
            state[name] = state[name][steps:]
    rest = lstm(layer, x[steps:].numpy(), h, c, batch_mode=False, state=state)
    for step, expected in enumerate([row for part in [*parts, rest.output] for row in part]):
        assert_close(output[step], expected)
    assert_close(h_n[None], rest.h_n)
    assert_close(c_n[None], rest.c_n)
    assert all(len(s.mean) == steps for s in statistics if s is not None)


@pytest.mark.parametrize("batch_steps", [0, 3])
def test_padding_is_ignored(batch_steps):
    """Checks that values after a sequence's end affect no results or gradients, and get none."""
    layer = make("update_output")
    x = sequences(T, B, F)
    dead = torch.arange(B) >= torch.tensor(SIZES)[:, None]  # (T, B)
    state = sequences(B, H, seed=1), sequences(B, H, seed=2)
    results = []
    for padding in (0.0, 1e3):
        filled = x.masked_fill(dead[:, :, None], padding).requires_grad_()
        output, h_n, c_n, _ = recurrence(arguments(layer, filled, *state, SIZES, batch_steps))
        ((output * sequences(T, B, H, seed=3)).sum() + h_n.square().sum() + c_n.sum()).backward()
        assert not output[dead].any()
        assert not filled.grad[dead].any()
        assert filled.grad[~dead].all()
        grads = [p.grad.clone() for p in layer.parameters()]
        layer.zero_grad()
        results.append([output, h_n, c_n, filled.grad, *grads])
    for a, b in zip(*results, strict=True):
        assert_close(a, b.detach().numpy(), rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["batch, packed", "population, packed"])
@pytest.mark.parametrize("cell_norm", CELL_NORMS)
def test_gradients(cell_norm, mode):
    """To the input, the state and every parameter, through the batch's statistics."""
    batch_sizes, batch_steps = MODES[mode]
    layer = make(cell_norm)
    x, h_0, c_0 = sequences(T, B, F), sequences(B, H, seed=1), sequences(B, H, seed=2)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    norms = arguments(layer, x, h_0, c_0, batch_sizes, batch_steps).norms

    def run(x, h_0, c_0, *values):
        new = dict(zip(names, values, strict=True))
        weights = new["weight_ih_l0"], new["weight_hh_l0"], new["bias_l0"]
        moved = [
            norm
            and norm._replace(weight=new.get(f"{name}_l0.weight"), bias=new.get(f"{name}_l0.bias"))
            for name, norm in zip(NORMS, norms, strict=True)
        ]
        return recurrence(Call(x, batch_sizes, h_0, c_0, *weights, *moved, cell_norm))[:3]

    inputs = [tensor.detach().requires_grad_() for tensor in (x, h_0, c_0, *parameters)]
    # Along one random direction of each input; the tests of the layers check every entry.
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True, check_undefined_grad=False)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cell_norm", ["update", "terms", "center"])
def test_recomputed_in_chunks_of_steps(cell_norm, mode):
    """Recomputes chunks of two steps; between them the state stays float32 under autocast."""
    for dtype in (torch.float64, torch.float32):
        layer = make(cell_norm).to(dtype)
        results = []
        for recompute in (False, True):
            state = sequences(B, H, seed=1), sequences(B, H, seed=2)
            inputs = [t.to(dtype).requires_grad_() for t in (sequences(T, B, F), *state)]
            call = arguments(layer, *inputs, *MODES[mode])._replace(recompute=recompute)
            with torch.autocast("cpu", enabled=dtype == torch.float32):
                *parts, statistics = recurrence(call)
            sum((part.double() * sequences(*part.shape)).sum() for part in parts).backward()
            leaves = [*inputs, *layer.parameters()]
            pairs = [pair for pair in statistics if pair is not None]
            values = [value for pair in pairs for value in pair if value is not None]
            results.append([*parts, *(leaf.grad.clone() for leaf in leaves), *values])
            layer.zero_grad()
        for plain, again in zip(*results, strict=True):
            tolerance = {} if dtype == torch.float64 else {"rtol": 1e-2, "atol": 1e-2}
            torch.testing.assert_close(again, plain, **tolerance)
        assert torch.equal(results[1][0], results[0][0])


def test_half_precision_computes_in_float32():
    """bf16 goes in and comes out; the statistics and the cell between are float32."""
    layer = make("update")
    inputs = sequences(T, B, F), sequences(B, H, seed=1), sequences(B, H, seed=2)
    exact = recurrence(arguments(layer, *inputs, None, T))[0]
    low = [tensor.bfloat16() for tensor in inputs]
    output, h_n, c_n, statistics = recurrence(arguments(layer.bfloat16(), *low, None, T))
    assert {output.dtype, h_n.dtype, c_n.dtype} == {torch.bfloat16}
    for norm in statistics[:3]:
        assert norm.mean.dtype == norm.var.dtype == torch.float32
    assert (output - exact).abs().max() < 0.1


def test_packed_matches_each_length_alone():
    """Checks that each sequence gives the same results alone as in a batch, in eval mode."""
    layer = make("terms").eval()
    x = sequences(T, B, F)
    output, (h_n, c_n) = layer(packed(x, LENGTHS))
    padded, _ = torch.nn.utils.rnn.pad_packed_sequence(output)
    for b, length in enumerate(LENGTHS):
        alone, (h, c) = layer(x[:length, b])
        assert_close(padded[:length, b], alone.detach().numpy())
        assert_close(h_n[:, b], h.detach().numpy())
        assert_close(c_n[:, b], c.detach().numpy())
