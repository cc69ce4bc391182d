"""GRU is torch.nn.GRU: the same weights, names, results and gradients, by either backend."""

import copy
import inspect
import math

import pytest
import torch
from numpy_lstm import assert_close, packed, randomize, sequences
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from elstm.nn import GRU, LSTM, hidden_gradient_norms

T, B, F, H = 5, 4, 3, 4
LENGTHS = [2, 5, 1, 3]
DEEP = {"num_layers": 2, "bidirectional": True}
CASES = {
    "one layer": {},
    "two layers, both directions": DEEP,
    "no bias": {"bias": False, "num_layers": 2},
    "batch_first": {"batch_first": True, **DEEP},
}
BACKENDS = ["auto", "reference"]


def pair(backend, **options):
    theirs = randomize(nn.GRU(F, H, dtype=torch.float64, **options))
    ours = GRU(F, H, dtype=torch.float64, backend=backend, **options)
    ours.load_state_dict(theirs.state_dict())  # strict: the names are the same
    return theirs, ours


def initial_state(layer):
    return sequences(layer.num_layers * (2 if layer.bidirectional else 1), B, H, seed=1)


def assert_same_results_and_gradients(theirs, ours, x, lengths, state):
    results = []
    for layer in (theirs, ours):
        given = x.clone().requires_grad_()
        hx = None if state is None else state.clone().requires_grad_()
        output, h_n = layer(given if lengths is None else packed(given, lengths), hx)
        if isinstance(output, PackedSequence):
            output = output.data
        (output.cos().sum() + (2 * h_n).cos().sum()).backward()
        gradients = [given.grad, *(p.grad for p in layer.parameters())]
        results.append([output, h_n, *gradients, *([] if hx is None else [hx.grad])])
        layer.zero_grad()
    for expected, actual in zip(*results, strict=True):
        assert_close(actual, expected.detach().numpy())


@pytest.mark.parametrize("given", [False, True], ids=["zero state", "given state"])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["padded", "packed"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_matches_torch(backend, case, lengths, given):
    theirs, ours = pair(backend, **CASES[case])
    state = initial_state(theirs) if given else None
    x = sequences(T, B, F)
    if lengths is None and theirs.batch_first:
        x = x.transpose(0, 1)
    assert_same_results_and_gradients(theirs, ours, x, lengths, state)
    assert ours.last_backend == ("torch" if backend == "auto" else "reference")
    one = None if state is None else state[:, 0]
    assert_same_results_and_gradients(theirs, ours, sequences(T, F), None, one)


def test_is_torch_s_module_with_its_arguments():
    layer = GRU(F, H, 2, False, True, 0.1, True, "cpu", torch.float64)
    assert isinstance(layer, nn.GRU)
    assert (layer.num_layers, layer.bias, layer.batch_first) == (2, False, True)
    assert layer.weight_ih_l1_reverse.dtype == torch.float64
    keywords = {"max_steps", "update_bias", "recurrent_init", "state_noise"}
    keywords |= {"learn_initial_state", "backend"}
    parameters = inspect.signature(GRU).parameters.values()
    assert {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} == keywords


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_learned_initial_state_and_noise(backend):
    theirs, ours = pair(backend, **DEEP)
    learned = GRU(F, H, dtype=torch.float64, backend=backend, learn_initial_state=True, **DEEP)
    assert not learned.h_0.any()
    randomize(learned).load_state_dict(theirs.state_dict(), strict=False)
    x, state = sequences(T, B, F), initial_state(theirs)
    h_0 = learned.h_0.expand(-1, B, -1)
    for expected, actual in zip(theirs(x, h_0), learned(x), strict=True):
        assert_close(actual, expected.detach().numpy())
    assert_close(learned(x[:, 0])[1], theirs(x, h_0)[1][:, 0].detach().numpy())
    assert_close(learned(x, state)[0], theirs(x, state)[0].detach().numpy())  # given comes first
    learned(x)[0].sum().backward()
    assert learned.h_0.grad.all()

    ours.state_noise = 0.5
    torch.manual_seed(7)
    noise = 0.5 * torch.randn_like(state)
    torch.manual_seed(7)
    assert_close(ours(x, state)[0], theirs(x, state + noise)[0].detach().numpy())
    assert_close(ours.eval()(x)[0], theirs(x)[0].detach().numpy())


# --- initial values


def test_initial_weights():
    layer = GRU(6, 200, recurrent_init="identity", dtype=torch.float64, **DEEP)
    eye = torch.eye(200, dtype=torch.float64)
    for suffix in ("l0", "l0_reverse", "l1", "l1_reverse"):
        gates = getattr(layer, f"weight_hh_{suffix}").detach().chunk(3)
        assert [torch.equal(gate, eye) for gate in gates] == [False, False, True]
        for gate in gates:
            torch.testing.assert_close(gate @ gate.T, eye)
        weight = getattr(layer, f"weight_ih_{suffix}").detach()
        assert weight.square().sum(1).mean().item() == pytest.approx(1, abs=0.25)
        r, z, n = getattr(layer, f"bias_ih_{suffix}").detach().chunk(3)
        assert (z == 1).all()
        assert not torch.cat((r, n, getattr(layer, f"bias_hh_{suffix}").detach())).any()
    assert (GRU(F, H, update_bias=-2).bias_ih_l0[H : 2 * H] == -2).all()


def test_chrono_biases_spread_the_memory_over_the_sequence():
    """Checks that z, without input or state, retains a state for 1 / (1 - z) steps, 2 to T."""
    steps, units = 784, 400
    layer = GRU(F, units, update_bias="chrono", max_steps=steps, dtype=torch.float64)
    r, z, n = layer.bias_ih_l0.detach().chunk(3)
    assert not torch.cat((r, n)).any()
    memory = 1 / (1 - z.sigmoid())
    assert memory.min() >= 2 - 1e-9
    assert memory.max() <= steps + 1e-3
    deviation = (steps - 2) / math.sqrt(12)
    assert abs(memory.mean() - (steps + 2) / 2) < 4 * deviation / math.sqrt(units)
    assert abs(memory.std() / deviation - 1) < 0.2


# --- copies, precision, gradients over time


@pytest.mark.parametrize("backend", BACKENDS)
def test_copies_and_reduced_precision(backend):
    layer = randomize(GRU(F, H, backend=backend, **DEEP))
    x = sequences(T, B, F, dtype=torch.float32)
    exact, _ = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x)[0], exact)
    half = copy.deepcopy(layer).bfloat16()
    output, h_n = half(x.bfloat16())
    assert {output.dtype, h_n.dtype} == {torch.bfloat16}
    torch.testing.assert_close(output.float(), exact, rtol=0.05, atol=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = layer(x)
    torch.testing.assert_close(output.float(), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("lengths", [None, [5, 5, 5, 5], [3, 5, 3, 5]], ids=str)
def test_hidden_gradient_norms(lengths):
    """Against torch's GRU called step by step, its states kept."""
    theirs, ours = pair("auto")
    x, weights = sequences(T, B, F), sequences(B, H, seed=3)
    ends = torch.tensor(lengths or [T] * B)
    h, states = torch.zeros(1, B, H, dtype=torch.float64), []
    for t in range(T):
        new = theirs(x[t : t + 1], h)[1]
        h = torch.where((ends > t)[:, None], new, h)
        states.append(h)
    loss = (weights * h[0]).sum()
    gradients = torch.autograd.grad(loss, states)
    expected = [g[0, ends > t].norm() for t, g in enumerate(gradients)]
    input = x if lengths is None else packed(x, lengths)
    norms = hidden_gradient_norms(ours, input, lambda _, h_n: (weights * h_n[0]).sum())
    assert_close(norms, torch.stack(expected).numpy())
    assert ours.last_backend is None


# --- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 0}, "hidden_size .*at least 1, got 0"),
        ({"dropout": -0.1}, r"dropout .*\[0, 1\], got -0.1"),
        ({"backend": "triton"}, "backend must be auto or reference .*got 'triton'"),
        ({"update_bias": "crono"}, "update_bias .*\"chrono\", got 'crono'"),
        ({"recurrent_init": "x"}, "recurrent_init .*orthogonal, identity"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_one_line_that_names_it(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        GRU(**{"input_size": F, "hidden_size": H} | options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_wrong_input_is_one_line(backend):
    layer = GRU(F, H, backend=backend)
    with pytest.raises(ValueError, match=r"3 features .*got 4"):
        layer(torch.zeros(T, B, F + 1))
    with pytest.raises(ValueError, match=r"h_0 must have shape \(1, 4, 4\).*got \(1, 4, 5\)"):
        layer(torch.zeros(T, B, F), torch.zeros(1, B, H + 1))


@pytest.mark.parametrize("kind", [GRU, LSTM])
@pytest.mark.parametrize("lengths", [[4, 7, 2, 7], [3, 3, 3]])
def test_packed_batches_on_a_cpu_are_those_of_torch(kind: type, lengths: list[int]) -> None:
    """They take other code than torch's, which takes up to four times as long for them."""
    torch.manual_seed(0)
    sizes = {"num_layers": 2, "bidirectional": True}
    layer = kind(3, 5, **sizes)
    torchs = kind._torch_class(3, 5, **sizes)
    torchs.load_state_dict(layer.state_dict())
    found = []
    for module in (layer, torchs):
        x = torch.randn(7, len(lengths), 3, generator=torch.Generator().manual_seed(1))
        x.requires_grad_()
        batch = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
        output, state = module(batch)
        parts = state if isinstance(state, tuple) else (state,)
        sum(part.sin().sum() for part in (output.data, *parts)).backward()
        gradients = [x.grad, *(parameter.grad for parameter in module.parameters())]
        found.append([output.data, *parts, *gradients])
        module.eval()
        with torch.no_grad():
            found[-1].append(module(batch)[0].data)
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert layer.last_backend == ("torch" if kind is GRU else "cpu")


@pytest.mark.parametrize("options", [{}, DEEP], ids=["one layer", "deep"])
def test_nan_in_one_sequence_stays_out_of_the_others(options: dict[str, object]) -> None:
    layer = GRU(F, H, **options)
    x = torch.randn(T, B, F)
    x[0, 1] = torch.nan  # the longest sequence
    x.requires_grad_()
    output, _ = layer(packed(x, LENGTHS))
    others = torch.nn.utils.rnn.pad_packed_sequence(output)[0][:, [0, 2, 3]]
    gradient = torch.autograd.grad(others.sum(), x)[0][:, [0, 2, 3]]
    assert bool(gradient.isfinite().all())
