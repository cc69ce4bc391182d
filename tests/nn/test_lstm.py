"""LSTM is torch.nn.LSTM: the same weights, names, results and gradients, by either backend."""

import inspect

import pytest
import torch
from numpy_lstm import assert_close, lstm, packed, randomize, sequences
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from elstm.nn import LSTM

T, B, F, H = 5, 4, 3, 4
LENGTHS = [2, 5, 1, 3]
DEEP = {"num_layers": 2, "bidirectional": True}
CASES = {
    "one layer": {},
    "two layers, both directions": DEEP,
    "no bias": {"bias": False, "num_layers": 2},
    "batch_first": {"batch_first": True, **DEEP},
    "projection": {"proj_size": 2, **DEEP},
}


def pair(backend, **options):
    theirs = randomize(nn.LSTM(F, H, dtype=torch.float64, **options))
    ours = LSTM(F, H, dtype=torch.float64, backend=backend, **options)
    ours.load_state_dict(theirs.state_dict())  # strict: the names are the same
    nn.LSTM(F, H, dtype=torch.float64, **options).load_state_dict(ours.state_dict())
    return theirs, ours


def initial_state(theirs, size=B):
    rows = theirs.num_layers * (2 if theirs.bidirectional else 1)
    width = theirs.proj_size or H
    return sequences(rows, size, width, seed=1), sequences(rows, size, H, seed=2)


def flat(result):
    output, (h_n, c_n) = result
    if isinstance(output, PackedSequence):
        return [output.data, output.batch_sizes, output.sorted_indices, output.unsorted_indices,
                h_n, c_n]  # fmt: skip
    return [output, h_n, c_n]


def assert_same_results_and_gradients(theirs, ours, x, lengths, state):
    results = []
    for layer in (theirs, ours):
        given = x.clone().requires_grad_()
        hx = None if state is None else tuple(s.clone().requires_grad_() for s in state)
        input = given if lengths is None else packed(given, lengths)
        result = flat(layer(input, hx))
        loss = sum((r * (k + 1)).cos().sum() for k, r in enumerate(result) if r.is_floating_point())
        loss.backward()
        gradients = [given.grad, *(p.grad for p in layer.parameters())]
        results.append([*result, *gradients, *(s.grad for s in hx or ())])
        layer.zero_grad()
    for theirs_value, ours_value in zip(*results, strict=True):
        assert theirs_value.shape == ours_value.shape
        assert_close(ours_value, theirs_value.detach().numpy())


@pytest.mark.parametrize("given", [False, True], ids=["zero state", "given state"])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["padded", "packed"])
@pytest.mark.parametrize(
    ("backend", "case"),
    [("auto", case) for case in CASES]
    + [("reference", case) for case in CASES if case != "projection"],
)
def test_matches_torch(backend, case, lengths, given):
    theirs, ours = pair(backend, **CASES[case])
    state = initial_state(theirs) if given else None
    x = sequences(T, B, F)
    if lengths is None and theirs.batch_first:
        x = x.transpose(0, 1)
    assert_same_results_and_gradients(theirs, ours, x, lengths, state)
    by_c = lengths is not None and case != "projection"  # packed sequences on a CPU
    auto = "cpu" if by_c else "torch"
    assert ours.last_backend == (auto if backend == "auto" else "reference")


@pytest.mark.parametrize("given", [False, True], ids=["zero state", "given state"])
@pytest.mark.parametrize("case", ["two layers, both directions", "batch_first"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_matches_torch_on_one_sequence(backend, case, given):
    theirs, ours = pair(backend, **CASES[case])
    state = tuple(s[:, 0] for s in initial_state(theirs)) if given else None
    assert_same_results_and_gradients(theirs, ours, sequences(T, F), None, state)
    # A training batch of one is no error where nothing is normalised.
    x = sequences(1, T, F) if theirs.batch_first else sequences(T, 1, F)
    assert_same_results_and_gradients(theirs, ours, x, None, None)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_follows_the_equations(backend):
    layer = randomize(LSTM(F, H, dtype=torch.float64, backend=backend, **DEEP))
    x, state = sequences(T, B, F), initial_state(layer)
    expected = lstm(layer, x.numpy(), *(s.numpy() for s in state), lengths=LENGTHS)
    output, (h_n, c_n) = layer(packed(x, LENGTHS), state)
    assert_close(nn.utils.rnn.pad_packed_sequence(output)[0], expected.output)
    assert_close(h_n, expected.h_n)
    assert_close(c_n, expected.c_n)


def test_wrong_projections():
    for size in (-1, H):
        with pytest.raises(ValueError, match="proj_size"):
            LSTM(F, H, proj_size=size)
    with pytest.raises(ValueError, match="proj_size"):
        LSTM(F, H, proj_size=2, backend="reference")
    with pytest.raises(ValueError, match=r"proj_size.*recompute=True"):
        LSTM(F, H, proj_size=2, recompute=True)


def test_is_torch_s_module():
    layer = LSTM(F, H)
    assert isinstance(layer, nn.LSTM)
    layer.flatten_parameters()
    assert len(layer.all_weights[0]) == 4
    theirs = list(inspect.signature(nn.RNNBase.__init__).parameters)[2:]  # without self and mode
    kinds = inspect.signature(LSTM).parameters.values()
    assert [p.name for p in kinds if p.kind is p.POSITIONAL_OR_KEYWORD] == theirs
    ours = {"max_steps", "forget_bias", "input_bias", "recurrent_init", "state_noise"}
    ours |= {"learn_initial_state", "backend", "recompute"}
    assert {p.name for p in kinds if p.kind is p.KEYWORD_ONLY} == ours


@pytest.mark.parametrize(("backend", "proj_size"), [("auto", 0), ("auto", 2), ("reference", 0)])
def test_learned_initial_state(backend, proj_size):
    options = {"proj_size": proj_size, **DEEP}
    theirs = randomize(nn.LSTM(F, H, dtype=torch.float64, **options))
    ours = LSTM(F, H, dtype=torch.float64, backend=backend, learn_initial_state=True, **options)
    assert not ours.h_0.any()
    assert not ours.c_0.any()
    randomize(ours).load_state_dict(theirs.state_dict(), strict=False)
    state = (ours.h_0.expand(-1, B, -1), ours.c_0.expand(-1, B, -1))
    x = sequences(T, B, F)
    for input in (x, packed(x, LENGTHS)):
        for expected, actual in zip(flat(theirs(input, state)), flat(ours(input)), strict=True):
            assert_close(actual, expected.detach().numpy())
    one = ours(x[:, 0])
    assert_close(one[0], theirs(x[:, :1], tuple(s[:, :1] for s in state))[0][:, 0].detach().numpy())
    # A state that is given comes first.
    given = initial_state(theirs)
    assert_close(ours(x, given)[0], theirs(x, given)[0].detach().numpy())
    one = tuple(s[:, 0] for s in given)
    assert_close(ours(x[:, 0], one)[0], theirs(x[:, 0], one)[0].detach().numpy())
    ours(x)[0].sum().backward()
    assert ours.h_0.grad.all()
    assert ours.c_0.grad.all()


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_state_noise(backend):
    theirs, ours = pair(backend)
    ours.state_noise = 0.5
    x, (h_0, c_0) = sequences(T, B, F), initial_state(theirs)
    torch.manual_seed(7)
    noise = 0.5 * torch.randn(1, B, H, dtype=torch.float64)
    torch.manual_seed(7)
    expected = theirs(x, (h_0 + noise, c_0))
    assert_close(ours(x, (h_0, c_0))[0], expected[0].detach().numpy())
    ours.eval()
    assert_close(ours(x)[0], theirs(x)[0].detach().numpy())


@pytest.mark.parametrize("state_noise", [0.0, 0.1])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_errors(backend, state_noise):
    layer = LSTM(F, H, backend=backend, state_noise=state_noise)
    for shape in ((T, B, F + 1), (T, F + 1)):
        with pytest.raises(ValueError, match=r"3 features .*got 4"):
            layer(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"3 features .*got 4"):
        layer(packed(sequences(T, B, F + 1, dtype=torch.float32), LENGTHS))
    with pytest.raises(ValueError, match=r"2-D or 3-D, got 4-D"):
        layer(torch.zeros(T, B, 1, F))
    state = torch.zeros(1, B, H + 1), torch.zeros(1, B, H)
    with pytest.raises(ValueError, match=r"h_0 must have shape \(1, 4, 4\)"):
        layer(torch.zeros(T, B, F), state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 0}, "hidden_size .*at least 1, got 0"),
        ({"dropout": -0.1}, r"dropout .*\[0, 1\], got -0.1"),
        ({"backend": "cudnn"}, "backend must be one of auto, .*reference; got 'cudnn'"),
        ({"forget_bias": None}, "forget_bias .*got None"),
        ({"state_noise": -1}, "state_noise .*got -1"),
        ({"recurrent_init": "x"}, "recurrent_init .*orthogonal, identity"),
        ({"max_steps": -1}, "max_steps .*got -1"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_one_line_that_names_it(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        LSTM(**{"input_size": F, "hidden_size": H} | options)
    assert "\n" not in str(caught.value)
