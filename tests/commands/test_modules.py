"""`python -m elstm.predict` and its kin run the commands, with their exit codes."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

COMMANDS = {
    "predict": ("elstm-predict", ["gone", "a.png"], "there is no run folder gone"),
    "evaluate": ("elstm-eval", ["gone"], "there is no run folder gone"),
    "export": ("elstm-export", ["gone"], "there is no run folder gone"),
    "report": ("elstm-report", ["gone"], "gone"),
    "train": ("elstm-train", ["model=gone"], "gone"),
}


@pytest.mark.parametrize("package", ["elstm", "elstm.commands"])
@pytest.mark.parametrize("name", COMMANDS)
# The module may have been imported by another test already, which runpy remarks.
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_modules_run_their_commands(
    name: str,
    package: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if (package, name) == ("elstm.commands", "train"):
        pytest.skip("elstm-train is elstm.train alone")
    prog, words, message = COMMANDS[name]
    monkeypatch.chdir(tmp_path)
    for arguments, code in ((["--help"], 0), (words, 1)):
        monkeypatch.setattr(sys, "argv", ["module", *arguments])
        with pytest.raises(SystemExit) as exit:
            runpy.run_module(f"{package}.{name}", run_name="__main__", alter_sys=True)
        assert (exit.value.code or 0) == code
        captured = capsys.readouterr()
        if code:
            assert captured.err.startswith(f"{prog}: error: ")
            assert message in captured.err
        else:
            assert prog in captured.out
    assert not list(tmp_path.iterdir())
