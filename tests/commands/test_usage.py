"""Wrong options give one message with the nearest name, and help fits 80 columns."""

from __future__ import annotations

from pathlib import Path

import pytest

from elstm.commands import evaluate, export, predict, report

COMMANDS = {
    "elstm-eval": evaluate.main,
    "elstm-predict": predict.main,
    "elstm-export": export.main,
    "elstm-report": report.main,
}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("elstm-eval", "the following arguments are required: RUN_DIR ("),
        ("elstm-predict", "the following arguments are required: RUN_DIR, FILE|FOLDER ("),
        ("elstm-export", "the following arguments are required: RUN_DIR ("),
        ("elstm-report", "the following arguments are required: RUN_OR_SWEEP_DIR ("),
        ("elstm-eval run --spilt val", "--spilt val; did you mean --split? ("),
        ("elstm-predict run a.png --recursiv", "--recursiv; did you mean --recursive? ("),
        ("elstm-eval run --split validation", "; did you mean val? ("),
        ("elstm-eval run --device gpu", "; did you mean cuda? ("),
        ("elstm-eval run --device xyz", "'mps') ("),
        ("elstm-predict run a.png --fitt", "--fitt; did you mean --fit? ("),
        ("elstm-export run --format ONNX", "; did you mean onnx? ("),
        ("elstm-report runs --bseline lstm", "--bseline lstm; did you mean --baseline? ("),
        ("elstm-report runs --figures time_steps", "all, none; did you mean time-steps? ("),
    ],
)
def test_a_wrong_option_gives_one_message(
    line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prog, *arguments = line.split()
    with pytest.raises(SystemExit) as exit:
        COMMANDS[prog](arguments)
    err = capsys.readouterr().err
    assert exit.value.code == 2
    assert err.startswith(f"{prog}: error: ")
    assert err.count("\n") == 1
    # Python 3.14 writes the choices without quotes.
    assert said.replace("'", "") in err.replace("'", ""), err


@pytest.mark.parametrize("prog", COMMANDS)
def test_help_fits_80_columns(
    prog: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as exit:
        COMMANDS[prog](["--help"])
    assert exit.value.code == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_a_file_in_the_place_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names the run or sweep that holds the file, if there is one."""
    monkeypatch.chdir(tmp_path)
    for folder in ("run/.hydra", "run/checkpoints", "sweep"):
        Path(folder).mkdir(parents=True)
    for file, near in (
        ("run/checkpoints/best.pt", "; did you mean run?"),
        ("run/metrics.csv", "; did you mean run?"),
        ("sweep/sweep.csv", "; did you mean sweep?"),
        ("notes.txt", "or folders that hold them"),
    ):
        Path(file).touch()
        assert report.main([file]) == 1
        assert capsys.readouterr().err.endswith(f"{near}\n")
