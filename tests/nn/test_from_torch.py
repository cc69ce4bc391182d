"""Layers built from torch's, and the warning that they share."""

import copy

import pytest
import torch
from numpy_lstm import packed, sequences
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from elstm.nn import BNLSTM, ELSTMBN, GRU, LSTM, LayerNormLSTM

F, H = 3, 4
SHAPES = [
    {},
    {"bias": False, "batch_first": True},
    {"num_layers": 2, "bidirectional": True, "dropout": 0.3, "dtype": torch.float64},
]


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("options", [*SHAPES, {"proj_size": 2}], ids=str)
def test_an_lstm_computes_what_torch_s_does(options):
    theirs = nn.LSTM(F, H, **options).eval()
    ours = LSTM.from_torch(theirs)
    x = sequences(5, 6, F, dtype=options.get("dtype", torch.float32))
    assert not ours.training
    for a, b in zip([ours(x)[0], *ours(x)[1]], [theirs(x)[0], *theirs(x)[1]], strict=True):
        assert torch.equal(a, b)
    if "proj_size" not in options:
        by_equations = LSTM.from_torch(theirs, backend="reference")
        torch.testing.assert_close(by_equations(x)[0], theirs(x)[0])
    with torch.no_grad():
        ours.weight_ih_l0.zero_()
    assert theirs.weight_ih_l0.any()  # the weights are copies


def test_a_gru_computes_what_torch_s_does():
    theirs, x = nn.GRU(F, H, 2, bidirectional=True), sequences(5, 6, F, dtype=torch.float32)
    input = packed(x, [1, 5, 2, 3, 5, 4])
    ours = GRU.from_torch(theirs, backend="reference")
    torch.testing.assert_close(ours(input)[0].data, theirs(input)[0].data)


@pytest.mark.parametrize("layer_class", [BNLSTM, ELSTMBN, LayerNormLSTM])
@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_layers_with_norms_take_the_weights_and_the_sum_of_the_biases(layer_class, options):
    theirs = nn.LSTM(F, H, **options)
    ours = layer_class.from_torch(theirs, max_steps=7, learn_initial_state=True)
    assert (ours.training, ours.max_steps) == (True, 7)
    assert not ours.h_0.any()
    for name in ("num_layers", "batch_first", "bidirectional", "dropout", "bias"):
        assert getattr(ours, name) == getattr(theirs, name)
    for end in ours._suffixes():
        for name in ("weight_ih", "weight_hh"):
            assert torch.equal(getattr(ours, f"{name}_{end}"), getattr(theirs, f"{name}_{end}"))
        if theirs.bias:
            total = getattr(theirs, f"bias_ih_{end}") + getattr(theirs, f"bias_hh_{end}")
            assert torch.equal(getattr(ours, f"bias_{end}"), total)
    assert ours.norm_c_l0.weight.dtype == theirs.weight_ih_l0.dtype


def test_what_cannot_be_taken_over_is_one_line():
    with pytest.raises(TypeError, match=r"LSTM.from_torch takes a torch.nn.LSTM, got a GRU"):
        LSTM.from_torch(nn.GRU(F, H))
    with pytest.raises(TypeError, match=r"hidden_size is taken from the given module"):
        BNLSTM.from_torch(nn.LSTM(F, H), hidden_size=5)
    with pytest.raises(ValueError, match=r"proj_size must be 0"):
        ELSTMBN.from_torch(nn.LSTM(F, H, proj_size=2))


@pytest.mark.parametrize("layer_class", [LSTM, GRU, BNLSTM, ELSTMBN, LayerNormLSTM])
def test_dropout_with_one_layer_is_warned_of_once(layer_class):
    with pytest.warns(UserWarning, match="dropout") as caught:
        layer_class(F, H, dropout=0.5)
    assert len(caught) == 1
    source = (nn.GRU if layer_class is GRU else nn.LSTM)(F, H)
    source.dropout = 0.5
    layer_class.from_torch(source)  # without a second warning


def test_frozen_weights_stay_frozen():
    lstm = nn.LSTM(2, 3)
    for name in ("weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        getattr(lstm, name).requires_grad_(False)
    layer = ELSTMBN.from_torch(lstm)
    frozen = {name for name, weight in layer.named_parameters() if not weight.requires_grad}
    assert frozen == {"weight_hh_l0", "bias_l0"}


def test_weights_that_are_computed_from_others_are_trained():
    lstm = nn.LSTM(2, 3)
    parametrizations.weight_norm(lstm, "weight_hh_l0")
    layer = ELSTMBN.from_torch(lstm)
    assert all(weight.requires_grad for weight in layer.parameters())
    for part in lstm.parametrizations.weight_hh_l0.parameters():
        part.requires_grad_(False)
    assert not ELSTMBN.from_torch(lstm).weight_hh_l0.requires_grad
    lstm = nn.LSTM(2, 3)
    value = lstm.weight_hh_l0.detach()
    del lstm.weight_hh_l0
    lstm.weight_hh_l0 = value  # as hooks leave it that compute a weight before each call
    assert ELSTMBN.from_torch(lstm).weight_hh_l0.requires_grad


HOOKS = {
    "weight_norm": lambda module: weight_norm(module, "weight_hh_l0"),
    "spectral_norm": lambda module: spectral_norm(module, "weight_hh_l0"),
    "prune": lambda module: prune.l1_unstructured(module, "weight_hh_l0", 0.5),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("hook", HOOKS)
def test_weights_that_a_hook_computes_are_those_of_the_next_call(hook):
    lstm = nn.LSTM(2, 3)
    HOOKS[hook](lstm)
    with torch.no_grad():
        for parameter in lstm.parameters():  # as an optimizer or load_state_dict changes them
            parameter.add_(0.5)
            parameter.requires_grad_(False)
    state = copy.deepcopy(lstm.state_dict())
    layer, x = LSTM.from_torch(lstm), torch.randn(4, 2, 2)
    assert layer.training
    torch.testing.assert_close(lstm.state_dict(), state)
    torch.testing.assert_close(layer(x)[0], lstm.eval()(x)[0])
    assert not any(parameter.requires_grad for parameter in layer.parameters())


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("hook", HOOKS)
def test_weights_that_a_hook_computes_are_not_reset_in_vain(hook):
    for layer in (LSTM(2, 3), ELSTMBN(2, 3)):
        HOOKS[hook](layer)
        with pytest.raises(RuntimeError, match="weight_hh_l0 cannot be initialised"):
            layer.reset_parameters()


@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_a_learned_state_is_taken(kind):
    source = kind(2, 3, learn_initial_state=True)
    nn.init.ones_(source.h_0)
    layer, x = kind.from_torch(source), torch.randn(4, 2, 2)
    assert torch.equal(layer(x)[0], source(x)[0])
    assert not kind.from_torch(source, learn_initial_state=False).learn_initial_state


@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_a_batch_that_would_be_mostly_padding_is_left_to_torch(kind, monkeypatch):
    layer = kind(2, 3)
    monkeypatch.setattr(layer, "_run", lambda *args: pytest.fail("it was padded"))
    batch = nn.utils.rnn.pack_sequence([torch.randn(n, 2) for n in (60, *[2] * 9)])
    reference = kind(2, 3, backend="reference")
    reference.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(batch)[0].data, reference(batch)[0].data)
    with pytest.raises(pytest.fail.Exception):
        layer(nn.utils.rnn.pack_sequence([torch.randn(n, 2) for n in (5, 3)]))


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x

    def right_inverse(self, x):
        return x / 2


@pytest.mark.parametrize("kind", [LSTM, ELSTMBN, LayerNormLSTM])
def test_all_that_is_computed_from_others_is_reset(kind):
    layer = kind(2, 3, **({"learn_initial_state": True} if kind is LSTM else {}))
    part, name = (layer, "h_0") if kind is LSTM else (layer.norm_ih_l0, "weight")
    before = getattr(part, name).detach().clone()
    parametrize.register_parametrization(part, name, Doubled())
    setattr(part, name, before + 7)
    layer.reset_parameters()
    assert torch.allclose(getattr(part, name), before)


def test_backward_hooks_of_a_norm_run():
    layer, calls = LayerNormLSTM(2, 3), []
    layer.norm_c_l0.register_full_backward_hook(lambda *args: calls.append(1))
    layer(torch.randn(5, 2, 2))[0].sum().backward()
    assert len(calls) == 5
