"""The C code where numbers overflow, saturate or are NaN, against the reference."""

import copy

import pytest
import torch

from elstm.nn import BNLSTM, ELSTMBN
from elstm.nn.backends.cpu import library

pytestmark = pytest.mark.skipif(library.unavailable(32) is not None, reason="no C compiler")
T, B, F, H = 4, 6, 3, 5


def compare(kind, x, *, training=True, hx=None, skip=()):
    torch.manual_seed(0)
    layer = kind(F, H, max_steps=T, dtype=x.dtype, backend="cpu").train(training)
    results = []
    for module in (layer, copy.deepcopy(layer)):
        given = x.clone().requires_grad_()
        output, (_, c_n) = module(given, hx)
        (output.square().sum() + c_n.sum()).backward()
        found = {"output": output.detach(), "d_x": given.grad}
        found |= {name: p.grad for name, p in module.named_parameters()}
        results.append(found | dict(module.named_buffers()))
        layer.backend = "reference"
    for name, expected in results[1].items():
        if name not in skip:
            torch.testing.assert_close(
                results[0][name], expected, rtol=1e-3, atol=1e-5, equal_nan=True, msg=name
            )
    return results[0]


@pytest.mark.parametrize("kind", [BNLSTM, ELSTMBN])
@pytest.mark.parametrize(
    ("scale", "dtype"),
    [(1e20, torch.float32), (1e25, torch.float32), (1e30, torch.float64), (1e160, torch.float64)],
)
def test_variances_that_leave_float32(kind, scale, dtype):
    """Above float32's largest number in float64, and infinite where they overflow their dtype."""
    found = compare(kind, scale * torch.randn(T, B, F, dtype=dtype))
    variances = found["norm_ih_l0.running_var"]
    assert variances.isinf().all() == (scale in (1e20, 1e25, 1e160))
    assert variances.double().max() > 3.5e38


@pytest.mark.parametrize("kind", [BNLSTM, ELSTMBN])
def test_a_nan_stays_in_its_sequence_in_eval_mode(kind):
    x = torch.randn(T, B, F)
    x[1, 2, 0] = torch.nan
    found = compare(kind, x, training=False)
    clean = found["d_x"].isfinite().all(dim=2).all(dim=0)
    assert clean.tolist() == [True, True, False, True, True, True]


@pytest.mark.parametrize("kind", [BNLSTM, ELSTMBN])
@pytest.mark.parametrize("size", [1e6, 1e8, 1e10])
def test_a_large_cell_meets_no_residual_slope(kind, size):
    """d_gamma sums the slope of tanh times the cell: one that is not zero counts there."""
    hx = torch.zeros(1, B, H), size * torch.randn(1, B, H)
    compare(kind, torch.randn(T, B, F), training=False, hx=hx)
