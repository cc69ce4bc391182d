"""Initial weights, gate biases and gammas, the same for LSTM and its normalised kin."""

import math

import pytest
import torch

from elstm.nn import BNLSTM, ELSTMBN, LSTM, LayerNormLSTM
from elstm.nn.init import init_gate_bias

F, H = 6, 200
DEEP = {"num_layers": 2, "bidirectional": True}
LAYERS = [LSTM, BNLSTM, ELSTMBN, LayerNormLSTM]
SUFFIXES = ["l0", "l0_reverse", "l1", "l1_reverse"]


def gate_biases(layer, suffix="l0"):
    """b_i, b_f, b_g, b_o: of the plain LSTM the sum of torch's two biases."""
    if isinstance(layer, LSTM):
        bias = getattr(layer, f"bias_ih_{suffix}") + getattr(layer, f"bias_hh_{suffix}")
    else:
        bias = getattr(layer, f"bias_{suffix}")
    return bias.detach().view(4, -1)


@pytest.mark.parametrize("layer_class", LAYERS)
def test_constant_gate_biases(layer_class):
    i, f, g, o = gate_biases(layer_class(F, H))
    assert (f == 1).all()
    assert not torch.cat((i, g, o)).any()
    layer = layer_class(F, H, forget_bias=3, input_bias=-2.0, **DEEP)
    for suffix in SUFFIXES:
        i, f, g, o = gate_biases(layer, suffix)
        assert (f == 3).all()
        assert (i == -2).all()
        assert not torch.cat((g, o)).any()
    layer_class(F, H, bias=False, forget_bias=3)


@pytest.mark.parametrize("layer_class", LAYERS)
@pytest.mark.parametrize("steps", [784, 28])
def test_chrono_biases_spread_over_the_sequence(layer_class, steps):
    layer = layer_class(F, H, forget_bias="chrono", input_bias="chrono", max_steps=steps, **DEEP)
    for suffix in SUFFIXES:
        i, f, g, o = gate_biases(layer, suffix)
        assert torch.equal(i, -f)
        assert not torch.cat((g, o)).any()
        # exp(b_f) ~ U(1, T - 1): its mean T / 2, its standard deviation (T - 2) / sqrt(12)
        memory = f.double().exp()
        assert memory.min() >= 1
        assert memory.max() <= steps - 1 + 1e-3
        deviation = (steps - 2) / math.sqrt(12)
        assert abs(memory.mean() - steps / 2) < 4 * deviation / math.sqrt(H)
        assert abs(memory.std() / deviation - 1) < 0.2
    first, second = (gate_biases(layer, suffix)[1] for suffix in ("l0", "l1"))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("steps", [1, 2])
def test_chrono_biases_of_the_shortest_sequences_are_zero(steps):
    bias = torch.full((8,), 7.0)
    init_gate_bias(bias, "chrono", "chrono", steps)
    assert not bias.any()


def test_chrono_for_one_gate_alone():
    i, f, _, _ = gate_biases(ELSTMBN(F, H, forget_bias="chrono", input_bias=0.5, max_steps=50))
    assert (i == 0.5).all()
    assert f.max() > 1
    i, f, _, _ = gate_biases(ELSTMBN(F, H, forget_bias=0.5, input_bias="chrono", max_steps=50))
    assert (f == 0.5).all()
    assert i.min() < -1
    assert i.max() <= 0


@pytest.mark.parametrize("layer_class", LAYERS)
@pytest.mark.parametrize("recurrent_init", ["orthogonal", "identity"])
def test_recurrent_weights(layer_class, recurrent_init):
    layer = layer_class(F, H, recurrent_init=recurrent_init, dtype=torch.float64, **DEEP)
    eye = torch.eye(H, dtype=torch.float64)
    for suffix in SUFFIXES:
        gates = getattr(layer, f"weight_hh_{suffix}").detach().chunk(4)
        for gate in gates:
            torch.testing.assert_close(gate @ gate.T, eye)
        is_identity = [torch.equal(gate, eye) for gate in gates]
        assert is_identity == [False, False, recurrent_init == "identity", False]
        assert not torch.allclose(gates[0], gates[1])


@pytest.mark.parametrize("layer_class", LAYERS)
@pytest.mark.parametrize("features", [1, 28])
def test_input_of_unit_variance_is_projected_to_unit_variance(layer_class, features):
    weight = layer_class(features, H).weight_ih_l0.detach()
    assert weight.square().sum(1).mean().item() == pytest.approx(1, abs=0.25)
    assert weight.mean().abs() < 0.15


def test_gammas():
    layer = ELSTMBN(F, H, cell_norm="terms", gamma_ih=0.1, gamma_hh=0.2, gamma_c=0.3, **DEEP)
    for suffix in SUFFIXES:
        gammas = {"norm_ih": 0.1, "norm_hh": 0.2, "norm_c": 0.3, "norm_c2": 0.3}
        for name, gamma in gammas.items():
            norm = getattr(layer, f"{name}_{suffix}")
            torch.testing.assert_close(norm.weight.detach(), torch.full_like(norm.weight, gamma))
            assert not (norm.bias is not None and norm.bias.any())


@pytest.mark.parametrize("layer_class", LAYERS)
def test_reset_parameters_draws_all_anew(layer_class):
    layer = layer_class(F, 4, learn_initial_state=True, **DEEP)
    torch.manual_seed(5)
    layer.reset_parameters()
    first = {name: value.clone() for name, value in layer.state_dict().items()}
    with torch.no_grad():
        for value in layer.state_dict().values():
            value.fill_(9)
    torch.manual_seed(5)
    layer.reset_parameters()
    for name, value in layer.state_dict().items():
        assert torch.equal(value, first[name]), name
