"""The training step as a CUDA graph, with a stand-in for torch.cuda: only its kernels are missing.

A graph of the stand-in replays by calling the step again, and a capture leaves no trace, as on a
GPU, where it runs nothing.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from training_runs import assert_same_runs, at, last, send, small_config

from elstm.config.check import config_from
from elstm.config.data_options import AugmentPicturesConfig
from elstm.config.schema import (
    AdamConfig,
    Config,
    DigitsConfig,
    OptimizerConfig,
    SGDConfig,
    StepConfig,
)
from elstm.errors import UserError
from elstm.records import pictures as figures
from elstm.training import graph_step
from elstm.training.build import build_parts
from elstm.training.graph_step import GraphStep, batch_step, unsupported
from elstm.training.optim import make_capturable, stored_state
from elstm.training.run import run
from elstm.training.state import StepSums
from elstm.training.step import TrainStep

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(autouse=True)
def no_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "examples_figure", lambda examples, title: b"augmented")


OPTIMIZERS: dict[str, OptimizerConfig] = {
    "adam": AdamConfig(lr=2**-6),
    "adamw": AdamConfig(name="adamw", lr=2**-6, weight_decay=0.1),
    "sgd": SGDConfig(lr=2**-6, momentum=0.9),
}
RANDOM_MODEL = {"dropout": 0.2, "num_layers": 2, "state_noise": 0.1}


class StandIn:
    """Takes the place of torch.cuda for the last GraphStep that was made."""

    def __init__(self, capture: Callable[[], None], replay: Callable[[GraphStep], None]) -> None:
        self.before_capture, self.do_replay = capture, replay
        self.captures = self.replays = 0
        self.steps: list[GraphStep] = []

    @contextmanager
    def graph(self, graph: Any, **options: Any) -> Iterator[None]:
        step = self.steps[-1]
        before = [tensor.clone() for _, tensor in step.state()]
        random = torch.get_rng_state()
        self.before_capture()
        yield
        torch.set_rng_state(random)
        for (_, tensor), old in zip(step.state(), before, strict=True):
            tensor.copy_(old)
        self.captures += 1

    def replay(self) -> None:
        self.replays += 1
        self.do_replay(self.steps[-1])


def nothing() -> None:
    pass


def faithful(step: GraphStep) -> None:
    assert step.rows is not None
    step.step(step.rows)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    found = StandIn(nothing, faithful)
    stream = SimpleNamespace(wait_stream=lambda other: None)
    names = {
        "Stream": lambda device: stream,
        "current_stream": lambda device: stream,
        "stream": lambda stream: nullcontext(),
        "CUDAGraph": lambda: SimpleNamespace(replay=found.replay),
        "graph": found.graph,
        "synchronize": lambda device: None,
        "get_rng_state": lambda device: torch.get_rng_state(),
        "set_rng_state": lambda state, device: torch.set_rng_state(state),
    }
    for name, value in names.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(graph_step, "unsupported", lambda *run: None)
    make = GraphStep.__init__

    def recorded(self: GraphStep, *args: Any, **options: Any) -> None:
        make(self, *args, **options)
        found.steps.append(self)

    monkeypatch.setattr(GraphStep, "__init__", recorded)
    return found


def random_config(optimizer: str = "adam", **trainer: Any) -> Config:
    """Learning rates are float32 numbers, because on a GPU they lie in a tensor of float32."""
    config = small_config(
        model=RANDOM_MODEL, log_every=2, checkpoint_every=3,
        scheduler=StepConfig(step_epochs=1, gamma=0.5), **trainer,
    )  # fmt: skip
    config.optimizer = OPTIMIZERS[optimizer]
    return config


def run_both(config: Callable[[], Config], folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Runs the same config without a graph in folder/eager and with one in folder/graph."""
    for name in ("eager", "graph"):
        (folder / name).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_step, "unsupported", lambda *run: "not in this run")
        run(config(), folder / "eager")
    caplog.clear()
    run(config(), folder / "graph")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_has_the_bits_of_one_without_a_graph(
    tmp_path: Path, stand_in: StandIn, caplog: pytest.LogCaptureFixture, optimizer: str
) -> None:
    caplog.set_level(logging.INFO)
    run_both(lambda: random_config(optimizer, cuda_graph=True), tmp_path, caplog)
    assert_same_runs(tmp_path / "eager", tmp_path / "graph")
    assert (stand_in.captures, stand_in.replays) == (1, 7)  # of 10 steps 3 warm up
    assert caplog.text.count("CUDA graph") == 1
    assert type(last(tmp_path / "graph")["optimizer"]["param_groups"][0]["lr"]) is float


def augmented_config(**trainer: Any) -> Config:
    """Steps of two batches of augmented digits."""
    config = random_config(cuda_graph=True, accumulate=2, **trainer)
    augment = AugmentPicturesConfig(shift=1, rotation=10, crop=0.8)
    config.data = DigitsConfig(
        name="digits", pixels_per_step=8, batch_size=128, augment=augment
    )  # fmt: skip
    return config


def test_augmented_and_accumulated_steps_are_captured(
    tmp_path: Path, stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    run_both(augmented_config, tmp_path, caplog)
    assert_same_runs(tmp_path / "eager", tmp_path / "graph")
    assert (stand_in.captures, stand_in.replays) == (1, 7)


def test_a_resume_is_exact(
    tmp_path: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = random_config(cuda_graph=True)
    for name in ("whole", "resumed"):
        (tmp_path / name).mkdir()
    run(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop = at(TrainStep, "__call__", 10, send(signal.SIGTERM))
        patch.setattr(TrainStep, "__call__", stop)
        assert run(config, tmp_path / "resumed").state == "interrupted"
    assert run(config, tmp_path / "resumed", resume=True).state == "done"
    assert_same_runs(tmp_path / "whole", tmp_path / "resumed")


def refuses_to_capture() -> None:
    raise RuntimeError("operation not permitted when stream is capturing\nmore")


def stale(step: GraphStep) -> None:
    """A graph that does not read the rows of the batch."""
    assert step.rows is not None
    step.step(torch.zeros_like(step.rows))


def noisy(step: GraphStep) -> None:
    faithful(step)
    with torch.no_grad():
        step.model.head.bias[0] += 1e-7  # type: ignore[union-attr, operator, index]


@pytest.mark.parametrize(
    ("broken", "deterministic", "message"),
    [
        ({"before_capture": refuses_to_capture}, False, "operation not permitted when stream is"),
        ({"do_replay": stale}, False, "its rnn.weight_ih_l0 differs from that of the same step"),
        ({"do_replay": noisy}, True, "its head.bias differs from that of the same step"),
        ({"do_replay": noisy}, False, None),
    ],
)
def test_falls_back_with_one_log_line(
    tmp_path: Path,
    stand_in: StandIn,
    caplog: pytest.LogCaptureFixture,
    broken: dict[str, Any],
    deterministic: bool,
    message: str | None,
) -> None:
    caplog.set_level(logging.INFO)
    vars(stand_in).update(broken)
    settings = {"cuda_graph": True, "deterministic": deterministic, "max_epochs": 1}
    run_both(lambda: random_config(**settings), tmp_path, caplog)
    assert caplog.text.count("CUDA graph") == 1
    if message is None:
        assert "the training step runs as a CUDA graph" in caplog.text
    else:
        assert f"runs without a CUDA graph: {message}" in caplog.text
        assert_same_runs(tmp_path / "eager", tmp_path / "graph")


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (("cuda", 1, "fp32", False, False), None),
        (("cuda", 1, "bf16", False, False), None),
        (("cpu", 1, "fp32", False, False), "the run is on cpu"),
        (("cuda", 2, "fp32", False, False), "the run has 2"),
        (("cuda", 1, "fp16", False, False), "the host reads at each step"),
        (("cuda", 1, "fp32", True, False), "trainer.compile"),
        (("cuda", 1, "fp32", False, True), "several lengths"),
    ],
)
def test_what_cannot_be_captured(
    case: tuple[str, int, str, bool, bool], reason: str | None
) -> None:
    device, *rest = case
    found = unsupported(torch.device(device), *rest)
    assert found is None if reason is None else reason in str(found)


@pytest.mark.parametrize(("setting", "lines"), [("auto", 0), (True, 1), (False, 0)])
def test_on_a_cpu(setting: Any, lines: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    config = small_config(cuda_graph=setting)
    parts, sums = build_parts(config, Accelerator(cpu=True)), StepSums(torch.device("cpu"))
    batch_step(config, parts, sums)(torch.arange(20))
    assert sums.samples == 20
    assert caplog.text.count("without a CUDA graph: it needs a CUDA GPU") == lines


def test_setting_is_checked() -> None:
    flat = {f"{group}.name": name for group, name in (
        ("model", "lstm"), ("data", "digits"), ("optimizer", "adam"), ("scheduler", "constant"),
    )}  # fmt: skip
    with pytest.raises(UserError, match="has to be one of auto, true, false"):
        config_from(flat | {"trainer.cuda_graph": "yes"})
    flat["data.pixels_per_step"] = 8
    assert config_from(flat | {"trainer.cuda_graph": True}).trainer.cuda_graph is True


def test_optimizer_is_made_capturable_and_stored_plainly() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.RMSprop([weight], lr=0.25)
    before = stored_state(optimizer)
    make_capturable(optimizer)
    (group,) = optimizer.param_groups
    assert group["capturable"]
    assert torch.equal(group["lr"], torch.tensor(0.25))
    assert stored_state(optimizer) == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("make", [random_config, augmented_config])
def test_on_a_gpu(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, make: Callable[..., Config]
) -> None:
    caplog.set_level(logging.INFO)
    accuracies = []
    for name, graph in (("eager", False), ("graph", True)):
        (tmp_path / name).mkdir()
        config = make(device="cuda", max_epochs=3)
        config.trainer.cuda_graph = graph
        accuracies.append(run(config, tmp_path / name).best_val_accuracy)
    assert "the training step runs as a CUDA graph" in caplog.text
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.05)
