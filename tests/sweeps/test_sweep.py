"""Sweeps: checked first, one line for each run, skipped or resumed the second time."""

import csv
import io
import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from elstm.config.compose import Composer
from elstm.config.help import find_config_dir
from elstm.config.identity import identity
from elstm.config.overrides import OverrideParser
from elstm.errors import UserError
from elstm.sweeps import job
from elstm.sweeps import table as sweep_table
from elstm.sweeps.plan import Grid, Plan
from elstm.sweeps.table import JobResult
from elstm.train import main

SWEEP = ["-m", "model=lstm,elstm_bn", "seed=0,1", "optimizer.lr=0.1"]


def run_dirs():
    return sorted(p for p in Path("outputs").glob("*/*/*/*") if (p / ".hydra").is_dir())


def table():
    """The newest sweep.csv."""
    newest = max(Path("outputs/sweeps").iterdir())
    with (newest / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def trained(training):
    return [(c.config.model.name, c.config.seed) for c in training.calls]


def test_all_runs_in_folders_of_their_own(training, capsys):
    training.accuracy = lambda config: (
        0.9 if config.model.name == "lstm" else 0.8 + config.seed / 10
    )
    assert main(SWEEP) == 0
    assert trained(training) == [("lstm", 0), ("lstm", 1), ("elstm_bn", 0), ("elstm_bn", 1)]
    assert [call.run_dir for call in training.calls] == sorted(
        run_dirs(), key=lambda d: (d.parent.parent.name != "lstm", d.name)
    )
    name = r"outputs/digits/\w+/lr-0.1_seed-[01]/[\d_-]+-[0-9a-f]{6}"
    assert all(re.fullmatch(name, str(d)) for d in run_dirs())
    assert {p.name for p in Path("outputs").iterdir()} == {"digits", "sweeps"}
    assert [p.name for p in Path().iterdir()] == ["outputs"]
    for folder in run_dirs():
        assert (folder / "train.log").read_text().count("training with seed") == 1
        overrides = (folder / ".hydra" / "overrides.yaml").read_text()
        assert re.fullmatch(r"- model=\w+\n- seed=\d\n- optimizer.lr=0.1\n", overrides)

    out = capsys.readouterr().out
    first = training.calls[0].run_dir
    line = f"[1/4] model=lstm seed=0: done, validation 90.00%, test 90.00%, 1.5 s, {first}\n"
    assert line in out
    assert [row["seed"] + row["model"] for row in table()] == ["0lstm", "1lstm", "1elstm_bn",
                                                               "0elstm_bn"]  # fmt: skip
    last = out.splitlines()
    assert last[-7].split() == ["model", "seed", "state", "validation", "test", "seconds", "folder"]
    assert last[-3].split()[:5] == ["elstm_bn", "0", "done", "80.00%", "80.00%"]
    assert last[-2].endswith("/sweep.csv")
    assert table()[0]["run_dir"] == str(first)
    assert float(table()[0]["best_val_accuracy"]) == 0.9


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["seed=0,-1"], "seed=-1"),
        (["model=lstm,bn_lstm", "model.eps=1"], "model.eps: there is no such key"),
        (["data=digits,mnist", "data.pixels_per_step=28"], "does not divide the 64 pixels"),
        (["seed=range(0,1000000000000)"], "more than 10,000"),
        (["seed=range(0,2000)", "data.permute_seed=range(0,2000)"], "4,000,000 runs"),
        (["seed=range(3,3)"], "seed=range(3,3): holds no values"),
        (["seed=glob(*)"], "seed=glob(*): holds no values"),
        (["seed=range(0,1,0)"], "seed"),
        (["optimizer.lr=interval(0,1)"], "interval"),
        (["hydra.verbose=true,false"], "cannot vary Hydra's own"),
        (["sweep.rerun=true,false"], "one value"),
        (["model=lstm,_target_"], "refused"),
        (["trainer.resume=a,b"], "takes no flags"),
        (["hydra.sweep.dir=${nowhere}"], "hydra.sweep.dir"),
        (["hydra.launcher.n_jobs=2"], "hydra.launcher.n_jobs"),
    ],
)
def test_a_wrong_combination_is_found_before_the_first_run(training, capsys, words, said):
    assert main(["-m", *words]) == 1
    training.check_nothing_began(capsys.readouterr(), said)


def test_a_run_that_fails_does_not_stop_the_others(training, capsys):
    training.answer = lambda c: RuntimeError("broken") if c.seed == 0 else "done"
    assert main(["-m", "seed=0,1,2"]) == 1
    assert [call.config.seed for call in training.calls] == [0, 1, 2]
    out, err = capsys.readouterr()
    failed = training.calls[0].run_dir
    assert f"[1/3] seed=0: failed: broken, 1.5 s, {failed}\n" in out
    assert "Traceback" not in out + err
    assert "Traceback" in (failed / "train.log").read_text()
    assert [row["state"] for row in table()] == ["done", "done", "failed"]
    assert table()[2]["error"] == "broken"


def test_fail_fast_stops(training):
    training.answer = lambda c: RuntimeError("broken") if c.seed == 1 else "done"
    assert main(["-m", "seed=0,1,2", "sweep.fail_fast=true"]) == 1
    assert [c.config.seed for c in training.calls] == [0, 1]
    assert len(table()) == 2


def test_the_same_command_again_skips_what_is_done(training, capsys):
    assert main(SWEEP) == 0
    folders = run_dirs()
    capsys.readouterr()
    assert main(SWEEP) == 0
    assert len(training.calls) == 4
    assert run_dirs() == folders
    out = capsys.readouterr().out
    assert "[4/4] model=elstm_bn seed=1: already done" in out
    assert len(table()) == 4
    assert main([*SWEEP, "seed=0,1,2", "trainer.progress=false"]) == 0
    assert trained(training)[4:] == [("lstm", 2), ("elstm_bn", 2)]
    assert main([*SWEEP, "sweep.rerun=true"]) == 0
    assert len(training.calls) == 10
    assert all(not call.resume for call in training.calls)


def test_a_done_run_of_before_a_setting_was_removed_counts(training):
    """Checks that it counts if the setting had its default, and at no other value."""
    assert main(SWEEP) == 0
    for folder, value in zip(run_dirs(), ("stop", "stop", "skip", "stop"), strict=True):
        path = folder / ".hydra" / "config.yaml"
        text = path.read_text()
        path.write_text(text.replace("trainer:\n", f"trainer:\n  on_nonfinite: {value}\n"))
    training.calls.clear()
    assert main(SWEEP) == 0
    assert len(training.calls) == 1


def test_a_done_run_counts_though_a_later_one_like_it_failed(training):
    assert main(["seed=1"]) == 0
    training.answer = lambda c: RuntimeError("broken")
    assert main(["seed=1"]) == 1
    assert main(["-m", "seed=1"]) == 0
    assert len(training.calls) == 2


def test_unfinished_runs_go_on_in_their_folders(training, capsys):
    training.answer = lambda c: RuntimeError("full disk") if c.seed == 1 else "done"
    assert main(["-m", "seed=0,1"]) == 1
    failed = training.calls[1].run_dir
    config = (failed / ".hydra" / "config.yaml").read_bytes()
    hydra = (failed / ".hydra" / "hydra.yaml").read_bytes()
    training.answer = lambda c: "done"
    capsys.readouterr()
    assert main(["-m", "seed=0,1"]) == 0
    again = training.calls[2]
    assert (again.config.seed, again.resume, again.run_dir) == (1, True, failed)
    assert (failed / ".hydra" / "config.yaml").read_bytes() == config
    assert (failed / ".hydra" / "hydra.yaml").read_bytes() == hydra
    assert len(run_dirs()) == 2
    assert (failed / "train.log").read_text().count("training with seed 1") == 2
    assert "seed=1, resumes (failed)" in capsys.readouterr().out


def test_a_run_killed_before_its_first_word_goes_on_too(training):
    assert main(["seed=3"]) == 0
    (run_dirs()[0] / "status.json").unlink()
    assert main(["-m", "seed=3"]) == 0
    assert training.calls[1].resume
    assert len(run_dirs()) == 1


def test_a_run_that_another_process_trains_is_left_alone(training, capsys):
    assert main(["seed=3"]) == 0
    (folder,) = run_dirs()
    (folder / "status.json").write_text('{"state": "running"}')
    hold = (
        f"import fcntl; f = open('{folder}/metrics.csv', 'ab'); fcntl.lockf(f, 2); print(); input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        holder.stdout.readline()
        assert main(["-m", "seed=3"]) == 0
        holder.stdin.close()
    assert len(training.calls) == 1
    assert f"[1/1] the run: locked by another process, {folder}" in capsys.readouterr().out
    assert main(["-m", "seed=3"]) == 0
    assert training.calls[1].resume


def test_single_runs_never_skip(training):
    assert main(["seed=3"]) == 0
    assert main(["seed=3"]) == 0
    assert len(run_dirs()) == 2


def test_a_run_of_other_code_is_noted(training, capsys, monkeypatch):
    monkeypatch.setattr("elstm.sweeps.sweep.git_state", lambda: {"git_commit": "1" * 40})
    assert main(["-m", "seed=0"]) == 0
    capsys.readouterr()
    assert main(["-m", "seed=0"]) == 0
    assert "already done at commit 0000000, the code is now at 1111111" in capsys.readouterr().out


def test_a_run_that_had_other_defaults_trains_again_with_the_reason(training, capsys):
    assert main(["-m", "seed=0"]) == 0
    (config,) = Path().rglob("config.yaml")
    config.write_text(config.read_text().replace("lr: 0.01", "lr: 0.003"))
    capsys.readouterr()
    assert main(["-m", "seed=0"]) == 0
    assert len(training.calls) == 2
    reason = "optimizer.lr was 0.003 and is 0.01"
    why = f"trains again, because {reason} (compared with {config.parts[-3]})"
    assert why in capsys.readouterr().out
    assert main(["-m", "seed=0"]) == 0
    assert len(training.calls) == 2
    assert main(["-m", "seed=0", "sweep.rerun=true"]) == 0
    assert "trains again" not in capsys.readouterr().out


def test_a_run_that_turns_out_to_be_extended_is_no_result(training, capsys, monkeypatch):
    """A kill while an extension begins leaves it in the checkpoint alone."""

    def extended(config, run_dir, **options):
        result = training.run(config, run_dir, **options)
        path = run_dir / "status.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "extensions": [{"step": 3}]}))
        return result

    monkeypatch.setattr(sys.modules["elstm.training.run"], "run", extended)
    assert main(["-m", "seed=0"]) == 1
    assert "failed: the run was extended" in capsys.readouterr().out


def test_an_interrupt_ends_the_sweep_and_the_same_command_goes_on(training, capsys):
    training.answer = lambda c: "interrupted" if c.seed == 1 else "done"
    assert main(["-m", "seed=0,1,2"]) == 143
    out, err = capsys.readouterr()
    assert err == ""
    assert out.rstrip().endswith("run the same command again to resume")
    assert [row["state"] for row in table()] == ["done", "interrupted"]
    training.answer = lambda c: "done"
    assert main(["-m", "seed=0,1,2"]) == 0
    assert [(c.config.seed, c.resume) for c in training.calls[2:]] == [(1, True), (2, False)]


def test_a_signal_at_the_end_of_a_run_ends_the_sweep(training, capsys):
    training.late_signal = "SIGINT"
    assert main(["-m", "seed=0,1,2"]) == 130
    assert capsys.readouterr().out.rstrip().endswith("run the same command again to resume")
    assert [(row["seed"], row["state"]) for row in table()] == [("0", "done")]
    assert len(training.calls) == 1
    assert main(["seed=3"]) == 0  # a single run is complete


def test_an_experiment_may_hold_its_sweep(training, tmp_path_factory, monkeypatch):
    conf = tmp_path_factory.mktemp("conf") / "conf"
    shutil.copytree(find_config_dir(), conf)
    (conf / "experiment" / "seeds.yaml").write_text(
        "# @package _global_\nhydra:\n  sweeper:\n    params:\n      seed: 0,1\n"
    )
    monkeypatch.setattr("elstm.config.compose.find_config_dir", lambda: conf)
    assert main(["-m", "experiment=seeds", "model=lstm"]) == 0
    assert trained(training) == [("lstm", 0), ("lstm", 1)]
    assert main(["-m", "experiment=seeds", "seed=2"]) == 0  # the command line has the last word
    assert trained(training)[2:] == [("elstm_bn", 2)]


def test_runs_go_where_hydra_sweep_dir_says(training):
    assert main(["-m", "seed=0,1", "hydra.sweep.dir=else where"]) == 0
    assert {p.name for p in Path().iterdir()} == {"else where"}
    assert all(str(c.run_dir).startswith("else where/digits/elstm_bn/") for c in training.calls)


def combinations(*words):
    composer, root = Composer(), Path("outputs")
    overrides = composer.parse(words, sweep=True)
    planned = Plan(composer, overrides, root)
    return [planned.run(job) for job in Grid(composer, None, overrides, root).jobs]


def test_all_ways_of_giving_several_values():
    runs = combinations(
        "model=glob(bn_*,exclude=*published)", "seed=range(2)", "optimizer.lr=choice(1,2)"
    )
    assert [tuple(run.varied.values()) for run in runs] == [
        (model, seed, lr)
        for model in ("bn_lstm", "bn_lstm_gates", "bn_lstm_input")
        for seed in "01"
        for lr in "12"
    ]


def test_equal_combinations_are_one_run(training, capsys):
    assert main(["-m", "seed=0,0,1", "model.gamma_c=1,1.0"]) == 0
    assert [call.config.seed for call in training.calls] == [0, 1]
    assert "[2/2] seed=1 model.gamma_c=1: done" in capsys.readouterr().out


def test_what_makes_a_run_the_same():
    def key(*words):
        return identity(Composer().compose(["data=mnist", *words])[1])

    base = key()
    for word in ("sweep.rerun=true", "trainer.threads=2", "trainer.progress=false", "data.root=x"):
        assert key(word) == base
    for word in ("seed=1", "model.eps=1", "trainer.max_epochs=11", "data.permute=true"):
        assert key(word) != base


def test_each_of_many_runs_has_a_folder_of_its_own():
    runs = combinations(
        "model=lstm,elstm_bn", "seed=range(20)", "optimizer.lr=1e-4,1e-3,3e-3,0.01,0.1"
    )
    assert len(runs) == 200
    assert len({run.folder for run in runs}) == 200


def test_a_result_without_a_status_has_failed(tmp_path):
    result = sweep_table.read_result({}, tmp_path)
    assert result.state == "failed"
    assert "see the log" in result.summary()
    (tmp_path / "status.json").write_text('{"state": "running", "best_val_accuracy": "x"}')
    assert sweep_table.read_result({"seed": "1"}, tmp_path).state == "killed"
    assert sweep_table.read_result({}, tmp_path, "no memory").state == "failed"
    for state, listed in (("done", "done"), ("interrupted", "failed"), ("pruned", "pruned")):
        (tmp_path / "status.json").write_text(json.dumps({"state": state, "error": "no data"}))
        assert sweep_table.read_result({}, tmp_path).state == listed
    (tmp_path / "status.json").write_text('{"state": "running"}')
    assert "seed" in sweep_table.table([sweep_table.read_result({"seed": "1"}, tmp_path)])


def test_a_table_that_cannot_be_written_is_said(tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        sweep_table.write_csv(tmp_path / "no" / "sweep.csv", [])


@pytest.mark.parametrize("name", ["joblib", "submitit_slurm", "slurm"])
def test_a_launcher_that_is_not_installed(training, capsys, monkeypatch, name):
    monkeypatch.setattr(OverrideParser, "options", lambda self, group: ["basic", "slurm"])
    assert main(["-m", f"hydra/launcher={name}"]) == 1
    extra = "joblib" if name == "joblib" else "submitit"
    assert capsys.readouterr().err == (
        f"elstm-train: error: hydra/launcher={name} needs a package: pip install 'elstm[{extra}]'\n"
    )


def test_the_end_names_the_report_and_the_reason_of_a_failure(training, capsys):
    training.answer = lambda config: RuntimeError("no luck " * 20) if config.seed else "done"
    assert main(["-m", "seed=0,1"]) == 1
    *_, head, _, failed, path, report = capsys.readouterr().out.splitlines()
    assert report == f"report: elstm-report {path.removesuffix('/sweep.csv')}"
    assert head.split()[-1] == "reason"
    assert " failed " in failed
    assert "no luck" in failed
    assert failed.endswith("...")


def test_a_run_that_fails_at_its_start_leaves_no_folder(training, capsys):
    """Checks that no folder of its changes is left, and that earlier folders stay."""
    kept = Path("outputs/digits/lstm/lr-1_seed-0")
    kept.mkdir(parents=True)

    def answer(config):
        training.step = 0 if config.optimizer.lr == 1 else 7
        return UserError("no luck") if config.optimizer.lr == 1 else "done"

    training.answer = answer
    assert main(["-m", "optimizer.lr=0.5,1", "model=lstm,gru"]) == 1
    names = sorted(str(p.relative_to("outputs/digits")) for p in Path("outputs").glob("digits/*/*"))
    assert names == ["gru/lr-0.5_seed-0", "lstm/lr-0.5_seed-0", "lstm/lr-1_seed-0"]
    failed = [line for line in capsys.readouterr().out.splitlines() if "failed: " in line]
    assert len(failed) == 2
    assert all(line.endswith("failed: no luck") for line in failed)


def test_a_table_fits_a_terminal(tmp_path):
    long = {"model.hidden_size": "65000", "optimizer.weight_decay": "0.001", "data.batch_size": "8"}
    results = [
        JobResult({**long, "seed": "0"}, tmp_path / ("x" * 60), {"state": "done"}),
        JobResult({**long, "seed": "1"}, tmp_path, {"state": "failed", "error": "no luck " * 15}),
    ]
    lines = sweep_table.table(results, 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split()[:3] == ["hidden_size", "weight_decay", "batch_size"]
    assert " ".join(lines[3:]).split() == ["no", "luck"] * 15
    assert sweep_table.table(results).splitlines()[0].endswith("reason")


def test_log_lines_fit_a_terminal(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    record = logging.LogRecord("x", logging.INFO, "", 0, "word " * 40 + "a/" * 60, (), None)
    assert job._Wrapped().format(record) == record.getMessage()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    *lines, path = job._Wrapped().format(record).splitlines()
    assert max(map(len, lines)) <= 80
    assert path.strip() == "a/" * 60
