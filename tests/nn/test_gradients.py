"""Second derivatives, batches of gradients and forward mode, against the reference."""

import copy

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from numpy_lstm import packed

from elstm.nn import BNLSTM, ELSTMBN, LSTM
from elstm.nn.backends.cpu import library

pytestmark = pytest.mark.skipif(library.unavailable(64) is not None, reason="no C compiler")
T, B, F, H = 3, 5, 2, 3
KINDS = {
    "lstm": (LSTM, {"backend": "cpu"}),
    "output": (BNLSTM, {}),
    "update": (ELSTMBN, {"bias": False, "recompute": True}),
    "center": (ELSTMBN, {"cell_norm": "center"}),
    "input alone": (ELSTMBN, {"cell_norm": "none", "normalize_hidden": False}),
}


@pytest.fixture(params=KINDS)
def layers(request):
    """Two stacked layers, so that one input depends on another, and a twin on the reference."""
    kind, options = KINDS[request.param]
    layer = kind(F, H, 2, max_steps=T, dtype=torch.float64, **options)
    layer(sequences())
    twin = copy.deepcopy(layer)
    twin.backend = "reference"
    return layer, twin


def sequences(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(T, B, F, dtype=torch.float64, generator=generator)


def automatic(layers):
    """The two layers, of which the first chooses its backend itself."""
    layer, twin = layers
    if layer.backend == "cpu":  # an LSTM would be torch's own without `recompute`
        layer.backend, layer.recompute = "auto", True
    twin.recompute = False
    return layer, twin


def compare(found, expected):
    assert expected.abs().max() > 1e-4  # a zero would show nothing
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("training", [True, False])
def test_hessian(layers, training):
    """Differentiates a sum, whose constant upstream gradient once_differentiable missed."""
    results = []
    for layer in layers:
        layer.train(training)
        results += [
            torch.autograd.functional.hessian(lambda x: layer(x)[0].sum(), sequences(), vectorize=v)  # noqa: B023
            for v in (False, True)
        ]
    assert layers[0].last_backend == "cpu"
    for found in results[:-1]:
        compare(found, results[-1])


@pytest.mark.parametrize("lengths", [None, [3, 1, 2, 3, 2]])
def test_a_gradient_penalty_reaches_every_parameter(layers, lengths):
    results = []
    for layer in layers:
        x = sequences().requires_grad_()
        state = torch.ones(2, B, H, dtype=torch.float64, requires_grad=True) * x.mean()
        output, (h_n, c_n) = layer(x if lengths is None else packed(x, lengths), (state, state))
        output = output if lengths is None else output.data
        loss = output.sum() + h_n.square().sum() + c_n.sum()
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        gradient.square().sum().backward()
        results.append([x.grad, *(p.grad for p in layer.parameters())])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    assert sum(float(part.abs().max()) > 1e-4 for part in results[1]) >= len(results[1]) - 2


def test_gradgradcheck():
    layer = ELSTMBN(F, H, max_steps=T, dtype=torch.float64, backend="cpu")
    names, values = zip(*layer.named_parameters(), strict=True)

    def run(x, *values):
        given = dict(zip(names, values, strict=True))
        output, (h_n, c_n) = torch.func.functional_call(layer, given, (x,))
        return output, h_n, c_n

    inputs = [part.detach().requires_grad_() for part in (sequences()[:2, :3], *values)]
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True, check_undefined_grad=False)


@pytest.mark.parametrize("create_graph", [False, True])
def test_batches_of_gradients(layers, create_graph):
    results = []
    for layer in layers:
        x = sequences().requires_grad_()
        output, _ = layer(x)
        rows = torch.stack([sequences(seed=n)[..., :1].expand_as(output) for n in range(4)])
        results += torch.autograd.grad(
            output, x, rows, is_grads_batched=True, create_graph=create_graph
        )
    compare(*results)
    assert results[0].requires_grad == create_graph


FORWARD = pytest.mark.filterwarnings("ignore::FutureWarning:torch")  # of torch.jit, at first use


@FORWARD
@pytest.mark.parametrize("grad", [False, True])
def test_forward_mode_has_a_tangent(layers, grad):
    results = []
    for layer in automatic(layers):
        x = sequences()
        with torch.set_grad_enabled(grad), forward_ad.dual_level():
            output, _ = layer.eval()(forward_ad.make_dual(x, sequences(seed=1)))
            results.append(forward_ad.unpack_dual(output).tangent)
    assert layers[0].last_backend == "reference"
    compare(*results)


@FORWARD
@pytest.mark.parametrize("transform", ["grad", "jacrev", "jacfwd", "jvp", "vmap"])
def test_transforms_of_functions(layers, transform):
    results = []
    for layer in automatic(layers):
        layer.eval()

        def run(x):
            return layer(x)[0]  # noqa: B023

        x = sequences()
        if transform == "grad":
            found = torch.func.grad(lambda x: run(x).square().sum())(x)
        elif transform == "jvp":
            found = torch.func.jvp(run, (x,), (x,))[1]
        elif transform == "vmap":
            found = torch.func.vmap(run)(torch.stack((x, 2 * x)))
        else:
            found = getattr(torch.func, transform)(run)(x)
        results.append(found)
    assert layers[0].last_backend == "reference"
    compare(*results)


def test_a_named_backend_refuses_transforms():
    layer = ELSTMBN(F, H, max_steps=T, dtype=torch.float64, backend="cpu").eval()
    with pytest.raises(ValueError, match=r"backend 'cpu' cannot serve this call.*torch\.func"):
        torch.func.vmap(lambda x: layer(x)[0])(sequences()[None])


def test_compiled_second_derivatives_are_right_or_an_error():
    torch.compiler.reset()
    layer = ELSTMBN(F, H, max_steps=T, dtype=torch.float64)
    expected = None
    for backend in (None, "eager", "aot_eager"):
        run = layer if backend is None else torch.compile(layer, backend=backend)
        x = sequences().requires_grad_()
        (gradient,) = torch.autograd.grad(run(x)[0].sum(), x, create_graph=True)
        layer.zero_grad()
        if backend == "aot_eager":
            with pytest.raises(RuntimeError, match="double backward"):  # torch's own
                gradient.square().sum().backward()
            continue
        gradient.square().sum().backward()
        if expected is None:
            expected = layer.weight_hh_l0.grad.clone()
            assert expected.abs().max() > 1e-4
        torch.testing.assert_close(layer.weight_hh_l0.grad, expected)
    torch.compiler.reset()
