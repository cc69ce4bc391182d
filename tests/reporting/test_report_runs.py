"""Reading runs for a report, damaged and hostile ones too."""

import json
import os

import numpy as np
import pytest
from synthetic_runs import write_run

from elstm.files.bounded import Damaged, parse_metrics, read_config, to_yaml
from elstm.records.stored import RunFolder
from elstm.reporting.runs import COLUMNS, load_run, load_runs


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "run", "elstm_bn", seed=3, epochs=2)


def metrics(folder, text):
    (folder / "metrics.csv").write_text(text)
    return load_run(RunFolder("run", folder))


def test_reads_what_a_run_wrote(folder):
    run = load_run(RunFolder("outputs/run", folder))
    status = json.loads((folder / "status.json").read_text())
    assert (run.path, run.model, run.data, run.seed) == (
        "outputs/run", "elstm_bn", "fashion_mnist", 3,
    )  # fmt: skip
    assert (run.state, run.epoch, run.parameters) == ("done", 2, 83_466)
    assert run.test_accuracy == status["test_accuracy"]
    assert run.validation.epoch.tolist() == [1, 2]
    assert run.best_val_accuracy == pytest.approx(status["best_val_accuracy"])
    assert run.val_accuracy_batch_stats == pytest.approx(status["val_accuracy_batch_stats"])
    assert run.config["optimizer.lr"] == 0.003


def test_training_loss_is_the_mean_over_each_epoch(folder):
    run = metrics(
        folder,
        "epoch,step,wall_seconds,train_loss,val_accuracy\n"
        "0.75,30,3,2.0,\n1.0,40,4,1.0,\n1.0,40,6,,0.5\n2.0,80,12,0.5,\n2.0,80,14,,0.6\n",
    )
    # The log points of epoch 1 cover 30 and 10 steps; the evaluation ends it at 6 s.
    assert run.loss.value.tolist() == [1.75, 0.5]
    assert run.loss.epoch.tolist() == [1, 2]
    assert run.loss.seconds.tolist() == [6, 14]
    assert run.validation.seconds.tolist() == [6, 14]


def test_an_epoch_that_is_going_on_has_no_loss_yet(tmp_path):
    folder = write_run(tmp_path / "run", state="running", epochs=5, until=2.5)
    run = load_run(RunFolder("run", folder))
    assert run.loss.epoch.tolist() == [1, 2]
    assert (run.state, run.test_accuracy) == ("running", None)


def test_a_line_that_is_being_written_is_left_out(folder):
    run = metrics(folder, "epoch,step,val_accuracy\n1,390,0.5\n2,780,0.")
    assert run.validation.value.tolist() == [0.5]


def test_a_resumed_epoch_counts_once_and_nan_is_nothing(folder):
    run = metrics(
        folder, "epoch,step,val_accuracy,train_loss\n1,9,0.5,nan\n1,9,0.6,inf\n2,18,nan,\n"
    )
    assert run.validation.value.tolist() == [0.6]
    assert len(run.loss) == 0


def test_a_run_without_metrics_is_read_until_it_is_done(folder):
    (folder / "metrics.csv").unlink()
    with pytest.raises(Damaged, match=r"no metrics\.csv"):
        load_run(RunFolder("run", folder))
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps({**status, "state": "running"}))
    assert len(load_run(RunFolder("run", folder)).validation) == 0


def test_a_run_that_has_not_written_for_long_is_marked(tmp_path):
    folder = write_run(
        tmp_path, state="running", status={"updated": "2025-01-02T04:00:00Z"}, epochs=1
    )
    at = 1735790400.0
    assert not load_run(RunFolder("run", folder), now=at + 600).stalled
    assert load_run(RunFolder("run", folder), now=at + 7200).stalled


DEEP = "[" * 90_000
BOMB = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{b}: &{b} [*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a}]\n"
    for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        (".hydra/config.yaml", None, "no config.yaml"),
        (".hydra/config.yaml", "a: [1", "not plain YAML"),
        (".hydra/config.yaml", "- 1", "no settings"),
        (".hydra/config.yaml", "a: 1", "names no model, data or seed"),
        (".hydra/config.yaml", DEEP, "not plain YAML"),
        (".hydra/config.yaml", "- " * 49_000, "not plain YAML"),
        (".hydra/config.yaml", BOMB, "5,000 entries"),
        (".hydra/config.yaml", "x" * 100_001, "larger than 100,000 bytes"),
        (".hydra/config.yaml", b"\xff\xfe", "not UTF-8"),
        (".hydra/config.yaml", "a: !!timestamp 99999-99-99", "not plain YAML"),
        (".hydra/config.yaml", f"? 0x{'f' * 90_000}\n: 1", "names no model, data or seed"),
        ("status.json", None, "not started yet, or killed at once"),
        ("status.json", "{", "not JSON"),
        ("status.json", DEEP, "not JSON"),
        ("status.json", "[]", "no fields"),
        ("status.json", '{"state": "exploded"}', "state is none of"),
        ("status.json", '{"state": {}}', "state is none of"),
        ("status.json", '{"state": "done", "test_accuracy": 97.1}', "out of range"),
        ("status.json", '{"state": "done", "test_accuracy": "x"}', "not a number"),
        ("status.json", '{"state": "done", "parameters": 1' + "0" * 400 + "}", "not a number"),
        ("metrics.csv", "", "does not name the columns"),
        ("metrics.csv", "epoch,epoch\n", "does not name the columns"),
        ("metrics.csv", "epoch,step\n1\n", "line 2: not 2 cells"),
        ("metrics.csv", "epoch,step\n1,2\nx,3\n", "line 3: epoch is not a number"),
        ("metrics.csv", "epoch,val_accuracy\n1,97\n", "not a fraction"),
        ("metrics.csv", b"epoch,step\n\xff,1\n", "not UTF-8"),
    ],
)
def test_damage_is_one_line_with_a_reason(folder, file, content, reason):
    path = folder / file
    path.unlink()
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    runs, damaged = load_runs([folder.parent])
    assert runs == []
    [(name, said)] = damaged
    assert name.endswith("/run")
    assert reason in said
    assert "\n" not in said


@pytest.mark.parametrize("file", [".hydra/config.yaml", "status.json", "metrics.csv"])
def test_links_and_pipes_are_not_read(folder, file, tmp_path):
    path, elsewhere = folder / file, tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    with pytest.raises(Damaged, match="is a link"):
        load_run(RunFolder("run", folder))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(Damaged, match="not a plain file"):  # and does not wait for a writer
        load_run(RunFolder("run", folder))


def test_a_linked_config_folder_is_not_read(folder, tmp_path):
    (folder / ".hydra").rename(tmp_path / "elsewhere")
    (folder / ".hydra").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Damaged, match="is a link"):
        load_run(RunFolder("run", folder))


def test_configs_run_no_code(folder, tmp_path):
    target = tmp_path / "ran"
    text = (folder / ".hydra/config.yaml").read_text()
    for evil in (
        f'x: !!python/object/apply:os.mkdir ["{target}"]',
        f'x: !!python/object/new:os.mkdir ["{target}"]',
    ):
        (folder / ".hydra/config.yaml").write_text(f"{text}\n{evil}\n")
        with pytest.raises(Damaged, match="not plain YAML"):
            load_run(RunFolder("run", folder))
    (folder / ".hydra/config.yaml").write_text(f"{text}\nx: {{_target_: os.mkdir, path: {target}}}")
    load_run(RunFolder("run", folder))
    assert not target.exists()


def test_a_config_is_flat_with_hydras_numbers(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("a: {b: 1e-3, c: [x, 2], d: null, e: {}}\nf: ${g}\nh: .nan\ni: '12'\nj: '1e5'")
    assert read_config(path) == {
        "a.b": 0.001, "a.c.0": "x", "a.c.1": 2, "a.d": None, "a.e": "{}", "f": "${g}",
        "h": "nan", "i": "12", "j": "1e5",
    }  # fmt: skip
    tree = {"a": "12", "b": "1e5", "c": 1e-5, "d": "true", "e": ".5e1"}
    path.write_text(to_yaml(tree))
    assert read_config(path) == tree


def test_columns_that_are_absent_are_nan():
    table = parse_metrics(["step,epoch,other", "1,0.5,x"], COLUMNS)
    assert table["epoch"].tolist() == [0.5]
    assert np.isnan(table["train_loss"]).all()
