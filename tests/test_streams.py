"""Closed streams, readers that leave, odd terminals and names, signals, and ~ in paths."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_sets import own_process

from elstm import cli
from elstm.config.overrides import with_home
from elstm.errors import UserError
from elstm.records.status import Status, read_status
from elstm.sweeps.job import run_log
from elstm.train import main

REPOSITORY = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell and signals")
# A fake run that prints and logs; the commands around it are the real ones.
FAKE = """if True:
    import logging, os, sys, types
    def run(config, run_dir, **_):
        for i in range(200):
            logging.getLogger("elstm").info("line %d", i)
            print("progress", i, file=sys.stderr)
        (run_dir / "status.json").write_text('{"step": 1}')
        with (run_dir / "metrics.csv").open("w") as file:
            os.system("echo a library writes >&2")
            file.write("a,b")
        return types.SimpleNamespace(state="done", best_val_accuracy=0.5, signal=None)
    module = types.ModuleType("elstm.training.run")
    module.run = run
    sys.modules["elstm.training.run"] = module
    from elstm.train import main
    sys.exit(main(sys.argv[1:]))
"""


def shell(line, folder):
    """A command line in which PY is python and FAKE the program above."""
    line = line.replace("PY", f"'{sys.executable}'").replace("FAKE", '-c "$FAKE"')
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"], cwd=folder, text=True, capture_output=True,
        timeout=60, env={**os.environ, "PYTHONPATH": str(REPOSITORY), "FAKE": FAKE},
    )  # fmt: skip


@pytest.mark.parametrize(
    "redirect", ["2>&-", ">&-", "<&- >&- 2>&-", "| head -1", "2>&1 | head -1", "> /dev/full"]
)
def test_a_run_outlasts_its_streams(tmp_path, redirect):
    done = shell(f"PY FAKE hydra.run.dir=x {redirect}", tmp_path)
    full = redirect.endswith("full")
    assert done.returncode == (1 if full else 0)
    if full:
        (line,) = [line for line in done.stderr.splitlines() if "error" in line]
        assert line == "elstm-train: error: cannot write standard output: No space left on device"
    assert "Traceback" not in done.stderr
    assert "Logging error" not in done.stderr
    assert "line 199" in (tmp_path / "x" / "train.log").read_text()
    assert (tmp_path / "x" / "metrics.csv").read_text() == "a,b"


@pytest.mark.parametrize("module", ["train", "evaluate", "export", "predict", "report"])
def test_help_outlasts_its_streams(tmp_path, module):
    folder = "" if module == "train" else "commands."
    run = f"PY -c 'import sys; from elstm.{folder}{module} import main; sys.exit(main())' --help"
    done = shell(f"({run} | true) && {run} >&- && {run} <&- 2>&- | head -1", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1


def test_the_streams_of_a_caller_are_left_alone(capsys):
    before = sys.stdout
    assert cli.command("elstm-x", lambda: print("here") or 0) == 0
    assert sys.stdout is before
    assert capsys.readouterr().out == "here\n"


ODD = """
import sys
from elstm import cli
sys.exit(cli.command("x", lambda: print("\\u03b3 \\udcff") or 0))
"""


def test_a_terminal_may_lack_characters():
    done = subprocess.run(
        [sys.executable, "-c", ODD], capture_output=True,
        env={**own_process(), "PYTHONIOENCODING": "ascii"}, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, b"\\u03b3 \\udcff\n", b"")


def test_a_folder_whose_name_is_no_text(tmp_path, capsys, monkeypatch):
    # pytest would report what is logged, and pytest-xdist cannot send a text with such a name.
    for handler in logging.getLogger().handlers:
        monkeypatch.setattr(handler, "emit", lambda record: None)
    folder = tmp_path / os.fsdecode(b"w\xff")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("the file system takes only texts")
    with run_log(folder, on_terminal=False):
        logging.getLogger("elstm").info("in %s", folder)
    assert "w\\udcff" in (folder / "train.log").read_text(encoding="utf-8")
    Status(folder).update(error=str(folder))
    assert read_status(folder)["error"] == str(folder)
    assert capsys.readouterr().err == ""


def test_a_terminal_without_a_size(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with monkeypatch.context() as patch:  # pytest -vv needs the size, too
        patch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((0, 0)))
        fitted = cli.fitted("an error", sys.stderr)
    assert fitted == "an error"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(36, "File name too long", "abc"), "x: error: cannot use abc: File name too long"),
        (MemoryError(), "x: error: out of memory (MemoryError)"),
        (RuntimeError("CUDA out of memory."), "x: error: out of memory (RuntimeError: CUDA "),
        (ValueError("z"), "x: error: ValueError: z (a bug; ELSTM_TRACEBACK=1 shows where)"),
    ],
)
def test_which_errors_are_bugs(error, said, capsys):
    def body():
        raise error

    assert cli.command("x", body) == 1
    assert capsys.readouterr().err.startswith(said)


# --- signals

SIGNALLED = """if True:
    import os, signal, sys, time
    from elstm.cli import command
    from elstm.training.signals import StopSignals, Interrupted
    def body():
        with StopSignals() as signals:
            signals.graceful = True
            print("ready", flush=True)
            for _ in range(25):
                time.sleep(0.02)
                try:
                    signals.raise_if_requested()
                except Interrupted as interrupted:
                    print("saved by", interrupted, flush=True)
                    os.kill(os.getpid(), signal.SIGHUP)  # a second one changes nothing
                    return 0
        return 7
    sys.exit(command("elstm-x", body))
"""


@pytest.mark.parametrize("wrapper", [[], ["nohup"]])
def test_sighup_is_graceful_and_stays_ignored_under_nohup(wrapper, tmp_path):
    process = subprocess.Popen(
        [*wrapper, sys.executable, "-c", SIGNALLED], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate(timeout=60)
    assert (out, process.returncode) == (("", 7) if wrapper else ("saved by SIGHUP\n", 0))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_end_every_command(number, code, capsys):
    def body():
        os.kill(os.getpid(), number)
        time.sleep(5)
        return 0

    before = signal.signal(number, lambda *_: None)  # so that the test survives without a handler
    try:
        assert cli.command("elstm-x", body) == code
    finally:
        signal.signal(number, before)
    assert capsys.readouterr().err == f"elstm-x: interrupted by {number.name}\n"


# --- home


def test_a_signal_counts_where_a_library_fails_to_clean_up(capsys):
    def body():
        try:
            raise cli.Ended("SIGTERM")
        finally:
            [].remove(None)

    assert cli.command("prog", body) == 143
    assert capsys.readouterr().err == "prog: interrupted by SIGTERM\n"


@pytest.fixture
def home(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("ho me")
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.mark.parametrize("value", ["~/x", "'~/x'", '"~/x"'])
def test_a_run_goes_to_the_home_folder(training, home, value):
    assert main([f"hydra.run.dir={value}"]) == 0
    assert (home / "x" / "status.json").is_file()
    assert main(["-m", f"hydra.sweep.dir={value.replace('x', 'y')}", "seed=0,1"]) == 0
    assert len(list((home / "y" / "digits" / "elstm_bn").glob("*/*"))) == 2
    assert main([f"trainer.resume={value}"]) == 0
    assert len(training.calls) == 4
    assert (
        main(["data=mnist", f"data.root={value}", f"hydra.run.dir={value.replace('x', 'z')}"]) == 0
    )
    assert training.calls[-1].config.data.root == str(home / "x")
    assert list(Path().iterdir()) == []


def test_other_paths_of_the_command_lines(training, home, capsys):
    (home / "conf" / "experiment").mkdir(parents=True)
    (home / "conf" / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 5\n")
    words = ["--config-dir=~/conf", "experiment=mine", "hydra.run.dir=~/run"]
    assert main(words) == 0
    assert training.calls[0].config.seed == 5
    parser = cli.Parser()
    parser.add_run()
    args = parser.parse_args(["~/run", "--checkpoint=~/a.pt"])
    assert (args.run_dir, args.checkpoint) == (home / "run", str(home / "a.pt"))
    assert parser.parse_args(["x"]).checkpoint == "best"
    assert main(["hydra.run.dir=~nobody-of-this-name/x"]) == 1
    assert "hydra.run.dir=~nobody-of-this-name/x" in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_home_in_the_grammar_of_hydra(monkeypatch):
    monkeypatch.setenv("HOME", "/a b,'c")
    assert with_home(["data.root=~", "seed=~", "data.root=a~b"]) == [
        r"data.root=/a\ b\,'c", "seed=~", "data.root=a~b",
    ]  # fmt: skip
    assert with_home(["data.root='~/x',\"~/y\""]) == ['''data.root='/a b,\\'c/x',"/a b,'c/y"''']
    with pytest.raises(UserError):
        with_home(["data.root=~nobody-of-this-name"])


UNBUFFERED = """
import os, sys
from elstm.files.streams import lasting_streams
with lasting_streams():
    sys.stderr.write("1")
    sys.stdout.write("2")
    sys.stderr.write("3")
    sys.stdout.write("4")
    os._exit(0)  # flushes nothing
"""


def test_unbuffered_streams_stay_so():
    environment = {**own_process(), "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(
        [sys.executable, "-c", UNBUFFERED], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=environment, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout == b"1234"
