"""A long sequence in parts (start_step), frozen norms, other dtypes and default devices."""

import copy

import numpy as np
import pytest
import torch
from numpy_lstm import assert_close, lstm, packed, sequences, to_numpy, track

from elstm.nn import BNLSTM, ELSTMBN, recompute_statistics, statistics_norms

T, B, F, H = 7, 5, 3, 4
BACKENDS = ["auto", "reference"]


def make(kind=ELSTMBN, *, max_steps=T, dtype=torch.float64, **options):
    layer = kind(F, H, max_steps=max_steps, dtype=dtype, **options)
    for seed in range(3):
        layer(sequences(T, B, F, seed=seed, dtype=dtype))
    return layer


# --- start_step


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("max_steps", [T, 4])
@pytest.mark.parametrize("kind", [BNLSTM, ELSTMBN])
def test_parts_evaluate_as_the_full_sequence(kind, max_steps, backend):
    layer = make(kind, max_steps=max_steps, backend=backend, num_layers=2).eval()
    x = sequences(T, B, F, seed=9)
    expected, (h_n, c_n) = layer(x)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            state, outputs, start = None, [], 0
            for part in x.split([2, 1, 4]):
                output, state = layer(part, state, start_step=start)
                outputs.append(output)
                start += len(part)
        assert_close(torch.cat(outputs), expected.detach().numpy())
        assert_close(state[0], h_n.detach().numpy())
        assert_close(state[1], c_n.detach().numpy())
    assert abs(layer(x[2:], layer(x[:2])[1])[0] - expected[2:]).max() > 1e-3  # without start_step


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("max_steps", [T + 2, T, 4, 2, 1])
def test_training_in_parts_moves_the_rows_of_their_steps(max_steps, backend):
    layer = make(max_steps=max_steps, backend=backend)
    state = to_numpy(layer)
    x = sequences(T, B, F, seed=9)
    first = lstm(layer, x[:3].numpy())
    track(state, first.values, max_steps, layer.momentum)
    _, hx = layer(x[:3])
    second = lstm(layer, x[3:].numpy(), hx[0].detach().numpy(), hx[1].detach().numpy())
    # The steps before are those of a batch of nothing: track() takes rows by their place.
    shifted = copy.deepcopy(state)
    for name, per_step in second.values.items():
        for t, v in enumerate(per_step):
            rows = min(3 + t, max_steps - 1)
            shifted.setdefault((name, rows), []).append(v)
    for (name, row), parts in [(k, v) for k, v in shifted.items() if isinstance(k, tuple)]:
        v = np.concatenate(parts)
        state[f"{name}.num_batches_tracked"][row] += 1
        for kind, new in (("running_mean", v.mean(0)), ("running_var", v.var(0, ddof=1))):
            state[f"{name}.{kind}"][row] = 0.9 * state[f"{name}.{kind}"][row] + 0.1 * new
    layer(x[3:], hx, start_step=3)
    for name, buffer in layer.named_buffers():
        assert_close(buffer, state[name])


def test_packed_parts_share_one_start():
    layer = make().eval()
    x = sequences(4, B, F, seed=9)
    full, _ = layer(x, start_step=2)
    output, _ = layer(packed(x, [4, 2, 4, 1, 3]), start_step=2)
    padded, lengths = torch.nn.utils.rnn.pad_packed_sequence(output)
    for b, length in enumerate(lengths):
        assert_close(padded[:length, b], full[:length, b].detach().numpy())


def test_start_steps_that_mean_nothing_are_named():
    layer, x = make(), sequences(T, B, F)
    for wrong in (-1, 1.5, True, torch.tensor(2), torch.arange(B)):
        with pytest.raises(ValueError, match="start_step must be an integer"):
            layer(x, start_step=wrong)
    with pytest.raises(ValueError, match="bidirectional"):
        ELSTMBN(F, H, bidirectional=True)(x.float(), start_step=1)


@pytest.mark.parametrize("backend", [pytest.param("reference", marks=pytest.mark.slow), "auto"])
def test_compiled_and_exported_with_a_start(backend):
    torch.compiler.reset()
    layer = make(dtype=torch.float32, backend=backend).eval()
    x = sequences(3, B, F, dtype=torch.float32)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for start in (0, 2, 3):
        expected = layer(x, start_step=start)[0]
        torch.testing.assert_close(compiled(x, start_step=start)[0], expected)
    program = torch.export.export(layer, (x,), {"start_step": 3}).module()
    torch.testing.assert_close(program(x, start_step=3)[0], expected, rtol=1e-5, atol=1e-6)
    torch.compiler.reset()


# --- norms in eval mode while the layer trains


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("frozen", ["all", "norm_ih", "norm_hh", "norm_c"])
@pytest.mark.parametrize("kind", [BNLSTM, ELSTMBN])
def test_frozen_norms_use_population_statistics(kind, frozen, backend):
    layer = make(kind, backend=backend)
    twin = copy.deepcopy(layer)
    twin.backend = "reference"
    results = []
    for module in (layer, twin):
        for name, norm in statistics_norms(module):
            if frozen == "all" or name.startswith(frozen):
                norm.eval()
        x = sequences(T, B, F, seed=9).requires_grad_()
        output, _ = module(packed(x, [7, 5, 7, 1, 3]))
        output.data.square().sum().backward()
        gradients = {name: p.grad for name, p in module.named_parameters()}
        results.append(
            {"output": output.data, "x": x.grad} | gradients | dict(module.named_buffers())
        )
    for name, expected in results[1].items():
        assert_close(results[0][name], expected.detach().numpy())
    before = dict(make(kind, backend=backend).named_buffers())
    for name, buffer in layer.named_buffers():
        still = frozen == "all" or name.startswith(frozen)
        if "tracked" in name:
            assert torch.equal(buffer, before[name]) == still
    if frozen == "all":
        x = sequences(T, B, F, seed=9)
        assert_close(layer(x)[0], copy.deepcopy(layer).eval()(x)[0].detach().numpy())
        layer(x[:, :1])  # a single sequence has no variance, but needs none


# --- dtypes and default devices


def test_assigned_statistics_are_float32_at_least():
    layer = make(dtype=torch.float32)
    half = {k: v.half() if v.is_floating_point() else v for k, v in layer.state_dict().items()}
    other = ELSTMBN(F, H, max_steps=T)
    other.load_state_dict(half, assign=True)
    assert other.weight_ih_l0.dtype == torch.float16
    for name, buffer in other.named_buffers():
        if "running" in name:
            assert buffer.dtype == torch.float32, name


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_another_default_device(device):
    layer = make(bidirectional=True, num_layers=2)
    twin = copy.deepcopy(layer)
    x = sequences(T, B, F, seed=9)
    batch = packed(x, [7, 5, 6, 2, 3])
    expected, _ = twin(batch)
    recompute_statistics(twin, [x, batch])
    with torch.device(device):
        found, _ = layer(batch)
        recompute_statistics(layer, [x, batch])
    assert_close(found.data, expected.data.detach().numpy())
    for name, buffer in layer.named_buffers():
        assert_close(buffer, dict(twin.named_buffers())[name].numpy())


# --- recompute_statistics with what a loader gives


def test_batches_of_all_forms_give_the_same_statistics():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = make()

        def forward(self, x, y=None):
            return self.rnn(x)

    model, x, y = Model(), sequences(T, B, F, seed=9), torch.zeros(B)
    single = sequences(T, 1, F, seed=1)
    found = []
    for batches, call in (
        ([x], None),
        ([(x, y), [single, y]], None),
        ([{"x": x, "y": y}, {"x": single}], None),
        ([{"other": x}], lambda model, batch: model(batch["other"])),
    ):
        recompute_statistics(model, batches, call=call)
        found.append([buffer.clone() for buffer in model.buffers()])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    for single_batch in (x, {"x": x}):
        with pytest.raises(TypeError, match=r"pass \[x\]"):
            recompute_statistics(model, single_batch)
    with pytest.raises(ValueError, match="two or more sequences"):
        recompute_statistics(model, [single])
    assert all(torch.equal(a, b) for a, b in zip(found[0], model.buffers(), strict=True))


def test_attributes_that_code_for_torch_s_lstm_uses():
    layer = ELSTMBN(F, H, 2)
    layer.flatten_parameters()
    assert [[p.shape for p in row] for row in layer.all_weights] == [
        [(16, F), (16, H), (16,)],
        [(16, H), (16, H), (16,)],
    ]
