"""LayerNormLSTM by the C library against its reference."""

import copy

import pytest
import torch
from backend_calls import assert_as_exact_in_most
from numpy_lstm import randomize
from torch.nn.utils.rnn import pack_padded_sequence

from elstm.nn import LayerNormLSTM

SHAPES = [(1, 1, 1, 2), (5, 4, 3, 4), (7, 13, 5, 33), (3, 30, 1, 100), (4, 9, 40, 64)]
CHUNKS = {  # the C code takes several steps together: backward 512 rows, forward with a large W_x
    "backward": (13, 100, 3, 20),
    "forward": (3, 260, 600, 113),
}


def pair(inputs, units, dtype, **options):
    layer = randomize(LayerNormLSTM(inputs, units, dtype=dtype, backend="cpu", **options))
    reference = copy.deepcopy(layer)
    reference.backend = "reference"
    return layer, reference


def everything(layer, x, lengths=None, create_graph=False):
    """Results and gradients of a call, by name."""
    x = x.clone().requires_grad_()
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(x.dtype)

    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    state = [draw(rows, x.shape[1], layer.hidden_size).requires_grad_() for _ in range(2)]
    given = x
    if lengths is not None:
        given = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    output, (h_n, c_n) = layer(given, tuple(state))
    output = output if lengths is None else output.data
    results = {"output": output, "h_n": h_n, "c_n": c_n}
    loss = sum((part * draw(*part.shape)).sum() for part in results.values())
    leaves = {"x": x, "h_0": state[0], "c_0": state[1], **dict(layer.named_parameters())}
    gradients = torch.autograd.grad(loss, list(leaves.values()), create_graph=create_graph)
    return results | {f"d_{n}": g for n, g in zip(leaves, gradients, strict=True)}


def assert_same(found, expected, rtol, atol):
    for name, value in expected.items():
        scale = max(1.0, float(value.detach().abs().max()))
        torch.testing.assert_close(
            found[name], value, rtol=rtol, atol=atol * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(("packed", "threads"), [(False, 1), (True, 1), (True, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results_and_gradients(shape, dtype, packed, threads):
    steps, batch, inputs, units = shape
    torch.manual_seed(0)
    x = torch.randn(steps, batch, inputs, dtype=torch.float64).to(dtype)
    lengths = [1 + (3 * row) % steps for row in range(batch)] if packed else None
    layer, reference = pair(inputs, units, dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = everything(layer, x, lengths)
        with torch.no_grad():
            again = layer(x)[0]
    finally:
        torch.set_num_threads(before)
    expected = everything(reference, x, lengths)
    assert (layer.last_backend, reference.last_backend) == ("cpu", "reference")
    tolerance = 1e-11 if dtype == torch.float64 else 5e-5
    assert_same(found, expected, tolerance, tolerance)
    torch.testing.assert_close(again, reference(x)[0], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", CHUNKS.values(), ids=CHUNKS)
def test_several_chunks_of_steps(shape, monkeypatch):
    """The last of them is a short one, and the threads share rows out anew in each."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    steps, batch, inputs, units = shape
    torch.manual_seed(0)
    x = torch.randn(steps, batch, inputs) / inputs**0.5
    layer, reference = pair(inputs, units, torch.float32)
    for lengths in (None, [1 + (5 * row) % steps for row in range(batch)]):
        found, expected = everything(layer, x, lengths), everything(reference, x, lengths)
        assert_same(found, expected, 1e-4, 1e-4)


@pytest.fixture
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("shape", SHAPES[2:4], ids=str)
def test_float32_is_as_exact_as_torch(shape):
    """Against the reference in float64, which tests/nn/test_layer_norm.py holds to NumPy's."""
    steps, batch, inputs, units = shape
    draws = []
    for seed in range(9):
        torch.manual_seed(seed)
        x = 3 + torch.randn(steps, batch, inputs)  # a mean that the norm has to take off
        layer, reference = pair(inputs, units, torch.float32)
        exact = everything(copy.deepcopy(reference).double(), x.double())
        found, plain = everything(layer, x), everything(reference, x)
        draws.append(
            tuple({n: p.detach().double() for n, p in d.items()} for d in (found, exact, plain))
        )
    assert_as_exact_in_most(draws)


@pytest.mark.parametrize(("inputs", "expected"), [(1, 5), (40, 9)])
def test_what_is_kept_for_the_backward_pass(inputs, expected):
    """Counts numbers of T * B * H beside the output, as the module documents it."""
    kept = []
    x = torch.randn(20, 50, inputs, requires_grad=True)
    layer = LayerNormLSTM(inputs, 64, backend="cpu")
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        output, _ = layer(x)
    known = {t.data_ptr() for t in (x, output, *layer.parameters())}
    numbers = sum(t.numel() for t in kept if t.data_ptr() not in known)
    assert numbers / output.numel() == pytest.approx(expected, abs=0.2)


def test_deep_without_bias():
    layer, reference = pair(3, 5, torch.float64, num_layers=2, bidirectional=True, bias=False)
    x = torch.randn(6, 4, 3, dtype=torch.float64)
    assert_same(everything(layer, x), everything(reference, x), 1e-11, 1e-11)


def test_extreme_numbers_and_nan():
    layer, reference = pair(3, 5, torch.float32)
    x = 1e4 * torch.randn(6, 4, 3)
    assert_same(everything(layer, x), everything(reference, x), 1e-4, 1e-4)
    x[2, 1] = torch.nan
    found, expected = layer(x)[0], reference(x)[0]
    assert torch.equal(found.isnan(), expected.isnan())  # of one sequence, from its step on
    assert found[2:, 1].isnan().all()


@pytest.mark.parametrize("lengths", [None, [1, 3, 2]], ids=["padded", "packed"])
def test_second_derivatives(lengths):
    layer, reference = pair(2, 3, torch.float64)
    x = torch.randn(3, 3, 2, dtype=torch.float64)
    found = []
    for module in (layer, reference):
        first = everything(module, x, lengths, create_graph=True)
        total = sum(part.square().sum() for name, part in first.items() if name.startswith("d_"))
        second = torch.autograd.grad(total, list(module.parameters()))
        found.append(dict(zip(dict(module.named_parameters()), second, strict=True)))
    assert layer.last_backend == "cpu"
    assert_same(*found, 1e-10, 1e-10)


def test_saved_tensors_that_a_hook_moved_or_damaged():
    layer, reference = pair(2, 3, torch.float64)
    x = torch.randn(3, 3, 2, dtype=torch.float64)
    expected = everything(reference, x)

    def moved(tensor):
        return torch.cat((tensor.new_zeros(1), tensor.flatten()))[1:].view(tensor.shape)

    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, moved):
        assert_same(everything(layer, x), expected, 1e-11, 1e-11)
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t.float()),
        pytest.raises(RuntimeError, match=r"saved-tensor hook returned|expected|dtype"),
    ):
        everything(layer, x)
    offloaded = torch.autograd.graph.save_on_cpu()
    with offloaded:
        assert_same(everything(layer, x), expected, 1e-11, 1e-11)


def test_weights_changed_between_the_passes_are_noticed():
    layer, _ = pair(2, 3, torch.float64)
    loss = layer(torch.randn(3, 3, 2, dtype=torch.float64))[0].sum()
    with torch.no_grad():
        layer.weight_hh_l0.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_calls_that_it_cannot_serve():
    layer = LayerNormLSTM(2, 3, backend="cpu")
    with pytest.raises(ValueError, match=r"'cpu' cannot serve this call: dtype torch.bfloat16"):
        layer.bfloat16()(torch.randn(3, 3, 2).bfloat16())
    layer = LayerNormLSTM(2, 3, backend="cpu")
    x = torch.randn(3, 3, 2)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match="autocast is on"),
    ):
        layer(x)
    automatic = LayerNormLSTM(2, 3)
    automatic.load_state_dict(layer.state_dict())
    weights = dict(automatic.named_parameters())

    def run(weights, x):
        return torch.func.functional_call(automatic, weights, (x,))[0].sum()

    by_transform = torch.func.grad(run)(weights, x)
    assert automatic.last_backend == "reference"
    layer(x)[0].sum().backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.grad, by_transform[name], rtol=1e-4, atol=1e-5)
    meta = LayerNormLSTM(2, 3, device="meta")
    assert meta(torch.randn(3, 3, 2, device="meta"))[0].shape == (3, 3, 3)
