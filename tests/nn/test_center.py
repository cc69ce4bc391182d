"""cell_norm="center": the cell is centred and shifted, without γ and without a variance."""

import copy
import io

import pytest
import torch
from numpy_lstm import assert_close, lstm, packed, randomize, sequences, to_numpy, track

from elstm.nn import ELSTMBN, batch_statistics, recompute_statistics
from elstm.nn.backends.cpu import library
from elstm.nn.statistics import statistics_norms

T, B, F, H = 5, 6, 3, 4
LENGTHS = [5, 3, 5, 2, 4, 1]
needs_compiler = pytest.mark.skipif(library.unavailable(32) is not None, reason="no C compiler")


def make(**options):
    options = {"max_steps": T, "dtype": torch.float64} | options
    return ELSTMBN(F, H, cell_norm="center", **options)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_compiler)])
@pytest.mark.parametrize(("max_steps", "momentum"), [(T, 0.1), (T + 2, None), (3, 0.1)])
def test_training_moves_the_means(backend, max_steps, momentum):
    layer = make(max_steps=max_steps, momentum=momentum, backend=backend, bidirectional=True)
    randomize(layer, rows_tracked=0)
    for seed, lengths in enumerate((None, LENGTHS)):
        x, state = sequences(T, B, F, seed=seed), to_numpy(layer)
        track(state, lstm(layer, x.numpy(), lengths=lengths).values, max_steps, momentum)
        layer(x if lengths is None else packed(x, lengths))
        for name, buffer in layer.named_buffers():
            assert_close(buffer, state[name])
    assert layer.last_backend == backend
    assert layer.norm_c_l0.num_batches_tracked.tolist() == ([2] * T + [0, 0])[:max_steps]


def test_the_means_alone_move():
    """Checks that no statistics have a variance without norms of the projections."""
    layer = make(normalize_input=False, normalize_hidden=False, momentum=1.0)
    layer(sequences(T, B, F))
    with batch_statistics(layer):
        expected = layer(sequences(T, B, F))[0]
    assert_close(layer.eval()(sequences(T, B, F))[0], expected.detach().numpy())
    layer.norm_c_l0.reset_statistics()
    recompute_statistics(layer, [sequences(T, B, F)])
    assert_close(layer(sequences(T, B, F))[0], expected.detach().numpy())
    assert set(layer.state_dict()) - {"weight_ih_l0", "weight_hh_l0", "bias_l0"} == {
        "norm_c_l0.bias", "norm_c_l0.running_mean", "norm_c_l0.num_batches_tracked"
    }  # fmt: skip


def test_it_is_the_update_where_that_does_not_scale():
    """gamma = sqrt(var + eps) in eval mode leaves the centring of "update"."""
    update = randomize(ELSTMBN(F, H, max_steps=T, dtype=torch.float64)).eval()
    norm = update.norm_c_l0
    with torch.no_grad():
        norm.running_var.copy_(norm.running_var[:1].expand(T, H))
        norm.weight.copy_((norm.running_var[0] + norm.eps).sqrt())
    center = make().eval()
    ours = center.state_dict()
    center.load_state_dict({name: update.state_dict()[name] for name in ours})
    for found, expected in zip(center(sequences(T, B, F))[1], update(sequences(T, B, F))[1],
                               strict=True):  # fmt: skip
        assert_close(found, expected.detach().numpy())
    with pytest.raises(RuntimeError, match=r"Unexpected key.*norm_c_l0\.weight.*running_var"):
        center.load_state_dict(update.state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*norm_c_l0\.weight.*running_var"):
        update.load_state_dict(ours)


def test_parts_of_a_sequence():
    layer = randomize(make()).eval()
    x = sequences(T, B, F)
    _, state = layer(x[:2])
    assert_close(layer(x[2:], state, start_step=2)[0], layer(x)[0][2:].detach().numpy())


def test_stored_rows():
    """A state dict leaves unused rows out; another max_steps repeats the last row."""
    layer = make(max_steps=40, dtype=torch.float32)
    layer(sequences(T, B, F, dtype=torch.float32))
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert len(state["norm_c_l0.running_mean"]) == T + 1
    same, short = make(max_steps=40, dtype=torch.float32), make(max_steps=3, dtype=torch.float32)
    same.load_state_dict(state)
    for name, buffer in layer.named_buffers():
        assert torch.equal(same.get_buffer(name), buffer)
    with pytest.warns(UserWarning, match="later steps are dropped"):
        short.load_state_dict(state)
    assert torch.equal(short.norm_c_l0.running_mean, layer.norm_c_l0.running_mean[:3])


def test_half_precision_copies_and_repr():
    layer = copy.deepcopy(randomize(make(dtype=torch.float32))).bfloat16()
    assert {buffer.dtype for buffer in layer.buffers()} == {torch.float32, torch.int64}
    assert layer(sequences(T, B, F).bfloat16())[0].isfinite().all()
    layer.reset_parameters()
    assert not layer.norm_c_l0.running_mean.any()
    assert not layer.norm_c_l0.bias.any()
    assert "StepBatchNorm(4, max_steps=5, gamma=None, momentum=0.1)" in repr(layer)
    assert len(list(statistics_norms(layer))) == 3


@needs_compiler
@pytest.mark.parametrize("training", [True, False])
def test_compiled_in_one_graph(training):
    torch.compiler.reset()
    layer = randomize(make(dtype=torch.float32)).train(training)
    other = copy.deepcopy(layer)
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    x = sequences(T, B, F, dtype=torch.float32)
    for module in (layer, compiled):
        module(x)[0].square().sum().backward()
    assert layer.last_backend == "cpu"
    for part, expected in zip(other.parameters(), layer.parameters(), strict=True):
        torch.testing.assert_close(part.grad, expected.grad)
    for part, expected in zip(other.buffers(), layer.buffers(), strict=True):
        torch.testing.assert_close(part, expected)
    torch.compiler.reset()


def test_a_frozen_mean():
    """The cell's norm in eval mode uses its population mean while the layer trains."""
    layer = randomize(make())
    layer.norm_c_l0.eval()
    before = layer.norm_c_l0.running_mean.clone()
    results = []
    for backend in ("auto", "reference"):
        layer.backend = backend
        layer.zero_grad()
        layer(packed(sequences(T, B, F), LENGTHS))[0].data.square().sum().backward()
        results.append([p.grad.numpy().copy() for p in layer.parameters()])
    for found, expected in zip(*results, strict=True):
        assert_close(found, expected)
    assert torch.equal(layer.norm_c_l0.running_mean, before)
    assert not torch.equal(layer.norm_ih_l0.num_batches_tracked, torch.full((T,), 3))
