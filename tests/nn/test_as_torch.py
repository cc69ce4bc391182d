"""Uses layers in the ways that torch.nn.LSTM allows, where other tests compare numbers."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

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


@pytest.mark.parametrize("options", [{}, {"momentum": None, "max_steps": 2}], ids=str)
def test_an_ensemble_trains_in_one_call(options):
    layers, x = (
        [ELSTMBN(F, H, **{"max_steps": T} | options) for _ in range(2)],
        torch.randn(T, B, F),
    )
    parameters, buffers = torch.func.stack_module_state(layers)

    def run(*tensors):
        return torch.func.functional_call(layers[0], tensors, (x,))[0]

    for _ in range(2):
        found = torch.func.vmap(run)(parameters, buffers)
        expected = torch.stack([layer(x)[0] for layer in layers])
    torch.testing.assert_close(found, expected)
    _, moved = torch.func.stack_module_state(layers)
    torch.testing.assert_close(buffers, moved)
    with pytest.raises(RuntimeError, match=r"running statistics .* cannot be updated in place"):
        torch.func.vmap(layers[0])(torch.randn(2, T, B, F))
    for name, buffer in layers[0].named_buffers():
        assert torch.equal(buffer, moved[name][0])  # an error changes nothing


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


def test_which_projections_have_norms_is_read_only():
    layer = ELSTMBN(2, 3, max_steps=4, normalize_hidden=False)
    assert (layer.normalize_input, layer.normalize_hidden) == (True, False)
    with pytest.raises(AttributeError, match="normalize_hidden"):
        layer.normalize_hidden = True


KINDS = [LSTM, GRU, LayerNormLSTM, BNLSTM, ELSTMBN]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:`torch.jit.script`", "ignore:The PyTorch API of nested")
def test_inputs_and_states_of_another_kind_are_named(kind):
    layer, x = kind(F, H), torch.randn(T, B, F)
    part = torch.zeros(1, B, H)
    names, other = ("h_0", (part, part)) if kind is GRU else ("hx", part)
    for hx, message in [(other, names), ((part, None), "[hc]_0"), (["ab"] * 2, "h_0")]:
        with pytest.raises(TypeError, match=f"{message} must be .*got a "):
            layer(x, hx)
    with pytest.raises(ValueError, match=r"dtype|data of a PackedSequence must be 2-D .*got 3-D"):
        layer(PackedSequence(torch.randn(T, 1, F), torch.ones(T, dtype=torch.int64)))
    for wrong in (x.double(), pack_padded_sequence(x.long(), [5, 4, 3, 2])):
        with pytest.raises((ValueError, RuntimeError), match="dtype"):  # torch's, in the LSTM
            layer(wrong)
    with pytest.raises(TypeError, match="PackedSequence, got a ndarray"):
        layer(x.numpy())
    with pytest.raises(ValueError, match="dense tensor, got a nested"):
        layer(torch.nested.nested_tensor([x[:2, 0], x[:3, 0]]))
    with pytest.raises(NotImplementedError, match=f"cannot compile {kind.__name__}"):
        torch.jit.script(nn.Sequential(layer))
    layer.backend = "cppu"
    with pytest.raises(ValueError, match=r"backend must be .* got .cppu"):
        layer(x)


@pytest.mark.parametrize("kind", KINDS)
def test_parametrised_weights_are_initialised_again(kind):
    layer = parametrizations.weight_norm(kind(F, H), "weight_hh_l0")
    with torch.no_grad():
        layer.weight_hh_l0 = torch.ones_like(layer.weight_hh_l0)
    layer.reset_parameters()
    gate = layer.weight_hh_l0[:H]
    torch.testing.assert_close(gate @ gate.T, torch.eye(H))


class Ones(nn.LayerNorm):
    def forward(self, x):
        return torch.ones_like(x)


@pytest.mark.parametrize("norm", ["norm_ih_l0", "norm_hh_l0", "norm_c_l0"])
def test_modules_in_the_place_of_a_layer_norm_are_called(norm):
    """The C code computes layer normalisation with weight and bias, whatever the module does."""
    features, x, calls = H if norm == "norm_c_l0" else 4 * H, torch.randn(T, B, F), []
    hooked = nn.LayerNorm(features)
    hooked.register_forward_hook(lambda *_: calls.append(1))
    bare = nn.LayerNorm(features, elementwise_affine=False)  # the C code would read a null pointer
    for module in (nn.Identity(), bare, nn.LayerNorm(features, bias=False), Ones(features), hooked):
        layer = LayerNormLSTM(F, H)
        setattr(layer, norm, module)
        twin = copy.deepcopy(layer)
        twin.backend = "reference"
        torch.testing.assert_close(layer(x)[0], twin(x)[0], rtol=0, atol=0)
        layer.backend = "cpu"
        with pytest.raises(ValueError, match="cannot serve this call: a norm "):
            layer(x)
    assert calls
    setattr(layer, norm, None)
    with pytest.raises(TypeError, match="must be a module, got None"):
        layer(x)


@pytest.mark.parametrize("training", [True, False])
def test_norms_without_their_parts_are_named(training):
    """The C code would read null pointers, or memory that nothing has written."""
    x = torch.randn(T, B, F)
    for cell_norm, name, part in [
        ("update", "norm_ih_l0", "weight"), ("update", "norm_c_l0", "running_mean"),
        ("output", "norm_c_l0", "running_var"), ("center", "norm_c_l0", "bias"),
        ("update", "norm_hh_l0", "num_batches_tracked"),
    ]:  # fmt: skip
        layer = ELSTMBN(F, H, cell_norm=cell_norm).train(training)
        setattr(layer.get_submodule(name), part, None)
        with pytest.raises(ValueError, match=r"a norm .*must have a"):
            layer(x)
    for kind in (LayerNormLSTM, ELSTMBN):
        layer = kind(F, H).train(training)
        layer.weight_ih_l0 = None
        with pytest.raises(ValueError, match=r"weight_ih must have shape \(16, 3\), got None"):
            layer(x)
    layer = ELSTMBN(F, H).train(training)
    layer.norm_hh_l0 = nn.Identity()
    with pytest.raises(TypeError, match="norm_hh_l0 must be a StepBatchNorm or None, got a Ident"):
        layer(x)


def test_norms_with_other_rows_than_their_neighbours_are_named():
    layer = ELSTMBN(F, H, max_steps=2)
    layer.norm_c_l0 = ELSTMBN(F, H, max_steps=9).norm_c_l0
    with pytest.raises(
        ValueError, match=r"norms of l0 must have the same max_steps, got \[2, 2, 9\]"
    ):
        layer(torch.randn(1, B, F), start_step=5)  # their statistics would move in the same row


@pytest.mark.parametrize(
    ("built", "later"),
    [("update", "none"), ("update", "terms"), ("update", "center"), ("center", "update"),
     ("none", "output"), ("update", "updat")],
)  # fmt: skip
def test_a_cell_norm_for_which_the_layer_has_other_norms_is_refused(built, later):
    layer = ELSTMBN(F, H, cell_norm=built)
    layer.cell_norm = later
    with pytest.raises(ValueError, match=f"not built for cell_norm='{later}'"):
        layer(torch.randn(T, B, F))


@pytest.mark.parametrize(("kind", "base"), [(LSTM, nn.LSTM), (GRU, nn.GRU)])
@pytest.mark.filterwarnings("ignore:LSTM with projections")  # torch has no fast code for them
def test_states_reach_torch_contiguous(kind, base, monkeypatch):
    """cuDNN refuses others, such as a learned state that is expanded to the size of the batch."""
    seen, forward = [], base.forward

    def spy(self, input, hx=None):
        seen.extend(hx if isinstance(hx, tuple) else (hx,))
        return forward(self, input, hx)

    monkeypatch.setattr(base, "forward", spy)
    layer, x = kind(F, H, 2, learn_initial_state=True), torch.randn(T, B, F)
    layer(x)
    given = torch.zeros(B, 2, H).transpose(0, 1)
    layer(x, given if kind is GRU else (given, given))
    if kind is LSTM:
        LSTM(F, H, proj_size=2, state_noise=0.1).eval()(x)
    assert len(seen) == (2 if kind is GRU else 6)
    assert all(part.is_contiguous() for part in seen)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_has_empty_results(kind, backend):
    base = nn.GRU if kind is GRU else nn.LSTM
    options = {"num_layers": 2, "bidirectional": True, "batch_first": True}
    layer = kind(F, H, backend=backend, **options).eval()
    x = torch.zeros(0, T, F, requires_grad=True)
    found, expected = (
        [output, *(state if isinstance(state, tuple) else (state,))]
        for output, state in (layer(x), base(F, H, **options)(x))
    )
    assert [part.shape for part in found] == [part.shape for part in expected]
    layer(x)[0].sum().backward()
    assert x.grad.shape == x.shape
    if kind in (BNLSTM, ELSTMBN):
        with pytest.raises(ValueError, match=r"at least 2 sequences .*got 0"):
            layer.train()(x)
