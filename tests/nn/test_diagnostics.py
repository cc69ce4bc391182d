"""over_time against finite differences in NumPy, through a recurrence cut in two."""

import numpy as np
import pytest
import torch
from numpy_lstm import assert_close, lstm, packed, randomize, sequences, to_numpy
from torch import nn
from torch.nn.utils.rnn import pad_packed_sequence

from elstm.nn import BNLSTM, CELL_NORMS, ELSTMBN, LSTM, hidden_gradient_norms, over_time

T, B, F, H = 4, 3, 2, 2
LENGTHS = [2, 4, 4]  # two or more are alive at every step
A, B_N, C_N = sequences(T, B, H, seed=5), sequences(1, B, H, seed=6), sequences(1, B, H, seed=7)


def loss(output, state):
    """One of every path: the output at each step, and both final states."""
    if not isinstance(output, torch.Tensor):
        output, _ = pad_packed_sequence(output, total_length=T)
    h_n, c_n = state
    return (A * output.square()).sum() + (B_N * h_n.sin()).sum() + (C_N * c_n).sum()


def numpy_loss(output, h_n, c_n):
    a, b, c = (weights.numpy() for weights in (A, B_N, C_N))
    return (a * output**2).sum() + (b * np.sin(h_n)).sum() + (c * c_n).sum()


def finite_differences(layer, x, lengths):
    """(T,) |dL/dh_t|: h_t of each sequence alive at t moves, c_t stays, later steps follow."""
    lengths = np.asarray(lengths)
    state = to_numpy(layer)

    def head(t):
        return lstm(layer, x[:t], lengths=np.minimum(lengths, t), batch_mode=True, state=state)

    def value(t, h, c, output):
        """The loss, where the first t steps gave h, c and output."""
        left = np.maximum(lengths - t, 0)
        rest = lstm(layer, x[t:], h, c, lengths=left, batch_mode=True, state=state)
        return numpy_loss(np.concatenate((output, rest.output)), rest.h_n, rest.c_n)

    norms, step = [], 1e-6
    for t in range(1, len(x) + 1):
        start = head(t)
        gradient = np.zeros(start.h_n.shape)
        for place in np.ndindex(gradient.shape):
            if lengths[place[1]] < t:
                continue  # this sequence has ended: it has no h_t
            sides = []
            for sign in (1, -1):
                h, output = start.h_n.copy(), start.output.copy()
                h[place] += sign * step
                output[t - 1] = np.where((lengths >= t)[:, None], h[0], 0)
                sides.append(value(t, h, start.c_n, output))
            gradient[place] = (sides[0] - sides[1]) / (2 * step)
        norms.append(np.linalg.norm(gradient))
    return np.array(norms)


def make(cell_norm, **options):
    if cell_norm == "lstm":
        return randomize(LSTM(F, H, dtype=torch.float64, **options))
    return randomize(
        ELSTMBN(F, H, cell_norm=cell_norm, max_steps=T, dtype=torch.float64, **options)
    )


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["padded", "packed"])
@pytest.mark.parametrize("cell_norm", ["lstm", *CELL_NORMS])
def test_matches_finite_differences(cell_norm, lengths):
    layer, x = make(cell_norm), sequences(T, B, F)
    norms = hidden_gradient_norms(layer, x if lengths is None else packed(x, lengths), loss)
    assert norms.shape == (T,)
    assert_close(norms, finite_differences(layer, x.numpy(), lengths or [T] * B), rtol=1e-6)


@pytest.mark.parametrize("cell_norm", ["lstm", *CELL_NORMS])
def test_the_cell_over_time(cell_norm):
    layer, x = make(cell_norm, num_layers=1), sequences(T, B, F)
    found = over_time(layer, packed(x, LENGTHS), loss)
    state = to_numpy(layer)
    for t in range(1, T + 1):
        alive = [length >= t for length in LENGTHS]
        c_t = lstm(
            layer, x[:t].numpy(), lengths=np.minimum(LENGTHS, t), batch_mode=True, state=state
        ).c_n[0][alive]
        assert found["cell_mean"][t - 1].item() == pytest.approx(c_t.mean(), rel=1e-9)
        assert found["cell_std"][t - 1].item() == pytest.approx(c_t.std(), rel=1e-9)


def test_a_loss_that_does_not_see_every_step():
    """Steps that the loss does not depend on have no gradient: zero, and no error."""
    layer, x = make("update"), sequences(T, B, F)
    early = hidden_gradient_norms(layer, x, lambda output, state: output[1].sum())
    assert early[:2].all()
    assert not early[2:].any()
    cell = hidden_gradient_norms(layer, x, lambda output, state: (C_N * state[1]).sum())
    assert cell[:-1].all()
    assert cell[-1] == 0  # c_T does not depend on h_T


def test_is_of_the_last_layer_s_forward_direction():
    layer = make("output", num_layers=2, bidirectional=True)
    x = sequences(T, B, F)
    top = randomize(BNLSTM(2 * H, H, max_steps=T, dtype=torch.float64))
    values = layer.state_dict()
    top.load_state_dict({name: values[name.replace("_l0", "_l1")] for name in top.state_dict()})
    lower = randomize(BNLSTM(F, H, bidirectional=True, max_steps=T, dtype=torch.float64))
    lower.load_state_dict({name: values[name] for name in lower.state_dict()})
    below = lower(x)[0].detach()
    expected = hidden_gradient_norms(top, below, lambda output, state: output.square().sum())
    actual = hidden_gradient_norms(layer, x, lambda output, state: output[..., :H].square().sum())
    assert_close(actual, expected.numpy())


def test_batch_first_and_bare_parameters():
    layer, x = make("update"), sequences(T, B, F)
    expected = hidden_gradient_norms(layer, x, loss)
    layer.requires_grad_(False)  # a trained model that is only looked at
    with torch.no_grad():
        assert_close(hidden_gradient_norms(layer, x, loss), expected.numpy())
    layer.batch_first = True
    turned = hidden_gradient_norms(
        layer, x.transpose(0, 1), lambda output, state: loss(output.transpose(0, 1), state)
    )
    assert_close(turned, expected.numpy())


@pytest.mark.parametrize("training", [True, False])
def test_leaves_all_as_it_was(training):
    layer = make("update", num_layers=2, dropout=0.5, state_noise=0.3).train(training)
    x = sequences(T, B, F).requires_grad_()
    layer(x)[0].sum().backward()
    x_grad, random = x.grad.clone(), torch.get_rng_state()
    grads = [p.grad.clone() for p in layer.parameters()]
    values = {name: v.clone() for name, v in layer.state_dict().items()}
    backend = layer.last_backend
    first = hidden_gradient_norms(layer, x, lambda output, state: output.sum())
    assert torch.equal(first, hidden_gradient_norms(layer, x, lambda output, state: output.sum()))
    assert not first.requires_grad
    assert layer.training is training
    assert layer.last_backend == backend
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(x.grad, x_grad)
    for parameter, grad in zip(layer.parameters(), grads, strict=True):
        assert torch.equal(parameter.grad, grad)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, values[name])


def test_projections_are_refused():
    layer = LSTM(F, 4, proj_size=2)
    with pytest.raises(ValueError, match="projections"):
        hidden_gradient_norms(layer, torch.zeros(T, B, F), lambda output, state: output.sum())


def test_with_a_head():
    """Uses the loss of a classifier on the final state, as the runner does."""
    layer, head = make("update"), nn.Linear(H, 3, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2])
    norms = hidden_gradient_norms(
        layer,
        sequences(T, B, F),
        lambda output, state: nn.functional.cross_entropy(head(state[0][-1]), labels),
    )
    assert (norms > 0).all()
    assert head.weight.grad is None
