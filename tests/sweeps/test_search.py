"""Searches over ranges: typed and checked first, pruned, and gone on with by the same command."""

import csv
import json
import math
import shutil
import statistics
from pathlib import Path

import pytest

pytest.importorskip("optuna")
from hydra.core.plugins import Plugins
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from elstm.config.compose import Composer
from elstm.errors import UserError
from elstm.sweeps.search import Pruning, repair
from elstm.sweeps.search_space import Space
from elstm.train import main

LR = "optimizer.lr=tag(log,interval(1e-4,1e-1))"


def search(*words, trials=4):
    return main(["-m", "hydra/sweeper=optuna", f"hydra.sweeper.n_trials={trials}", *words])


def table():
    """The newest sweep.csv."""
    newest = max(Path("outputs/sweeps").iterdir())
    with (newest / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def near(config):
    """An accuracy that is best at a learning rate of 1e-2."""
    return 1 - abs(math.log10(config.optimizer.lr) + 2) / 4


def test_trials_are_runs_like_others_and_the_command_goes_on(training, capsys):
    training.accuracy = near
    words = [LR, "model=lstm,elstm_bn", "model.hidden_size=interval(4,64)", "seed=3"]
    assert search(*words) == 0
    assert len(training.calls) == 4
    for call in training.calls:
        config = call.config
        assert 1e-4 <= config.optimizer.lr <= 1e-1
        assert float(f"{config.optimizer.lr:.4g}") == config.optimizer.lr
        assert 4 <= config.model.hidden_size <= 64
        assert (config.seed, call.resume) == (3, False)
        assert call.run_dir.parent.parent == Path("outputs/digits") / config.model.name
    assert len({c.config.optimizer.lr for c in training.calls}) == 4
    rates = [float(row["optimizer.lr"]) for row in table()]
    assert rates == sorted(rates, key=lambda lr: abs(math.log10(lr) + 2))
    capsys.readouterr()

    assert search(*words, trials=6) == 0
    assert len(training.calls) == 6
    assert capsys.readouterr().out.count("already done") == 4
    assert len(table()) == 6
    assert search(*words, trials=2) == 0
    assert len(training.calls) == 6
    (journal,) = Path("outputs/studies").glob("digits-*/journal.log")
    assert all(json.loads(line) for line in journal.read_text().splitlines())
    assert search(*words, "data.batch_size=64", trials=1) == 0
    assert len(list(Path("outputs/studies").iterdir())) == 2  # another search has another study


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp"])
def test_a_continued_search_draws_new_values(training, sampler):
    training.accuracy = near
    for trials in (2, 4):
        assert search(LR, f"hydra.sweeper.sampler={sampler}", trials=trials) == 0
    assert len({c.config.optimizer.lr for c in training.calls}) == 4


@pytest.mark.slow
def test_tpe_goes_where_accuracy_is(training):
    """Ten random trials are the same whatever comes out; what follows depends on it."""
    missed = []
    for accuracy, words in ((near, ()), (lambda c: 0.9 - near(c), ("data.batch_size=64",))):
        training.calls.clear()
        training.accuracy = accuracy
        assert search(LR, *words, "hydra.sweeper.pruner=none", trials=20) == 0
        missed.append([abs(math.log10(c.config.optimizer.lr) + 2) for c in training.calls])
    assert missed[0][:10] == missed[1][:10]
    assert statistics.median(missed[0][10:]) < statistics.median(missed[1][10:]) / 2


def test_bad_trials_are_pruned_which_is_no_failure(training, capsys):
    training.accuracy = lambda c: 0.9 - len(training.calls) / 100
    assert search(LR, "hydra.sweeper.startup_trials=2") == 0
    assert [row["state"] for row in table()] == ["done", "done", "pruned", "pruned"]
    capsys.readouterr()
    assert search(LR, "hydra.sweeper.startup_trials=2") == 0
    assert len(training.calls) == 4
    assert capsys.readouterr().out.count("already pruned") == 2
    rate = table()[-1]["optimizer.lr"]
    assert main(["-m", f"optimizer.lr={rate}"]) == 0  # a grid wants it whole
    assert training.calls[-1].resume
    assert table()[0]["state"] == "done"


def test_the_warm_up_prunes_nothing(training):
    """Checks that the first epochs are exempt, which Optuna counts from 0."""
    training.accuracy = lambda c: 0.9 - len(training.calls) / 100
    for warmup, last in ((1, 2), (2, 3)):
        words = [LR, "hydra.sweeper.startup_trials=1", f"seed={warmup}"]
        words += [f"hydra.sweeper.warmup_epochs={warmup}", f"hydra.sweeper.study_name=w{warmup}"]
        epochs = []
        answer = Pruning.__call__

        def noted(self, epoch, accuracy, answer=answer, epochs=epochs):
            pruned = answer(self, epoch, accuracy)
            epochs.append((epoch, pruned))
            return pruned

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Pruning, "__call__", noted)
            assert (
                search(LR, "hydra.sweeper.startup_trials=1", *words, f"seed={warmup}", trials=2)
                == 0
            )
        assert [epoch for epoch, pruned in epochs if pruned][:1] == [last]


def test_ended_trials_without_folders_keep_their_ends(training):
    """As after their folders were packed into an archive elsewhere, and deleted."""
    training.accuracy = lambda c: 0.9 - len(training.calls) / 100
    words = (LR, "hydra.sweeper.startup_trials=2")
    assert search(*words) == 0
    before = [(row["state"], row["best_val_accuracy"]) for row in table()]
    shutil.rmtree("outputs/digits")
    assert search(*words) == 0
    assert len(training.calls) == 4
    after = [(row["state"], row["best_val_accuracy"]) for row in table()]
    assert [state for state, _ in after] == ["done", "done", "pruned", "pruned"]
    assert after[:2] == before[:2]


def test_failed_trials_are_trials(training):
    training.answer = lambda c: RuntimeError("broken") if len(training.calls) == 2 else "done"
    assert search(LR) == 1
    assert [row["state"] for row in table()] == ["done", "done", "done", "failed"]
    assert search(LR) == 1
    assert len(training.calls) == 4


def test_an_interrupted_trial_is_taken_up_again(training):
    training.answer = lambda c: "interrupted" if len(training.calls) == 2 else "done"
    assert search(LR) == 143
    assert len(training.calls) == 2
    assert search(LR) == 0
    assert training.calls[2].resume
    assert training.calls[2].run_dir == training.calls[1].run_dir
    assert len(training.calls) == 5
    assert [row["state"] for row in table()] == ["done"] * 4


def test_several_trials_together(training, monkeypatch):
    launched = []
    monkeypatch.setattr("elstm.sweeps.launch.IN_THIS_PROCESS", ())

    def launch(self, jobs, initial_job_idx):
        launched.append(len(jobs))
        return original(self, jobs, initial_job_idx)

    name = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
    launcher = Plugins.instance().class_name_to_class[name]
    original = launcher.launch
    monkeypatch.setattr(launcher, "launch", launch)
    assert search(LR, "hydra.sweeper.n_jobs=3", trials=5) == 0
    assert launched == [3, 2]
    assert [row["state"] for row in table()] == ["done"] * 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["optimizer.lr=interval(-1,1)"], "optimizer.lr=-1.0: has to be a number above 0"),
        (["data.batch_size=interval(2,5000)"], "data.batch_size=5000"),
        (["model.hidden_size=interval(4.5,8)"], "model.hidden_size=4.5"),
        (["model.recurrent_init=interval(1,2)"], "model.recurrent_init"),
        (["model=lstm,bn_lstm", "model.eps=interval(0.1,1)"], "model.eps"),
        (["optimizer.lr=interval(1,0.1)"], "from a number to a higher one"),
        (["model.gamma_c=tag(log,interval(0,1))"], "above 0"),
        (["seed=0"], "needs a range or a choice"),
        (["sweep.fail_fast=true,false"], "one value"),
        ([LR, "sweep.rerun=true"], "sweep.rerun"),
        ([LR, "hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0: has to be an integer"),
        ([LR, "hydra.sweeper.n_trials=some"], "hydra.sweeper.n_trials"),
        ([LR, "hydra.sweeper.sampler=best"], "has to be one of tpe, gp, random"),
        ([LR, "hydra.sweeper.study_name=../up"], "hydra.sweeper.study_name=../up"),
        ([LR, "hydra.sweeper.storage=x"], "hydra.sweeper.storage"),
        ([LR, "hydra.sweeper._target_=os.system"], "refused"),
    ],
)
def test_what_is_wrong_is_found_before_the_first_trial(training, capsys, words, said):
    assert search(*words[:1], *words[1:]) == 1
    training.check_nothing_began(capsys.readouterr(), said)


def test_a_named_study_takes_no_other_search(training, capsys):
    assert search(LR, "hydra.sweeper.study_name=mine", trials=1) == 0
    assert search(LR, "hydra.sweeper.study_name=mine", trials=2) == 0
    assert len(training.calls) == 2
    assert search(LR, "seed=1", "hydra.sweeper.study_name=mine", trials=3) == 1
    assert "another config" in capsys.readouterr().err


def space(*words):
    composer = Composer()
    return Space(composer, composer.parse(words, sweep=True))


def test_ranges_have_the_types_of_the_config():
    found = space("model.hidden_size=interval(4,64)", "optimizer.lr=interval(1,2)",
                  "data.batch_size=range(16,129,16)", "model.gamma_c=tag(log,interval(0.1,1))",
                  "seed=1,2")  # fmt: skip
    assert found.distributions == {
        "model.hidden_size": IntDistribution(4, 64),
        "optimizer.lr": FloatDistribution(1, 2),
        "data.batch_size": IntDistribution(16, 128, step=16),
        "model.gamma_c": FloatDistribution(0.1, 1, log=True),
        "seed": CategoricalDistribution(["1", "2"]),
    }
    text = found.texts({"model.hidden_size": 5, "optimizer.lr": 1.23456789, "seed": "2"})
    assert text == {"model.hidden_size": "5", "optimizer.lr": "1.235", "seed": "2"}
    narrow = space("optimizer.lr=interval(0.12345,0.12346)")
    assert narrow.texts({"optimizer.lr": 0.123455}) == {"optimizer.lr": "0.12346"}  # never outside
    with pytest.raises(UserError, match="takes integers"):
        space("seed=interval(0,2.5)")


def test_a_half_written_line_of_the_journal_is_cut_off(tmp_path):
    journal = tmp_path / "journal.log"
    repair(journal)
    for text, left in (('{"a":1}\n{"b"', '{"a":1}\n'), ('{"a":1}\n', '{"a":1}\n'), ("{", "")):
        journal.write_text(text)
        repair(journal)
        assert journal.read_text() == left


def test_a_range_that_a_later_override_replaces_is_none():
    """Each trial would train with the later value, whatever the study chose."""
    composer = Composer()
    words = ["optimizer.lr=interval(1e-4,1e-1)", "++optimizer.lr=0.5"]
    with pytest.raises(UserError, match="needs a range or a choice"):
        Space(composer, composer.parse(words, sweep=True))
    space = Space(composer, composer.parse([f"++{LR}"], sweep=True))
    assert space.overrides(space.texts({"optimizer.lr": 0.01})) == ["++optimizer.lr=0.01"]
