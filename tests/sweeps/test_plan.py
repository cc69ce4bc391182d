"""Which runs of a sweep are the same, which are finished, and who trains which."""

import dataclasses
import json
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from elstm.config.compose import Composer
from elstm.config.fields import leaf_values
from elstm.config.identity import identity
from elstm.config.run_config import load_run_config
from elstm.config.schema import settings_without_effect
from elstm.files.claims import Claims
from elstm.records.descriptions import hparams
from elstm.reporting.groups import IGNORED
from elstm.sweeps.plan import Grid
from elstm.train import main

OTHER = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v + 1.0, str: str.upper}


def changed(value):
    return OTHER[type(value)](value) if value is not None else 3


def test_one_list_of_settings_without_effect_serves_sweeps_reports_and_tensorboard():
    _, config = Composer().compose([])
    marked = settings_without_effect()
    assert set(marked) >= {
        "data.root", "sweep", "trainer.checkpoint_every", "trainer.log_every", "trainer.progress",
        "trainer.resume", "trainer.threads",
    }  # fmt: skip
    for name, node in vars(config).items():
        if name == "seed":
            continue
        for setting, value in leaf_values(node).items():
            if setting == "name":
                continue
            outer, _, inner = setting.partition(".")
            new = changed(value)
            if inner:
                new = dataclasses.replace(getattr(node, outer), **{inner: new})
            other = dataclasses.replace(config, **{name: dataclasses.replace(node, **{outer: new})})
            key = f"{name}.{setting}"
            same = key in marked or name in marked
            assert (identity(other) == identity(config)) == same, key
            assert (key in IGNORED or name in IGNORED) == same, key
            assert (key in hparams(other)) == (not same), key


def test_an_added_setting_leaves_the_identity_as_it_is():
    _, config = Composer().compose(["model=bn_lstm", "optimizer.lr=0.5"])

    @dataclasses.dataclass
    class Later(type(config.model)):
        later: int = 3

    later = Later(**dataclasses.asdict(config.model))
    assert identity(dataclasses.replace(config, model=later)) == identity(config)
    other = dataclasses.replace(later, later=4)
    assert identity(dataclasses.replace(config, model=other)) != identity(config)


PUBLISHED = [
    "model.gamma_ih=0.1", "model.gamma_hh=0.1", "model.gamma_c=0.1", "model.eps=1e-5",
    "model.forget_bias=1", "model.input_bias=0",
]  # fmt: skip


def test_runs_of_bn_lstm_with_the_published_settings_count_if_they_are_done(training, capsys):
    """Uses runs as experiment=mnist_pixels made them before model=bn_lstm_published existed."""
    training.answer = lambda c: RuntimeError("broken") if c.seed == 1 else "done"
    for seed in (0, 1):
        main(["model=bn_lstm", *PUBLISHED, f"seed={seed}"])
    earlier = training.calls[0].run_dir
    assert load_run_config(earlier).model.name == "bn_lstm"
    training.answer = lambda c: "done"
    assert main(["-m", "model=bn_lstm_published", "seed=0,1"]) == 0
    out = capsys.readouterr().out
    assert "[1/2] seed=0: already done" in out
    assert str(earlier) in out
    (again,) = training.calls[2:]  # resumed in no folder of another model
    assert (again.config.seed, again.resume) == (1, False)
    assert again.run_dir.parent.parent.name == "bn_lstm_published"


# --- several sweeps at the same time


@contextmanager
def claimed(*names):
    """While another process has the claims."""
    code = (
        "import sys; from pathlib import Path; from elstm.files.claims import Claims\n"
        "claims = Claims(Path('outputs/sweeps/.claims'))\n"
        "print([claims.claim(name) for name in sys.argv[1:]], flush=True); input()"
    )
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code, *names]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout.readline() == f"{[True] * len(names)}\n"
        yield
        process.communicate("\n")


def seeds(training):
    return [call.config.seed for call in training.calls]


def test_a_claim_is_one_process_s_until_it_ends(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    claims = Claims(Path("outputs/sweeps/.claims"))
    with claimed("a", "b"):
        assert [claims.claim(name) for name in "abc"] == [False, False, True]
    assert claims.claim("a")
    with claimed("b"):
        assert not claims.claim("b")
    claims.release("a")
    with claimed("a"):
        assert not claims.claim("a")
    claims.close()
    assert Path("outputs/sweeps/.claims").stat().st_size == 0


@pytest.mark.parametrize("together", [False, True])
def test_a_run_of_another_sweep_is_left_alone(training, capsys, monkeypatch, together):
    if together:
        monkeypatch.setattr("elstm.sweeps.launch.IN_THIS_PROCESS", ())
    name = identity(Composer().compose(["seed=1"])[1])
    with claimed(name):
        assert main(["-m", "seed=0,1,2"]) == 0
    assert seeds(training) == [0, 2]
    out = capsys.readouterr().out
    assert "seed=1: locked by another process\n" in out  # without a folder that is not there
    assert main(["-m", "seed=0,1,2"]) == 0
    assert seeds(training) == [0, 2, 1]


def test_a_run_that_another_sweep_finished_meanwhile_is_skipped(training, capsys):
    assert main(["seed=1"]) == 0
    (folder,) = Path("outputs/digits/elstm_bn").glob("*/*")
    folder.rename("elsewhere")

    def answer(config):
        if config.seed == 0:  # the other sweep ends seed 1 while this one trains seed 0
            Path("elsewhere").rename(folder)
        return "done"

    training.answer = answer
    assert main(["-m", "seed=0,1"]) == 0
    assert seeds(training) == [1, 0]
    assert "[2/2] seed=1: already done" in capsys.readouterr().out


def test_outputs_that_is_a_file_is_one_error_message(training, capsys):
    Path("outputs").touch()
    for words in (["seed=0,1"], ["hydra/sweeper=optuna", "optimizer.lr=interval(1,2)"]):
        assert main(["-m", *words]) == 1
        err = capsys.readouterr().err
        assert re.search("cannot write .*outputs.*: Not a directory", err)
        assert "bug" not in err
        assert err.count("\n") == 1
    assert not training.calls


@pytest.mark.slow
def test_two_sweeps_started_at_once_share_the_runs(tmp_path):
    command = [
        sys.executable, "-m", "elstm.train", "-m", "seed=range(6)", "trainer.max_epochs=1",
        "data.batch_size=256", "model.hidden_size=8", "trainer.device=cpu", "model=lstm",
    ]  # fmt: skip
    pipe = subprocess.PIPE
    sweeps = [
        subprocess.Popen(command, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True)
        for _ in range(2)
    ]
    ended = [(*sweep.communicate(timeout=500), sweep.returncode) for sweep in sweeps]
    assert [(err, code) for _, err, code in ended] == [("", 0)] * 2
    found = [json.loads(p.read_text()) for p in tmp_path.glob("outputs/digits/*/*/*/status.json")]
    assert sorted((s["seed"], s["state"]) for s in found) == [(seed, "done") for seed in range(6)]
    assert {s["pid"] for s in found} == {sweep.pid for sweep in sweeps}
    logs = [p.read_text() for p in tmp_path.glob("outputs/digits/*/*/*/train.log")]
    assert all(text.count("training with seed") <= 1 for text in logs)


def test_a_run_in_several_processes_is_another_run(training):
    """A step of such a run has the batches of all processes."""
    assert main(["seed=1"]) == 0
    (path,) = Path("outputs/digits/elstm_bn").glob("*/*/status.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "processes": 4}))
    assert main(["-m", "seed=1"]) == 0
    assert main(["-m", "seed=1"]) == 0
    assert seeds(training) == [1, 1]


def test_hydra_mode_starts_a_sweep_with_or_without_plus_signs(training):
    assert main(["++hydra.mode=MULTIRUN", "seed=1,2"]) == 0
    assert seeds(training) == [1, 2]


def test_other_images_of_a_published_set_are_trained_on(training, monkeypatch):
    """Nothing is known of the images of earlier versions, or where files are missing."""
    found = {"content": "aa"}
    monkeypatch.setattr("elstm.data.load.images_checksum", lambda options: found["content"])
    command = ["-m", "data=mnist", "seed=1", "trainer.device=cpu"]
    assert main(command) == 0
    (path,) = Path("outputs/mnist").glob("*/*/*/status.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "data_content": "aa"}))
    for content, runs in (("aa", 1), (None, 1), ("bb", 2)):
        found["content"] = content
        assert main(command) == 0
        assert seeds(training) == [1] * runs


@pytest.mark.parametrize(
    ("words", "runs"),
    [
        (["++seed=1,2", "seed=5"], [["seed=5"]]),
        (["seed=5", "++seed=1,2"], [["++seed=1"], ["++seed=2"]]),
        (["model.eps=1,2", "seed=3", "model={eps: 4}"], [["seed=3", "model={eps:4}"]]),
    ],
)
def test_the_last_override_of_a_key_counts(words, runs):
    composer = Composer()
    grid = Grid(composer, None, composer.parse(words, sweep=True), Path())
    assert [job.overrides for job in grid.jobs] == list(map(tuple, runs))
