"""Uses layers in the ways that torch.nn.LSTM allows, where other tests compare numbers."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from elstm.nn import BNLSTM, ELSTMBN, GRU, LSTM, LayerNormLSTM, statistics_norms

F, H, T, B = 3, 4, 5, 4


@pytest.mark.parametrize("kind", [LSTM, GRU, LayerNormLSTM, BNLSTM, ELSTMBN])
@pytest.mark.parametrize("packed", [True, False])
def test_a_state_changes_in_place(kind, packed):
    """Truncated backpropagation calls h_n.detach_(), and masks states at the ends of episodes."""
    layer, x, weight = kind(F, H), torch.randn(T, B, F), nn.Parameter(torch.ones(H))
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            _, state = layer(pack_padded_sequence(x, [5, 3, 3, 2]) if packed else x)
        for part in state if isinstance(state, tuple) else (state,):
            part.mul_(weight).detach_()


@pytest.mark.parametrize(
    ("kind", "name"),
    [(LSTM, "weight_hh_l0"), (ELSTMBN, "weight_hh_l0"), (ELSTMBN, "norm_c_l0.weight")],
)
def test_recomputing_notices_what_changed_between_the_passes(kind, name):
    layer, x = kind(F, H, backend="reference", recompute=True), torch.randn(T, B, F)
    changed = layer.get_parameter(name)
    loss = layer(x)[0].square().sum()
    with torch.no_grad():
        changed.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_recomputing_by_the_reference_in_transforms():
    """The hooks of checkpointing do not work there, so nothing is recomputed."""
    layer, x = ELSTMBN(F, H, recompute=True, backend="reference").eval(), torch.randn(T, B, F)
    found = torch.func.grad(lambda x: layer(x)[0].square().sum())(x)
    layer(x.requires_grad_())[0].square().sum().backward()
    torch.testing.assert_close(found, x.grad)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("weight_hh_l0", (4 * H, H - 1)), ("weight_ih_l0", (4 * H, F - 1)), ("bias_l0", (1,)),
        ("norm_ih_l0.bias", (1,)), ("norm_hh_l0.weight", (H,)), ("norm_c_l0.weight", (1,)),
    ],
)  # fmt: skip
def test_tensors_of_another_shape_are_named(name, shape, backend):
    """The C code would read past their end."""
    layer = LayerNormLSTM(F, H, backend=backend)
    path, _, last = name.rpartition(".")
    setattr(layer.get_submodule(path), last, nn.Parameter(torch.ones(shape)))
    with pytest.raises(ValueError, match=f"{last.removesuffix('_l0')} must have shape"):
        layer(torch.randn(T, B, F))


@pytest.mark.parametrize("momentum", [1.0, 0.5, None])
def test_each_norm_has_its_momentum(momentum):
    layer, x = ELSTMBN(F, H, max_steps=T), torch.randn(T, B, F)
    other = copy.deepcopy(layer)
    layer.norm_c_l0.momentum = momentum
    for _, norm in statistics_norms(other):
        norm.momentum = momentum
    layer(x)
    other(x)
    torch.testing.assert_close(
        layer.norm_c_l0.state_dict(), other.norm_c_l0.state_dict(), rtol=0, atol=0
    )
    assert not torch.equal(layer.norm_ih_l0.running_mean, other.norm_ih_l0.running_mean)


@pytest.mark.parametrize("grad", [True, False])
def test_an_ensemble_evaluates_in_one_call(grad):
    layers, x = [ELSTMBN(F, H, max_steps=T).eval() for _ in range(2)], torch.randn(T, B, F)
    tensors = torch.func.stack_module_state(layers)

    def run(parameters, buffers):
        return torch.func.functional_call(layers[0], (parameters, buffers), (x,))[0]

    with torch.set_grad_enabled(grad):
        found = torch.func.vmap(run)(*tensors)
        torch.testing.assert_close(found, torch.stack([layer(x)[0] for layer in layers]))


def test_a_packed_gru_on_another_default_device():
    layer, x = GRU(F, H), pack_padded_sequence(torch.randn(T, B, F), [5, 3, 3, 2])
    expected = layer(x)[1]
    with torch.device("meta"):
        assert torch.equal(layer(x)[1], expected)


def test_texts():
    for kind in (LayerNormLSTM, ELSTMBN):
        assert "bias=False" in kind(F, H, bias=False).extra_repr()
        assert "bias" not in kind(F, H).extra_repr()
    for layer in (ELSTMBN(F, H).eval(), LSTM(F, H, state_noise=0.1)):
        with pytest.raises(ValueError, match=r"unbatched input must be 2-D.* got \(1, 1, 4\)"):
            layer(torch.randn(T, F), (torch.zeros(1, 1, H),) * 2)


def test_eps_and_momentum_of_a_layer_are_those_of_its_norms():
    layer = ELSTMBN(F, H, 2, max_steps=T, bidirectional=True, dropout=0.1)
    layer.eps, layer.momentum = 0.5, None
    copied = pickle.loads(pickle.dumps(layer))
    for each in (layer, copied):
        assert (each.eps, each.momentum) == (0.5, None)
        assert {(n.eps, n.momentum) for _, n in statistics_norms(each)} == {(0.5, None)}
    layer.eps = None
    assert [layer.get_submodule(f"norm_{name}_l0").eps for name in ("hh", "c")] == [0.1, 9.0]
    for name in ("eps", "momentum"):
        with pytest.raises(ValueError, match=f"{name} must be .*got -1"):
            setattr(layer, name, -1)
