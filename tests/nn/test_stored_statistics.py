"""Statistics in state dicts: rows that training has not reached, other numbers of steps."""

import io

import pytest
import torch
from numpy_lstm import sequences

from elstm.nn import ELSTMBN
from elstm.nn.norm import STATISTICS

F, H, T = 3, 4, 5
X = sequences(T, 6, F, dtype=torch.float32)


def trained(max_steps=1024, x=X):
    layer = ELSTMBN(F, H, max_steps=max_steps)
    layer(x)
    return layer


def loaded(state, max_steps=1024):
    layer = ELSTMBN(F, H, max_steps=max_steps)
    layer.load_state_dict(state)
    return layer


def test_a_checkpoint_holds_the_rows_that_training_reached():
    layer = trained()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    assert file.tell() < 20_000  # 300 KB with all rows
    file.seek(0)
    other = loaded(torch.load(file, weights_only=True))
    for name, value in layer.named_buffers():
        assert torch.equal(other.get_buffer(name), value), name
    for module in (layer, other):
        torch.manual_seed(1)
        module(torch.randn(T + 2, 6, F))  # training goes on in the same way
        module.eval()
    assert torch.equal(layer(X)[0], other(X)[0])


def test_full_and_aliased_where_nothing_is_left_out():
    layer = trained()
    full = layer.state_dict(keep_vars=True)
    assert full["norm_c_l0.running_mean"] is layer.norm_c_l0.running_mean
    assert loaded(full).norm_c_l0.running_mean.shape == (1024, H)  # as old checkpoints have it
    untrained = ELSTMBN(F, H).state_dict()["norm_c_l0.running_mean"]
    assert untrained.shape == (1024, H)
    full_length = trained(max_steps=T)
    state = full_length.state_dict()["norm_c_l0.running_mean"]
    assert state.data_ptr() == full_length.norm_c_l0.running_mean.data_ptr()


def test_rows_that_were_set_by_hand_are_saved():
    layer = trained()
    with torch.no_grad():
        layer.norm_c_l0.running_var[100] = 2
    assert loaded(layer.state_dict()).norm_c_l0.running_var[100, 0] == 2


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("rows", [2, T - 1, T + 1, 20])
def test_another_max_steps_cuts_or_repeats_the_last_row(rows, assign):
    layer, other = trained(max_steps=T).eval(), ELSTMBN(F, H, max_steps=rows).eval()
    what = "dropped" if rows < T else "last step"
    with pytest.warns(UserWarning, match=rf"max_steps={rows} .*statistics of {T} steps: .*{what}"):
        other.load_state_dict(layer.state_dict(), assign=assign)
    for name in STATISTICS:
        have, want = getattr(other.norm_hh_l0, name), getattr(layer.norm_hh_l0, name)
        assert len(have) == rows
        for t in range(rows):
            assert torch.equal(have[t], want[min(t, T - 1)])
    if rows > T:
        x = sequences(rows, 6, F, dtype=torch.float32)
        assert torch.equal(layer(x)[0], other(x)[0])  # later steps share the last row in both


def test_rows_that_no_batch_reached_are_dropped_without_a_warning():
    assert trained(max_steps=2 * T).state_dict()["norm_c_l0.running_mean"].shape == (2 * T, H)
    assert loaded(trained(max_steps=20).state_dict(), T).norm_c_l0.num_batches_tracked.all()


def test_statistics_of_another_width_are_still_refused():
    state = trained().state_dict()
    state["norm_c_l0.running_mean"] = state["norm_c_l0.running_mean"][:, :2]
    with pytest.raises(RuntimeError, match=r"norm_c_l0.running_mean"):
        loaded(state)
