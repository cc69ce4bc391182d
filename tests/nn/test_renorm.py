"""Batch renormalisation: the equation, its schedule, what evaluation and copies have of it."""

import copy

import pytest
import torch
from numpy_lstm import assert_close, lstm, packed, pool, randomize, sequences, to_numpy, track

from elstm.nn import BNLSTM, CELL_NORMS, ELSTMBN, batch_statistics, recompute_statistics
from elstm.nn import norm as norm_module
from elstm.nn.norm import statistics_norms
from elstm.nn.recurrence import NormInputs, recurrence

T, B, F, H = 5, 4, 3, 2
LENGTHS = [3, 5, 1, 5]
DEEP = {"num_layers": 2, "bidirectional": True}
RENORM = {"renorm": True, "renorm_start": 2, "renorm_ramp": 3}


def make(cell_norm="update", rows_tracked=None, **options):
    """Of its statistics, `rows_tracked` have seen 3 batches: half the way from 0 to full."""
    options = {"max_steps": T, "dtype": torch.float64, "backend": "reference"} | RENORM | options
    layer_class = BNLSTM if cell_norm == "output" else ELSTMBN
    options |= {} if cell_norm == "output" else {"cell_norm": cell_norm}
    return randomize(layer_class(F, H, **options), rows_tracked=rows_tracked)


def names_of(layer):
    return [name for name, _ in statistics_norms(layer)]


# --- the equation


@pytest.mark.parametrize(
    ("options", "lengths"),
    [({}, None), (DEEP | {"max_steps": 3}, LENGTHS), ({"rows_tracked": 2}, LENGTHS)],
    ids=["dense", "deep, packed, longer than max_steps", "some steps for the first time"],
)
@pytest.mark.parametrize("cell_norm", CELL_NORMS)
def test_follows_the_equations(cell_norm, options, lengths):
    """Over three training batches: outputs, state, and the statistics that they leave."""
    layer = make(cell_norm, **options)
    state = to_numpy(layer)
    for seed in range(3):
        x = sequences(T, B, F, seed=seed)
        expected = lstm(layer, x.numpy(), lengths=lengths, state=state)
        track(state, expected.values, layer.max_steps, layer.momentum)
        output, (h_n, c_n) = layer(x if lengths is None else packed(x, lengths))
        if lengths is not None:
            output, _ = torch.nn.utils.rnn.pad_packed_sequence(output)
        assert_close(output, expected.output)
        assert_close(h_n, expected.h_n)
        assert_close(c_n, expected.c_n)
        for name, buffer in layer.named_buffers():
            assert_close(buffer, state[name])
    plain = lstm(layer, x.numpy(), lengths=lengths, batch_mode=True)
    assert abs(plain.h_n - expected.h_n).max() > 0.01


@pytest.mark.parametrize("cell_norm", CELL_NORMS)
def test_without_a_bound_training_computes_what_evaluation_does(cell_norm, monkeypatch):
    monkeypatch.setattr(norm_module, "R_MAX", 1e9)
    monkeypatch.setattr(norm_module, "D_MAX", 1e9)
    layer = make(cell_norm, renorm_ramp=0, **DEEP)
    x = sequences(T, B, F)
    expected = copy.deepcopy(layer).eval()(x)[0]
    assert_close(layer(x)[0], expected.detach().numpy())


def call(layer, x, h_0, c_0, sizes, batch_steps, norms):
    weights = layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_l0
    names = ("norm_ih", "norm_hh", "norm_c", "norm_c2")
    given = [norms.get(name) for name in names]
    return recurrence(x, sizes, batch_steps, h_0, c_0, *weights, *given, layer.cell_norm)


@pytest.mark.parametrize("cell_norm", CELL_NORMS)
def test_gradients_where_both_numbers_are_cut_off(cell_norm):
    """There r and d do not depend on the inputs, and finite differences see constants too."""
    layer = make(cell_norm)
    limits = torch.stack((1.5 + torch.rand(T), 0.1 + torch.rand(T)), 1).double()
    norms = {name.removesuffix("_l0"): norm for name, norm in statistics_norms(layer)}
    leaves = [sequences(T, B, F), sequences(B, H, seed=1), sequences(B, H, seed=2)]
    for norm in norms.values():
        leaves += [norm.weight, *([] if norm.bias is None else [norm.bias])]
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]

    def run(x, h_0, c_0, *affine):
        values, inputs = iter(affine), {}
        for name, norm in norms.items():
            gamma, beta = next(values), None if norm.bias is None else next(values)
            far = torch.full((T, gamma.shape[0]), 100.0, dtype=torch.float64)
            inputs[name] = NormInputs(gamma, beta, -10 * far, far, norm.eps, limits=limits)
        return call(layer, x, h_0, c_0, [B, B, 3, 3, 1], 4, inputs)[:3]

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True, check_undefined_grad=False)


def test_no_gradient_flows_through_the_two_numbers():
    """One step: γ r in the place of γ, and γ d + β in that of β, are all that it is."""
    layer = make("update")
    x, h_0, c_0 = sequences(1, B, F), sequences(B, H, seed=1), sequences(B, H, seed=2)
    limits = torch.tensor([[2.0, 2.5]], dtype=torch.float64)
    norms = {name.removesuffix("_l0"): norm for name, norm in statistics_norms(layer)}

    def run(inputs_of):
        leaves = {"x": x.clone().requires_grad_()}
        inputs = {}
        for name, norm in norms.items():
            gamma = norm.weight.detach().clone().requires_grad_()
            beta = torch.zeros_like(gamma) if norm.bias is None else norm.bias.detach().clone()
            leaves[f"{name} gamma"], leaves[f"{name} beta"] = gamma, beta.requires_grad_()
            inputs[name] = inputs_of(name, norm, gamma, beta)
        output, _, c_n, statistics = call(layer, leaves["x"], h_0, c_0, None, 1, inputs)
        (output * sequences(1, B, H, seed=3)).sum().add(c_n.pow(2).sum()).backward()
        return output, {name: leaf.grad for name, leaf in leaves.items()}, statistics

    def corrected(name, norm, gamma, beta):
        rows = norm.running_mean[:1], norm.running_var[:1]
        return NormInputs(gamma, beta, *rows, norm.eps, limits=limits)

    output, gradients, statistics = run(corrected)
    batch = dict(zip(norms, statistics, strict=False))
    free = []

    def folded(name, norm, gamma, beta):
        spread = (norm.running_var[0] + norm.eps).sqrt()
        r = (batch[name].var[0] + norm.eps).sqrt() / spread
        d = (batch[name].mean[0] - norm.running_mean[0]) / spread
        free.append((r > 0.5) & (r < 2) & (d.abs() < 2.5))
        r, d = r.clamp(0.5, 2), d.clamp(-2.5, 2.5)
        return NormInputs(gamma * r, beta + gamma * d, None, None, norm.eps)

    expected_output, expected, _ = run(folded)
    assert torch.cat(free).sum() > 5  # features where neither number is cut off
    assert_close(output, expected_output.detach().numpy())
    for name, gradient in gradients.items():
        assert_close(gradient, expected[name].numpy())


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_before_its_start_the_same_bits_as_without(backend):
    plain = make(renorm=False, dtype=torch.float32, backend=backend, rows_tracked=0)
    layer = make(renorm_start=2, dtype=torch.float32, backend=backend, rows_tracked=0)
    for step in range(3):
        results = []
        for module in (plain, layer):
            x = sequences(T, B, F, seed=step, dtype=torch.float32).requires_grad_()
            module.zero_grad()
            output, (h_n, c_n) = module(x)
            (output.square().sum() + c_n.sum()).backward()
            buffers = [v for name, v in module.named_buffers() if "trained" not in name]
            gradients = [p.grad for p in module.parameters()]
            results.append([output, h_n, c_n, x.grad, *gradients, *buffers])
        same = [torch.equal(a, b) for a, b in zip(*results, strict=True)]
        assert all(same) if step < 2 else not any(same[:4])


# --- the schedule


@pytest.mark.parametrize(
    ("start", "ramp", "expected"),
    [
        (3, 4, [0, 0, 0, 0.2, 0.4, 0.6, 0.8, 1, 1]),
        (1, 0, [0, 1, 1]),
        (2, 1, [0, 0, 0.5, 1, 1]),
    ],
)
def test_plain_batches_and_then_a_line(start, ramp, expected):
    layer = make(renorm_start=start, renorm_ramp=ramp, rows_tracked=0)
    for strength in expected:
        for _, norm in statistics_norms(layer):
            limits = norm.inputs(T, T, True).limits
            assert_close(limits, [[1 + 2 * strength, 5 * strength]] * T)
            assert norm.inputs(T, T, False).limits is None
        layer(sequences(T, B, F))


def test_each_step_has_its_own_clock_and_a_ghost_is_a_batch():
    layer = make(renorm_start=2, renorm_ramp=3, rows_tracked=0, max_steps=4)
    layer(packed(sequences(T, B, F), [3, 2, 3, 1]))
    layer.ghost_batch_size = 2
    layer(packed(sequences(T, B, F), [3, 3, 3, 2]))  # by length: in ghost 0 of 3 and 3
    for _, norm in statistics_norms(layer):
        assert norm.num_batches_trained.tolist() == [3, 3, 2, 0]
        limits = norm.inputs(6, 6, True).limits
        assert_close(limits[:, 1], [2.5, 2.5, 1.25, 0, 0, 0])


@pytest.mark.parametrize("layer_class", [BNLSTM, ELSTMBN])
def test_wrong_schedules_are_named(layer_class):
    with pytest.raises(ValueError, match="renorm_start must be a whole number of at least 1"):
        layer_class(F, H, renorm_start=0)
    with pytest.raises(ValueError, match="renorm_ramp must be a whole number of at least 0"):
        layer_class(F, H, renorm_ramp=-1)


def test_triton_refuses_it():
    layer = make(dtype=torch.float32, backend="triton")
    with pytest.raises(ValueError, match=r"cannot serve this call: it has no batch renorm"):
        layer(sequences(T, B, F, dtype=torch.float32))


# --- evaluation


def test_recomputed_statistics_are_those_of_batches_by_themselves():
    """Whatever the running ones were; and the schedule goes on from where it was."""
    layer = make(**DEEP)
    state = to_numpy(layer)
    data = [sequences(T, B, F, seed=k) for k in range(3)]
    pool(state, [lstm(layer, x.numpy(), batch_mode=True).values for x in data], T)
    tensors = list(layer.buffers())
    for _ in range(2):
        recompute_statistics(layer, data)
        for name, buffer in layer.named_buffers():
            assert_close(buffer, state[name])
    assert all(a is b for a, b in zip(layer.buffers(), tensors, strict=True))
    with batch_statistics(layer):
        assert_close(layer(data[0])[0], lstm(layer, data[0].numpy(), batch_mode=True).output)


def test_a_step_that_recomputed_statistics_lack_starts_anew():
    layer = make()
    recompute_statistics(layer, [sequences(2, B, F)])
    for _, norm in statistics_norms(layer):
        assert norm.num_batches_trained.tolist() == [3, 3, 0, 0, 0]


# --- copies


def test_state_dict_round_trip(tmp_path):
    layer = make(**DEEP)
    layer(sequences(T, B, F))
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    other = make(**DEEP)
    other.reset_parameters()
    assert not other.norm_c_l1.num_batches_trained.any()
    other.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
    for seed in (1, 2):
        x = sequences(T, B, F, seed=seed)
        assert torch.equal(layer(x)[0], other(x)[0])
    assert other.norm_c_l1.num_batches_trained.tolist() == [6] * T


def test_a_layer_goes_on_with_or_without_it():
    """A state_dict of a layer that had none, which is what an older one is, and the reverse."""
    plain, layer = make(renorm=False, **DEEP), make(**DEEP)
    assert layer.state_dict().keys() - plain.state_dict().keys() == {
        f"{name}.num_batches_trained" for name in names_of(layer)
    }
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.mul_(0.5)
    plain.norm_c_l0.num_batches_tracked[1] = 9
    layer.load_state_dict(plain.state_dict())
    assert layer.norm_c_l0.num_batches_trained.tolist() == [3, 9, 3, 3, 3]
    x = sequences(T, B, F)
    assert torch.equal(layer.eval()(x)[0], plain.eval()(x)[0])
    layer.train()(x)
    state = layer.state_dict()
    plain.load_state_dict(state)
    assert state.keys() == layer.state_dict().keys()  # left as given
    assert torch.equal(layer.eval()(x)[0], plain.eval()(x)[0])
