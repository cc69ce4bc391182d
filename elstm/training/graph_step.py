"""Runs the full training step as one CUDA graph, whose replay costs the host one call.

The gather of the batch, forward and backward pass, clipping, the optimizer's step and the running
sums are launched once by the host and replayed from then on. Everything that changes from step to
step lies in tensors at fixed addresses: the rows of the batch, the learning rate, weights,
statistics, optimizer state and sums.

The first steps run without the graph, on the stream that captures it, because kernels are compiled
and the optimizer's state is made there. They are steps of the run like all others, so nothing has
to be restored after them. Capturing runs nothing. To check the first replay, the same step runs
once more from the same state without the graph, and these results are used.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from elstm.config.schema import Config
from elstm.training.build import Parts
from elstm.training.optim import make_capturable
from elstm.training.state import StepSums
from elstm.training.step import StepResult

WARM_UP_STEPS = 3
TOLERANCE = 1e-4  # of the relative error of a tensor after one step

log = logging.getLogger(__name__)


def unsupported(
    device: torch.device, processes: int, precision: str, compiled: bool, packed: bool
) -> str | None:
    """Returns why a run cannot train in a CUDA graph, or None."""
    if device.type != "cuda":
        return f"it needs a CUDA GPU, and the run is on {device.type}"
    if processes > 1:
        return f"it serves one process, and the run has {processes}"
    if precision == "fp16":
        return "in fp16 the host reads at each step whether the gradients overflowed"
    if compiled:
        return "trainer.compile makes other graphs of the model"
    if packed:
        return "batches of sequences of several lengths have no fixed shape"
    return None


def batch_step(config: Config, parts: Parts, sums: StepSums) -> Callable[[Tensor], None]:
    """Returns a function that takes a step on the given rows and adds the result to `sums`.

    With trainer.accumulate the rows are divided into that many batches, which run one after the
    other. On a CUDA GPU the result is a GraphStep if trainer.cuda_graph allows it. If a requested
    graph is not possible, a log message gives the reason.
    """

    trainer, accelerator, data = config.trainer, parts.accelerator, parts.data

    def step(rows: Tensor) -> StepResult:
        if trainer.accumulate == 1:
            return parts.step(*data.train_batch(rows))
        batches = map(data.train_batch, rows.chunk(trainer.accumulate))
        labels = data.train.labels[rows.to(data.device)]
        return parts.step.accumulated(batches, labels, trainer.accumulate)

    def eager(rows: Tensor) -> None:
        sums.add(step(rows), len(rows))

    def on_device(rows: Tensor) -> None:
        sums.accumulate(step(rows))

    device = accelerator.device
    if trainer.cuda_graph is False or (trainer.cuda_graph == "auto" and device.type != "cuda"):
        return eager
    reason = unsupported(
        device, accelerator.num_processes, trainer.precision, trainer.compile, data.packed
    )
    if reason is not None:
        _log_failure(reason)
        return eager
    graph = GraphStep(
        on_device, parts.model, parts.optimizer.optimizer, sums.tensors, exact=trainer.deterministic
    )

    def replayed(rows: Tensor) -> None:
        graph(rows)
        sums.count(len(rows))

    return replayed


def _log_failure(reason: str) -> None:
    log.info("the training step runs without a CUDA graph: %s", reason)


class GraphStep:
    """Runs one training step on the batch of the given rows, from a CUDA graph where possible.

    If the capture fails, or if the graph gives other results than the same step without it, the
    reason is logged once, and all steps run without the graph.

    Args:
        step: trains on the rows (B,) of the training sequences and adds to the running sums, with
            no call that synchronises with the device.
        model: the model whose parameters and buffers `step` changes.
        optimizer: torch's optimizer, without a wrapper.
        sums: returns the running sums that `step` changes, tensors at fixed addresses.
        exact: whether the graph must give the same bits (trainer.deterministic).
    """

    def __init__(
        self,
        step: Callable[[Tensor], None],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        sums: Callable[[], list[Tensor]],
        *,
        exact: bool,
    ) -> None:
        self.step, self.model, self.optimizer, self.sums = step, model, optimizer, sums
        self.exact = exact
        self.device = next(model.parameters()).device
        self.stream = torch.cuda.Stream(self.device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.rows: Tensor | None = None  # (B,) that the graph reads
        self.steps = 0
        self.failure: str | None = None  # why there is no graph

    def __call__(self, rows: Tensor) -> None:
        self.steps += 1
        if self.failure is not None or (self.rows is not None and rows.shape != self.rows.shape):
            self.step(rows)
        elif self.steps <= WARM_UP_STEPS:
            self._warm_up(rows)
        elif self.graph is None:
            self._capture(rows)
        else:
            assert self.rows is not None
            self.rows.copy_(rows)
            self.graph.replay()

    def _warm_up(self, rows: Tensor) -> None:
        if self.rows is None:
            make_capturable(self.optimizer)
            self.rows = rows.clone()
        self.rows.copy_(rows)
        with on_stream(self.stream, self.device), warnings.catch_warnings():
            # Every step before the capture is one of those that torch warns about.
            warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
            self.step(self.rows)

    def _capture(self, rows: Tensor) -> None:
        """Captures the step, and runs it on `rows` once."""
        assert self.rows is not None
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: threads that write records may use the GPU meanwhile.
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self.step(self.rows)
        except RuntimeError as error:
            torch.cuda.synchronize(self.device)
            self._give_up(str(error).strip().partition("\n")[0])
            self.step(rows)
            return
        self.rows.copy_(rows)
        different = self._first_replay(graph)
        if different is not None:
            self._give_up(f"its {different} differs from that of the same step without it")
            return
        self.graph = graph
        log.info("the training step runs as a CUDA graph")

    def _first_replay(self, graph: Any) -> str | None:
        """Replays the graph, then takes the same step from the same state without it.

        Returns the name of a tensor whose values differ, or None.
        """
        assert self.rows is not None
        before = {name: tensor.clone() for name, tensor in self.state()}
        random = torch.cuda.get_rng_state(self.device)
        graph.replay()
        replayed = {name: tensor.clone() for name, tensor in self.state()}
        for name, tensor in self.state():
            tensor.copy_(before[name])
        torch.cuda.set_rng_state(random, self.device)
        with on_stream(self.stream, self.device):
            self.step(self.rows)
        for name, tensor in self.state():
            if not same(replayed[name], tensor, exact=self.exact):
                return name
        return None

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Yields all tensors that a step changes, by name."""
        with torch.no_grad():
            for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers()):
                yield name, tensor.detach()
            for index, entry in enumerate(self.optimizer.state.values()):
                for key, value in entry.items():
                    if isinstance(value, Tensor):
                        yield f"{key} {index} of the optimizer", value
            for index, value in enumerate(self.sums()):
                yield f"running sum {index}", value

    def _give_up(self, reason: str) -> None:
        self.failure = reason
        _log_failure(reason)


@contextmanager
def on_stream(stream: Any, device: torch.device) -> Iterator[None]:
    """Runs the `with` block on another stream, in order with the current one."""
    outer = torch.cuda.current_stream(device)
    stream.wait_stream(outer)
    with torch.cuda.stream(stream):
        yield
    outer.wait_stream(stream)


def same(a: Tensor, b: Tensor, *, exact: bool) -> bool:
    """Returns whether two results of one step agree, NaN with NaN."""
    if exact or not a.is_floating_point():
        return bool(torch.equal(a.nan_to_num(), b.nan_to_num()))
    difference = (a - b).nan_to_num().norm()
    return bool(difference <= TOLERANCE * b.nan_to_num().norm())
