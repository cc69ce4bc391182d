"""Compiled code reads plain memory alone: other tensors take the reference, or are an error."""

import copy
import io
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from elstm.nn import BNLSTM, ELSTMBN
from elstm.nn.backends import plain
from elstm.nn.backends.cpu import library
from elstm.nn.norm import StepBatchNorm

needs_compiler = pytest.mark.skipif(library.unavailable(32) is not None, reason="no C compiler")
T, B, F, H = 5, 4, 3, 6


class Wrapped(torch.Tensor):
    """A wrapper subclass: what it shows has no memory."""

    @staticmethod
    def __new__(cls, inside):
        return torch.Tensor._make_wrapper_subclass(cls, inside.shape, dtype=inside.dtype)

    def __init__(self, inside):
        self.inside = inside

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        def inside(x):
            return x.inside if isinstance(x, Wrapped) else x

        args, kwargs = torch.utils._pytree.tree_map(inside, (args, kwargs or {}))
        return torch.utils._pytree.tree_map_only(torch.Tensor, cls, function(*args, **kwargs))


class Own(torch.Tensor):
    """A subclass with memory."""


class Plus(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


@pytest.fixture(params=[ELSTMBN, BNLSTM])
def layers(request):
    """A layer in eval mode with statistics of its own, and its twin on the reference."""
    layer = request.param(F, H, max_steps=T)
    layer(torch.randn(T, 8, F))
    twin = copy.deepcopy(layer)
    twin.backend = "reference"
    return layer.eval(), twin.eval()


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_fake_tensors():
    with FakeTensorMode():
        layer = ELSTMBN(F, H)
        output, _ = layer(torch.randn(T, B, F))
        output.sum().backward()
        assert layer.eval()(torch.randn(T, B, F))[0].shape == (T, B, H)
        assert layer.last_backend == "reference"
        with pytest.raises(ValueError, match="cannot serve this call"):
            ELSTMBN(F, H, backend="cpu")(torch.randn(T, B, F))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("grad", [False, True])
def test_a_trace_holds_the_operators(layers, grad):
    layer, twin = layers
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(layer, torch.randn(T, B, F))
    for size in (B, 7):
        x = torch.randn(T, size, F)
        same(traced(x)[0], twin(x)[0])


def test_onnx_by_trace(layers):
    onnxruntime = pytest.importorskip("onnxruntime")
    layer, twin = layers
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            layer, (torch.randn(T, B, F),), file, dynamo=False, input_names=["x"],
            output_names=["y", "h", "c"], dynamic_axes={"x": {1: "batch"}},
        )  # fmt: skip
    session = onnxruntime.InferenceSession(file.getvalue())
    assert [given.name for given in session.get_inputs()] == ["x"]
    x = torch.randn(T, 7, F)
    (found,) = session.run(["y"], {"x": x.numpy()})
    np.testing.assert_allclose(found, twin(x)[0].detach().numpy(), rtol=1e-4, atol=1e-5)


def test_make_fx_records_the_operators(layers):
    layer, twin = layers
    recorded = make_fx(lambda x: layer(x)[0])(torch.randn(T, B, F))
    x = torch.randn(T, B, F)
    same(recorded(x), twin(x)[0])


def test_functionalize(layers):
    layer, twin = layers
    x = torch.randn(T, B, F)
    same(torch.func.functionalize(lambda x: layer(x)[0])(x), twin(x)[0])


@needs_compiler
def test_wrappers_subclasses_and_views_take_the_reference(layers):
    layer, twin = layers
    x = torch.randn(T, B, F)
    negative = torch.complex(torch.zeros_like(x), x).conj().imag
    assert negative.is_neg()
    same(layer(negative)[0], twin(-x)[0])
    assert layer.last_backend == "reference"
    found = layer(Wrapped(x))[0]
    assert isinstance(found, Wrapped)
    same(found.inside, twin(x)[0])
    layer(x)
    assert layer.last_backend == "cpu"


@needs_compiler
@pytest.mark.parametrize("mode", [Plus, Dispatch])
def test_modes_see_the_operators(layers, mode):
    layer, twin = layers
    x = torch.randn(T, B, F)
    with mode():
        same(layer(x)[0], twin(x)[0])
        assert layer.last_backend == "reference"
    with torch.device("cpu"):  # a default device is a function mode too
        layer(x)
    assert layer.last_backend == "cpu"


def test_each_question_without_a_public_interface_is_answered():
    x = torch.randn(2)
    assert plain.why_unreadable(x) is None
    assert plain.why_unreadable(nn.Parameter(x)) is None
    with Dispatch():
        assert "dispatch mode" in plain.why_unreadable(x)
    with Plus():
        assert "function mode" in plain.why_unreadable(x)
    reasons = []
    torch.func.vmap(lambda y: reasons.append(plain.why_unreadable(y)) or y)(x)
    assert "torch.func" in reasons[0]
    assert "no memory" in plain.why_unreadable(x.to("meta"))
    freed = torch.randn(2)
    freed.untyped_storage().resize_(0)
    assert "no memory" in plain.why_unreadable(freed)
    assert "not dense" in plain.why_unreadable(torch.eye(2).to_sparse())
    for register in ("register_forward_hook", "register_forward_pre_hook"):
        norm = nn.LayerNorm(2)
        assert plain.why_not_layer_norm(norm) is None
        getattr(norm, register)(lambda *_: None)
        assert "hooks" in plain.why_not_layer_norm(norm)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert "hooks" in plain.why_not_layer_norm(nn.LayerNorm(2))
    handle.remove()
    assert plain.why_not_layer_norm(nn.LayerNorm(2)) is None


@needs_compiler
@pytest.mark.parametrize("kind", ["strided", "misaligned", "subclass"])
def test_what_saved_tensor_hooks_return(kind):
    def unpack(x):
        if kind == "strided":
            return x.transpose(0, -1).contiguous().transpose(0, -1) if x.dim() > 1 else x
        if kind == "misaligned":
            copied = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape)
            return copied.copy_(x)
        return x.as_subclass(Own)

    layer = ELSTMBN(F, H, dtype=torch.float64)
    results = []
    for hook in (unpack, lambda x: x):
        x = torch.randn(T, B, F, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x, hook):
            output, _ = layer(x.requires_grad_())
        assert layer.last_backend == "cpu"
        results.append(torch.autograd.grad(output.square().sum(), [x, *layer.parameters()]))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found.as_subclass(torch.Tensor), expected)


@needs_compiler
def test_a_saved_tensor_hook_that_changes_the_dtype_is_named():
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.half(), lambda x: x):
        output, _ = ELSTMBN(F, H)(torch.randn(T, B, F))
    with pytest.raises(RuntimeError, match="saved-tensor hook returned a tensor of another"):
        output.sum().backward()


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("weight_hh_l0", (8, 2)),
        ("weight_hh_l0", (4 * H, H + 1)),
        ("weight_ih_l0", (4 * H, F - 1)),
        ("bias_l0", (3,)),
        ("norm_ih_l0.weight", (H,)),
        ("norm_c_l0.bias", (H + 1,)),
        ("norm_c_l0.running_mean", (T, H - 1)),
        ("norm_c_l0.running_var", (T - 3, H)),
        ("norm_hh_l0.num_batches_tracked", (T + 1,)),
    ],
)
def test_replaced_tensors_of_another_shape_are_named(backend, name, shape):
    layer = ELSTMBN(F, H, max_steps=T, backend=backend).eval()
    path, _, last = name.rpartition(".")
    owner = layer.get_submodule(path)
    new = torch.ones(shape)
    setattr(owner, last, nn.Parameter(new) if "running" not in last and "num" not in last else new)
    with pytest.raises(ValueError, match=f"{last.removesuffix('_l0')}.* must have shape"):
        layer(torch.randn(T, B, F))


@pytest.mark.parametrize("gamma", [1.0, None])
@pytest.mark.parametrize("name", ["norm_ih", "norm_hh"])
def test_a_bias_in_the_norm_of_a_projection_takes_the_reference(name, gamma):
    layer, x = ELSTMBN(F, H, max_steps=T), torch.randn(T, B, F)
    norm = StepBatchNorm(4 * H, max_steps=T, eps=0.1, momentum=0.1, gamma=gamma, bias=True)
    nn.init.normal_(norm.bias)
    setattr(layer, f"{name}_l0", norm)
    twin = copy.deepcopy(layer)
    twin.backend = "reference"
    assert torch.equal(layer(x)[0], twin(x)[0])
    assert torch.equal(norm.running_mean, twin.get_submodule(f"{name}_l0").running_mean)
    layer.backend = "cpu"
    with pytest.raises(ValueError, match="norm of a projection has a bias or no weight"):
        layer(x)


@pytest.mark.parametrize("sizes", [[4, 5, 3], [4, 4, 4, 0], [20, 1], [5, 5, 5]])
def test_batch_sizes_that_do_not_fit_are_named(sizes):
    with pytest.raises(ValueError, match="batch_sizes"):
        ELSTMBN(F, H).eval()(PackedSequence(torch.randn(12, F), torch.tensor(sizes)))


@pytest.mark.parametrize("kind", ["sparse", "mkldnn", "quantized"])
@pytest.mark.filterwarnings("ignore")
def test_inputs_that_are_not_dense_are_named(kind):
    x = torch.randn(T, B, F)
    if kind == "sparse":
        x = x.to_sparse()
    elif kind == "mkldnn":
        x = x.to_mkldnn()
    else:
        x = torch.quantize_per_tensor(x, 0.1, 0, torch.quint8)
    with pytest.raises(ValueError, match="dense"):
        ELSTMBN(F, H)(x)


def test_a_state_of_another_form_is_named():
    layer, x = ELSTMBN(F, H), torch.randn(T, B, F)
    with pytest.raises(ValueError, match=r"hx must be \(h_0, c_0\)"):
        layer(x, (torch.zeros(1, B, H),))
    with pytest.raises(ValueError, match="c_0 must have shape"):
        layer(x, (torch.zeros(1, B, H), torch.zeros(1, B, H + 1)))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's, at first use
def test_a_tensor_like_others_that_passed_is_still_asked():
    """Checks that a tensor with known dispatch keys is still asked for the rest."""
    x = torch.randn(3, 4)
    z = torch.complex(x, x)
    assert plain.why_unreadable(x, torch.nn.Parameter(x), z, x[:0], None) is None
    freed = torch.randn(3, 4)
    freed.untyped_storage().resize_(0)
    faults = {
        "no memory": freed, "a tensor has no memory": torch.empty(3, device="meta"), "Own": Own(x),
        "conjugate": z.conj(), "negative": z.conj().imag, "dense": x.to_sparse(),
    }  # fmt: skip
    for fault, tensor in [*faults.items()] * 2:
        assert fault in plain.why_unreadable(x, tensor)
    with torch.autograd.forward_ad.dual_level():
        assert plain.why_unreadable(x) is None
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        assert "tangent" in plain.why_unreadable(x, dual)
