"""LayerNormLSTM against NumPy in float64, from the equations alone, one sequence at a time."""

import copy
import inspect

import numpy as np
import pytest
import torch
from numpy_lstm import assert_close, packed, randomize, sequences, sigmoid, to_numpy
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from elstm.nn import LSTM, LayerNormLSTM, hidden_gradient_norms

T, B, F, H = 5, 4, 3, 4
LENGTHS = [2, 5, 1, 4]
DEEP = {"num_layers": 2, "bidirectional": True}


def make(**options):
    return randomize(LayerNormLSTM(F, H, **{"dtype": torch.float64} | options))


def initial_state(layer):
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    return sequences(rows, B, H, seed=1), sequences(rows, B, H, seed=2)


def one_sequence(layer, state, x, h_0, c_0):
    """x (T, F), h_0 and c_0 (L * D, H) to output (T, D * H), h_n and c_n."""

    def norm(name, v):
        mean, var = v.mean(), ((v - v.mean()) ** 2).mean()
        return (v - mean) / np.sqrt(var + eps) * state[f"{name}.weight"] + state[f"{name}.bias"]

    eps = layer.norm_c_l0.eps
    h_n, c_n = h_0.copy(), c_0.copy()
    row = 0
    for k in range(layer.num_layers):
        outputs = []
        for end in ("", "_reverse")[: 2 if layer.bidirectional else 1]:
            suffix, h, c, output = f"l{k}{end}", h_0[row], c_0[row], []
            w_x, w_h = state[f"weight_ih_{suffix}"], state[f"weight_hh_{suffix}"]
            for x_t in x[::-1] if end else x:
                z = norm(f"norm_hh_{suffix}", w_h @ h) + norm(f"norm_ih_{suffix}", w_x @ x_t)
                i, f, g, o = np.split(z + state.get(f"bias_{suffix}", 0.0), 4)
                c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                h = sigmoid(o) * np.tanh(norm(f"norm_c_{suffix}", c))
                output.append(h)
            outputs.append(np.array(output[::-1] if end else output))
            h_n[row], c_n[row] = h, c
            row += 1
        x = np.concatenate(outputs, axis=1)
    return x, h_n, c_n


def check(layer, x, state=None, lengths=None):
    """On x (T, B, F): output, h_n and c_n against NumPy, sequence by sequence."""
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    values = to_numpy(layer)
    zero = np.zeros((rows, H))
    input = x.transpose(0, 1) if layer.batch_first else x
    if lengths is not None:
        input = pack_padded_sequence(
            input, torch.tensor(lengths), layer.batch_first, enforce_sorted=False
        )
    output, (h_n, c_n) = layer(input, state)
    if isinstance(output, PackedSequence):
        output, _ = pad_packed_sequence(output, layer.batch_first, total_length=len(x))
    output = output.transpose(0, 1) if layer.batch_first else output
    for b, length in enumerate(lengths or [len(x)] * x.shape[1]):
        h_0, c_0 = (zero, zero) if state is None else (s[:, b].numpy() for s in state)
        if state is None and layer.learn_initial_state:
            h_0, c_0 = values["h_0"][:, 0], values["c_0"][:, 0]
        expected = one_sequence(layer, values, x[:length, b].numpy(), h_0, c_0)
        assert_close(output[:length, b], expected[0])
        assert not output[length:, b].any()
        assert_close(h_n[:, b], expected[1])
        assert_close(c_n[:, b], expected[2])


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["padded", "packed"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        DEEP,
        {"bias": False},
        {"eps": 0.1},
        {"batch_first": True, "bidirectional": True},
        {"learn_initial_state": True, **DEEP},
        {"backend": "reference", **DEEP},
    ],
    ids=str,
)
def test_follows_the_equations(options, lengths):
    layer = make(**options)
    check(layer, sequences(T, B, F), initial_state(layer), lengths)
    check(layer.eval(), sequences(T, B, F), None, lengths)  # the same in evaluation
    assert layer.last_backend == options.get("backend", "cpu")


@pytest.mark.parametrize(("inputs", "units"), [(1, 33), (40, 17)])
def test_c_code_in_float32(inputs, units):
    """Uses sizes that fill no vector, and numbers with a mean that the norms have to subtract."""
    layer = randomize(LayerNormLSTM(inputs, units, backend="cpu"))
    x = 3 + sequences(T, B, inputs, dtype=torch.float32)
    output, (h_n, c_n) = layer(x)
    zero = np.zeros((1, units))
    for b in range(B):
        expected = one_sequence(layer, to_numpy(layer), x[:, b].double().numpy(), zero, zero)
        for found, value in zip((output, h_n, c_n), expected, strict=True):
            np.testing.assert_allclose(found[:, b].detach(), value, rtol=1e-4, atol=2e-5)


def test_one_sequence_without_a_batch_dimension():
    layer, x = make(**DEEP), sequences(T, F)
    state = tuple(part[:, 0] for part in initial_state(layer))
    output, (h_n, c_n) = layer(x, state)
    expected = one_sequence(layer, to_numpy(layer), x.numpy(), *(s.numpy() for s in state))
    for actual, value in zip((output, h_n, c_n), expected, strict=True):
        assert_close(actual, value)


def test_state_noise_and_dropout():
    layer, x = make(state_noise=0.5), sequences(T, B, F)
    h_0, c_0 = initial_state(layer)
    torch.manual_seed(7)
    noise = 0.5 * torch.randn_like(h_0)
    torch.manual_seed(7)
    noisy = layer(x, (h_0, c_0))[0]
    check(layer.eval(), x)
    assert_close(noisy, layer(x, (h_0 + noise, c_0))[0].detach().numpy())
    dropped = make(num_layers=2, dropout=0.5)
    assert not torch.equal(dropped(x)[0], dropped(x)[0])
    check(dropped.eval(), x)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("lengths", [None, [1, 2, 3]], ids=["padded", "packed"])
def test_gradients(lengths, backend):
    """Every entry: to the input, the initial state and all parameters."""
    options = {"dtype": torch.float64, "backend": backend}
    layer = randomize(LayerNormLSTM(1, 2, **options))
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def run(x, h_0, c_0, *values):
        input = x if lengths is None else packed(x, lengths)
        parts = dict(zip(names, values, strict=True))
        output, (h_n, c_n) = functional_call(layer, parts, (input, (h_0, c_0)))
        return output if lengths is None else output.data, h_n, c_n

    state = (sequences(1, 3, 2, seed=seed) for seed in (1, 2))
    inputs = [
        v.detach().clone().requires_grad_() for v in (sequences(3, 3, 1), *state, *parameters)
    ]
    assert torch.autograd.gradcheck(run, inputs, check_undefined_grad=False)


def test_names_shapes_and_initial_values():
    layer = LayerNormLSTM(F, H, eps=0.1, gamma_ih=0.2, gamma_hh=0.3, gamma_c=0.4, **DEEP)
    expected = {}
    for k, features in enumerate((F, 2 * H)):
        for suffix in (f"l{k}", f"l{k}_reverse"):
            expected |= {f"weight_ih_{suffix}": (4 * H, features), f"bias_{suffix}": (4 * H,)}
            expected[f"weight_hh_{suffix}"] = (4 * H, H)
            for name, gamma in {"ih": 0.2, "hh": 0.3, "c": 0.4}.items():
                norm = getattr(layer, f"norm_{name}_{suffix}")
                assert norm.eps == 0.1
                width = H if name == "c" else 4 * H
                for part, value in (("weight", gamma), ("bias", 0.0)):
                    expected[f"norm_{name}_{suffix}.{part}"] = (width,)
                    values = getattr(norm, part).detach()
                    torch.testing.assert_close(values, torch.full((width,), value))
    assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == expected


def test_the_signature_is_that_of_lstm_and_of_the_norms():
    ours, plain = (inspect.signature(c).parameters for c in (LayerNormLSTM, LSTM))
    assert ours.keys() - plain.keys() == {"eps", "gamma_ih", "gamma_hh", "gamma_c"}
    assert plain.keys() - ours.keys() == {"recompute"}  # it has one way to run, and no fast one
    assert list(ours)[:10] == list(plain)[:10]
    assert all(ours[name].default == plain[name].default for name in plain.keys() & ours.keys())


# --- precision, compilation, gradients over time


def test_statistics_are_float32_in_half_precision():
    layer = randomize(LayerNormLSTM(F, H))
    x = sequences(T, B, F, dtype=torch.float32)
    exact, _ = layer(x)
    half = copy.deepcopy(layer).bfloat16()
    output, (h_n, c_n) = half(x.bfloat16())
    assert {output.dtype, h_n.dtype, c_n.dtype} == {torch.bfloat16}
    torch.testing.assert_close(output.float(), exact, rtol=0.1, atol=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = layer(x)
    torch.testing.assert_close(output.float(), exact, rtol=0.1, atol=0.1)
    values = (100 + sequences(2, 4 * H)).bfloat16()
    normalised = half.norm_hh_l0(values)
    assert normalised.dtype == torch.float32
    expected = layer.bfloat16().float().norm_hh_l0(values.float())
    torch.testing.assert_close(normalised, expected)


def test_compiled_in_one_graph():
    torch.compiler.reset()
    layer = make(dtype=torch.float32, backend="reference")
    compiled = torch.compile(copy.deepcopy(layer), backend="aot_eager", fullgraph=True)
    x = sequences(T, B, F, dtype=torch.float32)
    for module in (layer, compiled):
        module(x)[0].square().sum().backward()
    torch.testing.assert_close(compiled(x)[0], layer(x)[0])
    for a, b in zip(layer.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    torch.compiler.reset()


def test_hidden_gradient_norms():
    """Against the layer called step by step, its states kept."""
    layer, x, weights = make(), sequences(T, B, F), sequences(B, H, seed=3)
    state = tuple(torch.zeros(1, B, H, dtype=torch.float64) for _ in range(2))
    hidden = []
    for t in range(T):
        _, state = layer(x[t : t + 1], state)
        hidden.append(state[0])
    expected = [g.norm() for g in torch.autograd.grad((weights * state[0][0]).sum(), hidden)]
    norms = hidden_gradient_norms(layer, x, lambda _, state: (weights * state[0][0]).sum())
    assert_close(norms, torch.stack(expected).numpy())


# --- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proj_size": 2}, r"proj_size must be 0.*got 2"),
        ({"input_size": 0}, r"input_size .*at least 1, got 0"),
        ({"eps": 0}, r"eps .*> 0, got 0"),
        ({"gamma_c": float("nan")}, r"gamma_c .*finite.*got nan"),
        ({"backend": "c"}, r"backend must be one of auto, cpu, triton, reference; got 'c'"),
        ({"forget_bias": "x"}, r"forget_bias .*got 'x'"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_one_line_that_names_it(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        LayerNormLSTM(**{"input_size": F, "hidden_size": H} | options)
    assert "\n" not in str(caught.value)


def test_a_wrong_input_is_one_line():
    with pytest.raises(ValueError, match=r"3 features .*got 4"):
        make()(sequences(T, B, F + 1))
    state = torch.zeros(1, B, H), torch.zeros(1, B, H + 1)
    with pytest.raises(ValueError, match=r"c_0 must have shape \(1, 4, 4\).*got \(1, 4, 5\)"):
        make()(sequences(T, B, F), state)
