"""Untrusted configs and environment variables run no code and stay small."""

from __future__ import annotations

from pathlib import Path

import pytest
from untrusted_runs import WORDS, refused_by_all

from elstm import train
from elstm.commands import evaluate, export, predict

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.mark.parametrize(("value", "loads"), [("stop", True), ("skip", False)])
def test_a_run_with_a_setting_that_was_removed(
    run: Path, image: Path, capsys: pytest.CaptureFixture[str], value: str, loads: bool
) -> None:
    """Checks that the run loads with the default, and that every command refuses other values."""
    path = run / ".hydra" / "config.yaml"
    path.write_text(path.read_text().replace("trainer:\n", f"trainer:\n  on_nonfinite: {value}\n"))
    if not loads:
        refused_by_all(run, image, capsys, "trainer.on_nonfinite=skip: this setting was removed")
        for command in (evaluate.main, export.main):
            assert command([str(run)]) == 1
            assert "supports it is d8d01eb" in capsys.readouterr().err
        return
    assert predict.main([str(run), str(image)]) == 0
    assert evaluate.main([str(run)]) == 0
    assert export.main([str(run)]) == 0
    assert train.main([f"trainer.resume={run}"]) == 0


EVIL = [
    "_target_: os.system",
    "x: {_target_: os.mkdir, _args_: [harm]}",
    "x: !!python/object/apply:os.mkdir [harm]",
    "x: !!python/object/new:os.mkdir [harm]",
    "x: !!python/name:os.system",
    "x: ${oc.env:HOME}",
    "x: ${oc.decode:'${oc.env:HOME}'}",
    "hydra: {callbacks: {x: {_target_: os.mkdir}}}",
]


@pytest.mark.parametrize("evil", EVIL)
def test_a_runs_config_runs_nothing(
    run: Path, image: Path, capsys: pytest.CaptureFixture[str], evil: str
) -> None:
    path = run / ".hydra" / "config.yaml"
    path.write_text(f"{path.read_text()}\n{evil}\n")
    refused_by_all(run, image, capsys, ".hydra")


def test_hydra_yaml_is_not_read(run: Path, image: Path) -> None:
    (run / ".hydra" / "hydra.yaml").write_text("\n".join(EVIL))
    (run / ".hydra" / "overrides.yaml").write_text("- hydra.callbacks.x._target_=os.mkdir\n" * 3)
    assert predict.main([str(run), str(image)]) == 0
    assert train.main([f"trainer.resume={run}"]) == 0


BOMB = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"a{i + 1}: &a{i + 1} [{','.join([f'*a{i}'] * 10)}]\n" for i in range(9)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "5,000 entries"),
        ("x" * 100_001, "larger than 100,000 bytes"),
        *((evil, "") for evil in EVIL),
    ],
)
def test_a_config_dir_runs_nothing_and_stays_small(
    run: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    folder = Path("extra/experiment")
    folder.mkdir(parents=True)
    (folder / "evil.yaml").write_text(f"# @package _global_\n{text}\n")
    for words in (["experiment=evil"], ["-m", "experiment=evil", "seed=0,1"]):
        assert train.main(["--config-dir", "extra", *words]) == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert said in err
        assert not Path("outputs").exists()


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE"])
def test_an_environment_that_is_no_number(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "x\x1b")
    assert train.main(WORDS) == 1
    err = capsys.readouterr().err
    assert f"{name}=x?, which has to be a" in err
    assert not Path("outputs").exists()


def test_a_data_root_of_the_environment_that_cannot_be(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELSTM_DATA", "x\x1b[31m${oc.env:HOME}")
    words = [word for word in WORDS if not word.startswith("data")]
    assert train.main([*words, "data=mnist"]) == 1
    err = capsys.readouterr().err
    assert "data.root" in err
    assert "\x1b" not in err
