"""The folders of runs: what their names tell, and that no name needs quotes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from elstm.config.help import find_config_dir
from elstm.config.run_folder import MAX_CHANGES, TRAINERS, run_changes
from elstm.config.schema import (
    TrainerConfig,
    settings_outside_training,
    settings_without_effect,
)
from elstm.records.find import find_runs
from elstm.train import main

DEFAULTS = vars(TrainerConfig())


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "seed-7"),
        (["model=lstm", "data=digits", "experiment=mnist_rows", "seed=7"], "seed-7"),
        (["optimizer.lr=0.003", "optimizer=sgd"], "lr-0.003_optimizer-sgd_seed-7"),
        (["optimizer.lr=1", "optimizer.lr=2"], "lr-2_seed-7"),
        (["optimizer.lr=0.00312345678901"], "lr-0.003123_seed-7"),
        (["model.eps=1e-3", "optimizer.eps=1e-8"], "model.eps-1e-3_optimizer.eps-1e-8_seed-7"),
        (["model={hidden_size: 64}"], "model-hidden_size-64_seed-7"),
        (["++data.permute=true", "hydra.sweep.dir=x", "sweep.rerun=true"], "permute-true_seed-7"),
        (["trainer.progress=false", "data.root=/a=b", "trainer.threads=2"], "seed-7"),
        (
            ["trainer=gpu", "trainer.device=cpu", "model.backend=cpu", "trainer.profile=true"],
            "seed-7",
        ),
        (
            ["trainer=own", "trainer.compile=true", "trainer.precision=bf16"],
            "trainer-own_precision-bf16_seed-7",
        ),
        (["optimizer.lr='1,2=ä'", "data.label=a/b c"], "lr-1-2-_label-b-c_seed-7"),
    ],
)
def test_a_name_tells_what_a_run_changes(overrides: list[str], name: str) -> None:
    assert run_changes(overrides, 7) == name


def test_what_is_left_out_does_not_change_what_is_trained() -> None:
    """The list is data beside the fields; each new one is to be thought about."""
    outside = set(settings_outside_training())
    assert outside > set(settings_without_effect())
    assert sorted(outside - set(settings_without_effect())) == [
        "data.eval_batch_size", "model.backend", "model.recompute", "trainer.compile",
        "trainer.deterministic", "trainer.device", "trainer.profile",
    ]  # fmt: skip
    for name in TRAINERS:
        tree = yaml.safe_load((find_config_dir() / "trainer" / f"{name}.yaml").read_text())
        changed = {f"trainer.{key}" for key, value in tree.items() if value != DEFAULTS[key]}
        assert changed <= outside


def test_runs_whose_folder_names_the_device_are_found(
    training: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Earlier versions named the device."""
    main(["trainer.device=cpu"])
    (folder,) = Path("outputs").glob("*/*/seed-0/*")
    folder.parent.rename(folder.parent.with_name("device-cpu_seed-0"))
    assert main(["-m", "trainer.device=cpu", "seed=0"]) == 0
    assert "already done" in capsys.readouterr().out
    assert len(training.calls) == 1


def test_long_names_are_cut_and_stay_different() -> None:
    words = [f"model.gamma_{each}=0.12345" for each in ("ih", "hh", "c")]
    words += ["trainer.max_epochs=100", "data.batch_size=100"]
    first, second = (run_changes([*words, f"optimizer.beta2={b}"], 10**30) for b in (0.1, 0.2))
    assert first != second
    assert first.startswith("gamma_ih-0.12345_gamma_hh-0.12345_")
    assert max(len(first), len(second)) <= MAX_CHANGES + 26


def test_a_path_is_a_value_without_quotes(training: Any, tmp_path: Path) -> None:
    words = ["optimizer.lr=0.003", "model={hidden_size: 8}", "seed=1", "trainer.device=cpu"]
    assert main(words) == 0
    (folder,) = Path("outputs").glob("*/*/*/*")
    pattern = "outputs/digits/elstm_bn/lr-0.003_model-hidden_size-8_seed-1/[0-9a-f_-]+"
    assert re.fullmatch(pattern, folder.as_posix())
    assert re.fullmatch("[A-Za-z0-9._/-]+", folder.as_posix())
    override = OverridesParser.create().parse_override(f"trainer.resume={folder}")
    assert override.value() == folder.as_posix()
    assert main([f"trainer.resume={folder}"]) == 0
    assert [call.run_dir for call in training.calls] == [folder, folder]


def test_a_sweep_names_its_runs_as_single_runs_are_named(training: Any) -> None:
    assert main(["optimizer.lr=0.5", "seed=0"]) == 0
    assert main(["-m", "optimizer.lr=0.5", "seed=0,1", "model=lstm,elstm_bn"]) == 0
    names = sorted(str(path) for path in Path("outputs/digits").glob("*/*"))
    assert names == [
        f"outputs/digits/{model}/lr-0.5_seed-{seed}"
        for model in ("elstm_bn", "lstm")
        for seed in (0, 1)
    ]
    assert len(training.calls) == 4  # the first one is found


@pytest.mark.parametrize("answer", ["done", "interrupted"])
def test_runs_of_the_old_layout_are_found(
    training: Any, capsys: pytest.CaptureFixture[str], answer: str
) -> None:
    """DATA/MODEL/RUN, as earlier versions made it."""
    training.answer = lambda config: answer
    main(["model=lstm", "seed=1"])
    (folder,) = Path("outputs").glob("*/*/*/*")
    old = Path("outputs/digits/lstm") / folder.name
    folder.rename(old)
    shutil.rmtree(folder.parent)
    training.answer = lambda config: "done"
    assert main(["-m", "model=lstm", "seed=0,1"]) == 0
    assert "already done" in capsys.readouterr().out or answer == "interrupted"
    resumed = [call.run_dir for call in training.calls if call.resume]
    assert resumed == ([old] if answer == "interrupted" else [])
    found, _ = find_runs([Path("outputs/digits")])
    assert len(found) == 2
    assert main([f"trainer.resume={old}"]) == 0
