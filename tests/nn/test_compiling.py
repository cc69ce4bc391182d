"""torch.compile of layers whose batches change: at most two compilations, and the same numbers."""

import copy

import pytest
import torch
import torch._dynamo.testing
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from elstm.nn import ELSTMBN, GRU, LSTM, LayerNormLSTM
from elstm.nn.backends.cpu import library

SIZES = [(3, 4), (4, 6), (5, 4), (6, 5)]  # steps, sequences
REFERENCE = {"backend": "reference"}

# torch.compile looks at the .grad of what enters a graph, after torch.nn.LSTM too.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


class Classifier(nn.Module):
    """A layer between other operators: where torch.compile leaves it out, they are compiled."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(4, 2)

    def forward(self, x):
        _, state = self.layer(x)
        return self.head((state if isinstance(state, torch.Tensor) else state[0])[-1])


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def batches(packed):
    for seed, (steps, size) in enumerate(SIZES):
        torch.manual_seed(seed)
        x = torch.randn(steps, size, 3)
        if packed:
            lengths = torch.randint(1, steps + 1, (size,))
            lengths[:2] = steps
            x = pack_padded_sequence(x, lengths, enforce_sorted=False)
        yield x


def compilations(model, *, packed=False, fullgraph=False, training=True):
    """Compares a compiled copy over all batches, and counts its graphs."""
    counter = torch._dynamo.testing.CompileCounter()
    plain = copy.deepcopy(model).train(training)
    compiled = torch.compile(model.train(training), backend=counter, fullgraph=fullgraph)
    for x in batches(packed):
        results = []
        for module in (plain, compiled):
            module.zero_grad()
            output = module(x)
            output = output if isinstance(output, torch.Tensor) else output[0]
            output = output if isinstance(output, torch.Tensor) else output.data
            output.square().sum().backward()
            results.append([output.detach(), *(p.grad for p in module.parameters())])
        for found, expected in zip(*results, strict=True):
            torch.testing.assert_close(found, expected)
    for found, expected in zip(compiled.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(found, expected)
    return counter.frame_count


@pytest.mark.parametrize(
    ("kind", "options"),
    [(LSTM, {"backend": "cpu"}), (GRU, REFERENCE), (LayerNormLSTM, {}), (ELSTMBN, {}),
     (ELSTMBN, REFERENCE)],
)  # fmt: skip
def test_packed_batches(kind, options):
    assert compilations(Classifier(kind(3, 4, **options)), packed=True) <= 2


@pytest.mark.skipif(library.unavailable(32) is not None, reason="no C compiler")
@pytest.mark.parametrize("kind", [LayerNormLSTM, ELSTMBN])
def test_any_number_of_steps_in_one_graph(kind):
    assert compilations(kind(3, 4), fullgraph=True) == 2


def test_a_loop_over_another_number_of_steps_is_not_traced():
    assert compilations(LayerNormLSTM(3, 4, **REFERENCE)) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", [GRU, LSTM, ELSTMBN])
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("training", [True, False])
def test_padded_batches(kind, backend, training):
    assert compilations(kind(3, 4, backend=backend), training=training) <= 2
