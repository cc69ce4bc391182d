"""Population statistics: moved in training, pooled by recompute_statistics, read in eval mode."""

import copy

import numpy as np
import pytest
import torch
from numpy_lstm import assert_close, lstm, packed, pool, randomize, sequences, to_numpy, track
from torch import nn

from elstm.nn import (
    BNLSTM,
    ELSTMBN,
    LSTM,
    batch_statistics,
    recompute_statistics,
    statistics_norms,
)
from elstm.nn.norm import StepBatchNorm

F, H = 3, 2
DEEP = {"num_layers": 2, "bidirectional": True}
# (steps, sequences, lengths): unequal, some packed; in the third and the last one sequence is left.
BATCHES = [(6, 4, None), (4, 7, None), (6, 3, [2, 6, 4]), (6, 4, [6, 3, 6, 1]), (5, 3, [1, 5, 2])]


def make(layer_class=ELSTMBN, **options):
    options = {"max_steps": 6, "dtype": torch.float64} | options
    return layer_class(F, H, backend="reference", **options)


def batches():
    """The inputs of BATCHES: tensors, with their lengths."""
    shapes = enumerate(BATCHES)
    return [(sequences(steps, size, F, seed=k), lengths) for k, (steps, size, lengths) in shapes]


def inputs():
    return [x if lengths is None else packed(x, lengths) for x, lengths in batches()]


def statistics(model):
    return {name: value.clone() for name, value in model.named_buffers()}


def assert_statistics(layer, expected):
    for name, value in layer.named_buffers():
        assert_close(value, expected[name])


# --- training


@pytest.mark.parametrize(
    ("max_steps", "tracked"),
    [(6, [5, 5, 4, 4, 2, 2]), (8, [5, 5, 4, 4, 2, 2, 0, 0]), (4, [5, 5, 4, 4]), (1, [5])],
)
@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
def test_training_moves_the_statistics(momentum, max_steps, tracked):
    """Step by step, with the unbiased variance; the last row pools the steps it stands for."""
    layer = randomize(make(momentum=momentum, max_steps=max_steps, **DEEP), rows_tracked=0)
    state = to_numpy(layer)
    for (x, lengths), input in zip(batches(), inputs(), strict=True):
        result = lstm(layer, x.numpy(), lengths=lengths, state=state)
        track(state, result.values, max_steps, momentum)
        layer(input)
        assert_statistics(layer, state)
    norms = dict(statistics_norms(layer))
    assert len(norms) == 4 * 3
    assert all(norm.num_batches_tracked.tolist() == tracked for norm in norms.values())


def test_the_first_cumulative_average_is_the_batch():
    layer = randomize(make(momentum=None), rows_tracked=0)
    x = sequences(6, 4, F)
    layer(x)
    z = x @ layer.weight_ih_l0.T
    assert_close(layer.norm_ih_l0.running_mean, z.mean(1).detach().numpy())
    assert_close(layer.norm_ih_l0.running_var, z.var(1, unbiased=True).detach().numpy())


def test_statistics_are_as_torch_s_batch_norm_keeps_them():
    """One step, one norm: BatchNorm1d has the same mean, variance, momentum and output."""
    for momentum in (0.1, None):
        ours = make(max_steps=1, cell_norm="none", normalize_hidden=False, bias=False,
                    momentum=momentum)  # fmt: skip
        theirs = nn.BatchNorm1d(4 * H, 0.1, momentum, dtype=torch.float64)
        for seed in range(3):
            x = sequences(1, 5, F, seed=seed)
            ours(x)
            theirs(nn.functional.linear(x[0], ours.weight_ih_l0))
        norm = ours.norm_ih_l0
        assert_close(norm.running_mean[0], theirs.running_mean.numpy())
        assert_close(norm.running_var[0], theirs.running_var.numpy())
        assert norm.num_batches_tracked.tolist() == [3]


def test_eval_mode_leaves_the_statistics_alone():
    layer = randomize(make()).eval()
    before = statistics(layer)
    for input in inputs():
        layer(input)
    assert_statistics(layer, {name: value.numpy() for name, value in before.items()})


def test_steps_that_no_batch_reached_read_the_last_row_tracked():
    layer = randomize(make(max_steps=6), rows_tracked=0)
    layer(sequences(3, 4, F))
    layer.eval()
    x = sequences(8, 2, F, seed=1)
    short = randomize(make(max_steps=3))
    values = layer.state_dict()
    short.load_state_dict(
        {name: v[:3] if "running" in name or "tracked" in name else v for name, v in values.items()}
    )
    assert_close(layer(x)[0], short.eval()(x)[0].detach().numpy())


def test_reset():
    layer = randomize(make(gamma_c=0.3, gamma_hh=0.2))
    norm = layer.norm_c_l0
    norm.reset_statistics()
    assert not norm.running_mean.any()
    assert not norm.num_batches_tracked.any()
    assert (norm.running_var == 1).all()
    assert norm.bias.all()
    layer.reset_parameters()
    for name, norm in statistics_norms(layer):
        gamma = {"norm_c_l0": 0.3, "norm_hh_l0": 0.2, "norm_ih_l0": 1.0}[name]
        assert (norm.weight == gamma).all()
        assert norm.bias is None or not norm.bias.any()
        assert (norm.running_var == 1).all()


def test_statistics_norms_names_every_norm():
    model = nn.ModuleDict({"a": make(BNLSTM), "b": make(cell_norm="terms", normalize_input=False)})
    named = dict(statistics_norms(model))
    names = ["a.norm_ih_l0", "a.norm_hh_l0", "a.norm_c_l0"]
    assert list(named) == [*names, "b.norm_hh_l0", "b.norm_c_l0", "b.norm_c2_l0"]
    assert all(named[name] is model.get_submodule(name) for name in named)
    assert all(isinstance(norm, StepBatchNorm) for norm in named.values())
    assert not list(statistics_norms(LSTM(F, H)))


# --- recompute_statistics


@pytest.mark.parametrize("max_steps", [6, 9, 3])
@pytest.mark.parametrize("cell_norm", ["update", "terms", "center"])
def test_recomputed_statistics_are_those_of_all_values_together(cell_norm, max_steps):
    layer = randomize(make(cell_norm=cell_norm, max_steps=max_steps, **DEEP))
    state = to_numpy(layer)
    values = [
        lstm(layer, x.numpy(), lengths=lengths, batch_mode=True).values for x, lengths in batches()
    ]
    pool(state, values, max_steps)
    recompute_statistics(layer, iter(inputs()))
    assert_statistics(layer, state)


@pytest.mark.parametrize("cell_norm", ["output", "update", "increment", "terms", "carry", "center"])
def test_recomputed_on_one_batch_evaluates_it_as_in_batch_mode(cell_norm):
    lengths = [6, 2, 6, 4]  # at every step two or more are alive
    for input in (sequences(6, 4, F), packed(sequences(6, 4, F), lengths)):
        layer = randomize(make(cell_norm=cell_norm, **DEEP)).eval()
        with batch_statistics(layer):
            expected = layer(input)
        assert not torch.allclose(layer(input)[1][0], expected[1][0])
        recompute_statistics(layer, [input])
        for actual, wanted in zip(layer(input)[1], expected[1], strict=True):
            assert_close(actual, wanted.detach().numpy(), rtol=1e-8)


class Net(nn.Module):
    """Everything that recompute_statistics has to leave alone."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(H, dtype=torch.float64)
        self.rnn = make(BNLSTM, num_layers=2, dropout=0.5, state_noise=0.7)
        self.frozen = make().eval()
        self.lstm = LSTM(H, H, dtype=torch.float64, state_noise=0.3)

    def forward(self, x):
        h = self.rnn(self.drop(x))[1][0][-1]
        return self.lstm(self.norm(h)[None])[0].sum() + self.frozen(x)[0].sum()


def snapshot(model):
    norms = [norm for _, norm in statistics_norms(model)]
    return {
        "modes": [module.training for module in model.modules()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "values": [p.detach().clone() for p in model.parameters()],
        "torch's norm": {name: v.clone() for name, v in model.norm.named_buffers()},
        "random": torch.get_rng_state(),
        "pools": [norm.pool for norm in norms],
        "gradient mode": torch.is_grad_enabled(),
    }


def assert_same(before, after):
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_recompute_leaves_all_else_as_it_was():
    model = Net()
    model(sequences(6, 4, F)).backward()
    before = snapshot(model)
    assert before["modes"].count(False) == 4  # the frozen layer and its three norms

    def batches():
        for seed in range(3):
            torch.randn(5)  # a DataLoader that shuffles draws from the global state as well
            yield sequences(6, 4, F, seed=seed), torch.zeros(4)  # with labels

    recompute_statistics(model, batches())
    assert_same(before, snapshot(model))
    first = statistics(model)
    assert first["rnn.norm_ih_l0.num_batches_tracked"].eq(3).all()

    # No dropout, no noise: the same again, and the same as in a net that has neither.
    recompute_statistics(model, batches())
    assert_same(first, statistics(model))
    model.drop.p = model.rnn.dropout = model.rnn.state_noise = 0.0
    recompute_statistics(model, [[*pair] for pair in batches()])
    assert_same(first, statistics(model))
    model.train()(sequences(6, 4, F))
    assert not torch.equal(statistics(model)["rnn.norm_ih_l0.running_mean"], first[
        "rnn.norm_ih_l0.running_mean"
    ])  # fmt: skip


@pytest.mark.parametrize("failure", ["no batch", "an error on the way", "batches of one"])
def test_recompute_that_fails_loses_nothing(failure):
    model = Net()
    model(sequences(6, 4, F))
    model(sequences(6, 4, F, seed=1)).backward()
    before, kept = snapshot(model), statistics(model)

    def batches():
        if failure == "no batch":
            return
        if failure == "batches of one":
            yield from (sequences(6, 1, F), sequences(3, 1, F))
            return
        yield sequences(6, 4, F, seed=2)
        raise KeyError("the disk is gone")

    errors = {
        "no batch": (ValueError, "at least one batch"),
        "an error on the way": (KeyError, "the disk is gone"),
        "batches of one": (ValueError, "two or more sequences"),
    }
    error, message = errors[failure]
    with pytest.raises(error, match=message):
        recompute_statistics(model, batches())
    assert_same(before, snapshot(model))
    assert_same(kept, statistics(model))


def test_recompute_of_a_model_without_norms_does_nothing():
    recompute_statistics(LSTM(F, H), [])
    recompute_statistics(nn.Linear(2, 2), iter([]))


def test_recompute_keeps_the_statistics_of_a_layer_that_is_not_called():
    model = nn.Sequential(make())
    model.spare = randomize(make())
    model.forward = lambda x: model[0](x)
    kept = statistics(model.spare)
    recompute_statistics(model, [sequences(6, 4, F)])
    assert_same(kept, statistics(model.spare))
    assert model[0].norm_c_l0.num_batches_tracked.all()


def test_recompute_is_exact_for_values_far_from_zero():
    """Pooled from E[x²] - E[x]², a variance of 1 beside a mean of 1e4 would be lost in float32."""
    layer = make(dtype=torch.float32, cell_norm="none", normalize_hidden=False)
    data = [sequences(6, 50, F, seed=k, dtype=torch.float32) + 1e4 for k in range(4)]
    recompute_statistics(layer, data)
    z = torch.cat(data, 1).double() @ layer.weight_ih_l0.double().T
    expected = z.var(1, unbiased=False).detach().numpy()
    np.testing.assert_allclose(layer.norm_ih_l0.running_var.numpy(), expected, rtol=2e-3)


def test_training_goes_on_from_recomputed_statistics():
    """The cumulative average counts the batches that were pooled."""
    layer = randomize(make(momentum=None))
    recompute_statistics(layer, inputs()[:2])
    state = to_numpy(layer)
    x = sequences(6, 4, F, seed=8)
    track(state, lstm(layer, x.numpy(), state=state).values, 6, None)
    layer(x)
    assert_statistics(layer, state)
    assert layer.norm_c_l0.num_batches_tracked.tolist() == [3, 3, 3, 3, 2, 2]


# --- batch_statistics


def test_batch_statistics_normalises_with_the_batch_and_tracks_nothing():
    model = Net()
    for training in (True, False):
        model.train(training)
        before, kept = snapshot(model), statistics(model)
        with batch_statistics(model):
            assert not any(module.training for module in model.modules())
            x = sequences(6, 4, F)
            result = model(x)
            expected = lstm(model.rnn, x.numpy(), batch_mode=True)
            assert_close(model.rnn(x)[0], expected.output)
            result.backward()  # gradients flow
            model.zero_grad()
            with batch_statistics(model.rnn):
                pass
            assert_close(model.rnn(x)[0], expected.output)  # still on
        assert_same(before | {"grads": [None] * len(before["grads"])}, snapshot(model))
        assert_same(kept, statistics(model))
    model.eval()
    expected = lstm(model.rnn, x.numpy(), batch_mode=False)
    assert_close(model.rnn(x)[0], expected.output)


def test_batch_statistics_ends_with_an_error_too():
    model = Net()
    before = snapshot(model)
    with pytest.raises(ValueError, match="at least 2 sequences"), batch_statistics(model):
        model.rnn(sequences(6, 1, F))
    assert_same(before, snapshot(model))
    x = sequences(6, 4, F)
    assert_close(model.rnn.eval()(x)[0], lstm(model.rnn, x.numpy()).output)


def test_statistics_of_several_dtypes_move_alike():
    layer = ELSTMBN(3, 4, max_steps=5, backend="reference")
    mixed = copy.deepcopy(layer)
    norm = mixed.norm_hh_l0
    norm.running_mean, norm.running_var = norm.running_mean.double(), norm.running_var.double()
    for each in (layer, mixed):
        torch.manual_seed(0)
        each(torch.randn(5, 6, 3))
    assert norm.running_mean.dtype == torch.float64
    for name, buffer in layer.named_buffers():
        torch.testing.assert_close(mixed.get_buffer(name).to(buffer), buffer)
