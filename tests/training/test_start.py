"""Messages at the start of a run: settings that have no effect on it, commands to copy."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from training_runs import small_config

from elstm.config.schema import CosineConfig, SchedulerConfig, StepConfig
from elstm.training import trained
from elstm.training.recorder import Recorder
from elstm.training.start import start_warnings
from elstm.training.state import Limits


def warned(
    *, data: dict[str, Any] | None = None, scheduler: SchedulerConfig | None = None, **trainer: Any
) -> list[str]:
    config = small_config("elstm_bn", data=data, scheduler=scheduler, **trainer)
    limits = Limits(1, 5, config.trainer.max_epochs, config.trainer.max_steps)
    return list(start_warnings(config, limits))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_steps": 11}, "max_epochs=2 ends the run after 10 steps"),
        ({"scheduler": CosineConfig(warmup_steps=10)}, "covers all 10 steps"),
        ({"scheduler": StepConfig(step_epochs=2)}, "does not lower the learning rate"),
        ({"scheduler": StepConfig(step_epochs=1), "max_steps": 5}, "does not lower"),
        ({"recompute_batches": 0, "recompute_batch_size": 9}, "recompute_batch_size=9 has no"),
        ({"data": {"permute_seed": 3}}, "permute_seed=3 has no effect"),
        ({"model": {"momentum": 0.5}}, "momentum=0.5 has no effect with trainer.recompute_batches"),
        ({"model": {"cell_norm": "none", "gamma_c": 2.0}}, "gamma_c=2.0 has no effect: the model"),
        ({"model": {"normalize_hidden": False, "gamma_hh": 2.0}}, "gamma_hh=2.0 has no effect"),
    ],
)
def test_settings_without_an_effect_are_named(settings: dict[str, Any], said: str) -> None:
    [warning] = warned(**settings)
    assert said in warning


def test_settings_with_an_effect_are_not_named() -> None:
    assert warned(recompute_batches=0, model={"momentum": 0.5, "gamma_c": 2.0}) == []
    assert warned(max_steps=10, data={"permute": True, "permute_seed": 3}) == []
    assert warned(scheduler=StepConfig(step_epochs=1, warmup_steps=9)) == []


def test_commands_to_copy_are_quoted() -> None:
    lines: list[str] = []
    recorder = Recorder.__new__(Recorder)
    recorder.run_dir = Path("my runs/a=1/run")
    recorder.info = lambda text, *values: lines.append(text % values)  # type: ignore[method-assign]
    recorder._show_folder()
    assert [shlex.split(line)[-1] for line in lines[1:]] == ["my runs/a=1"] * 2
    assert "elstm-train 'trainer.resume=my runs/a=1/run' repairs" in trained._instead(
        recorder.run_dir, "last"
    )
