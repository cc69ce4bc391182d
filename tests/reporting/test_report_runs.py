import csv
import io
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import write_run

from elstm.errors import UserError
from elstm.files.bounded import Damaged, parse_metrics, read_config, to_yaml
from elstm.records.find import find_runs
from elstm.records.stored import RunFolder
from elstm.reporting.document import Table, to_markdown
from elstm.reporting.findings import findings
from elstm.reporting.groups import choose_baselines, make_sections
from elstm.reporting.measures import analyse
from elstm.reporting.runs import COLUMNS, Curve, load_run, load_runs
from elstm.reporting.section import Pictures, section_blocks
from elstm.reporting.tables import results_csv, summary_csv


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


def test_runs_are_found_at_any_depth_once_and_not_through_links(tmp_path):
    a = write_run(tmp_path / "outputs/fashion_mnist/lstm/a", epochs=1)
    write_run(tmp_path / "outputs/fashion_mnist/lstm/a/checkpoints/inner", epochs=1)
    write_run(tmp_path / "b", epochs=1)
    (tmp_path / "outputs/link").symlink_to(tmp_path / "b")
    found, _ = find_runs([tmp_path / "outputs", a, a / ".." / "a"])
    assert [run.name for run in found] == ["outputs/fashion_mnist/lstm/a"]


def test_a_sweeps_folder_names_its_runs(tmp_path):
    top = tmp_path / "top"
    for name in ("a", "b"):
        write_run(top / f"outputs/digits/lstm/{name}", epochs=1)
    write_run(tmp_path / "outside", epochs=1)
    sweep = top / "outputs/sweeps/2025"
    sweep.mkdir(parents=True)
    names = ["outputs/digits/lstm/b", "outputs/gone", "../outside", str(tmp_path / "outside"), ""]
    (sweep / "sweep.csv").write_text("seed,run_dir\n" + "".join(f"0,{n}\n" for n in names))
    assert [run.folder for run in find_runs([sweep])[0]] == [top / "outputs/digits/lstm/b"]
    (sweep / "loop").symlink_to("loop")
    names = ["a\0b", "x" * 5000, "outputs/sweeps/2025/loop/x"]
    (sweep / "sweep.csv").write_text("run_dir\n" + "".join(f"{n}\n" for n in names))
    assert find_runs([sweep]) == ([], [])
    (sweep / "sweep.csv").write_text("\0")
    assert find_runs([sweep]) == ([], [])


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    write_run(tmp_path / "outputs/a", epochs=1)
    (tmp_path / "outputs/closed").mkdir()
    scan = os.scandir

    def scandir(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found, damaged = find_runs([tmp_path / "outputs"])
    assert [run.name for run in found] == ["outputs/a"]
    assert damaged == [("outputs/closed", "cannot be read: Permission denied")]
    for name in ("x" * 300, "loop"):
        (tmp_path / "loop").unlink(missing_ok=True)
        (tmp_path / "loop").symlink_to("loop")
        with pytest.raises(UserError, match=f"{name[:20]}.* "):
            find_runs([tmp_path / name])


def test_a_root_that_is_no_folder_is_an_error(tmp_path):
    with pytest.raises(UserError, match="not a folder"):
        load_runs([tmp_path / "nowhere"])


# --- grouping


@pytest.fixture
def make(tmp_path):
    """Loads runs given as (model, seed, overrides) and groups them."""

    def make(*specs, ignored=()):
        for model, seed, *rest in specs:
            number = sum(1 for _ in tmp_path.iterdir())
            write_run(tmp_path / f"{number:03}", model, seed=seed, epochs=1, **(rest or [{}])[0])
        return make_sections(load_runs([tmp_path])[0], ignored)

    return make


def labels(section):
    return [group.label for group in section.groups]


def test_groups_are_what_differs_besides_the_seed(make):
    [section] = make(
        ("lstm", 0),
        ("lstm", 1, {"data__root": "/elsewhere", "trainer__threads": 7, "sweep__rerun": True}),
        ("elstm_bn", 0, {"optimizer__lr": 0.01}),
    )
    # lr follows from the model here, so that its name says all.
    assert labels(section) == ["lstm", "elstm_bn"]
    assert [run.seed for run in section.groups[0].runs] == [0, 1]
    assert section.groups[1].settings["optimizer.lr"] == 0.01
    assert section.groups[1].settings["model.cell_norm"] == "update"
    assert section.common["data.batch_size"] == 128


def test_labels_name_the_keys_that_differ_within_a_model(make):
    [section] = make(
        ("lstm", 0, {"optimizer__lr": 0.01}),
        ("lstm", 0, {"optimizer__lr": 0.003}),
        ("elstm_bn", 0, {"model__eps": 1e-5, "optimizer__eps": 1e-8}),
        ("elstm_bn", 0, {"model__eps": 0.1, "optimizer__eps": 1e-7}),
    )
    assert labels(section) == [
        "lstm lr=0.003",
        "lstm lr=0.01",
        "elstm_bn model.eps=1e-05 optimizer.eps=1e-08",
        "elstm_bn model.eps=0.1 optimizer.eps=1e-07",
    ]


def test_settings_that_follow_from_the_optimizers_name_are_not_in_the_label(make):
    sgd = {"name": "sgd", "lr": 0.003, "momentum": 0.9}
    [section] = make(("lstm", 0), ("lstm", 0, {"optimizer": sgd}))
    assert labels(section) == ["lstm optimizer=adam", "lstm optimizer=sgd"]


def test_a_key_that_an_older_version_had_not_is_no_difference(make):
    new = {"model__recompute": False, "trainer__on_nonfinite": "stop"}
    both = {"model__recompute": True, "trainer__on_nonfinite": "stop"}
    [section] = make(("lstm", 0), ("lstm", 1, new), ("gru", 0, both))
    assert sorted(labels(section)) == ["gru", "lstm"]
    [group] = [group for group in section.groups if group.model == "lstm"]
    assert [run.seed for run in group.runs] == [0, 1]
    assert group.settings["model.recompute"] is False
    assert section.common["trainer.on_nonfinite"] == "stop"


def test_a_new_option_is_a_difference_from_runs_before_it(make):
    [section] = make(("elstm_bn", 0), ("elstm_bn", 0, {"model__recompute": True}))
    assert labels(section) == ["elstm_bn recompute=false", "elstm_bn recompute=true"]


def test_long_labels_become_numbers(make):
    keys = "abcdefgh"
    [section] = make(*[("lstm", 0, {f"model__{k}_long_name": i for k in keys}) for i in (0, 1)])
    assert labels(section) == ["lstm #1", "lstm #2"]


def test_data_sets_and_ways_to_cut_them_are_sections(make):
    sections = make(
        ("lstm", 0),
        ("lstm", 0, {"data__pixels_per_step": 4}),
        ("lstm", 0, {"data__batch_size": 64}),
        ("lstm", 0, {"data__name": "mnist"}),
    )
    assert [section.title for section in sections] == [
        "fashion_mnist pixels_per_step=4",
        "fashion_mnist pixels_per_step=28",
        "mnist",
    ]
    assert labels(sections[1]) == ["lstm batch_size=64", "lstm batch_size=128"]


def test_one_run_per_seed_counts_the_furthest(make):
    [section] = make(
        ("lstm", 0),
        ("lstm", 0, {"state": "failed"}),
        ("lstm", 1, {"state": "failed"}),
        ("lstm", 2, {"state": "running"}),
        ("lstm", 2, {"state": "failed"}),
    )
    [group] = section.groups
    assert [(run.seed, run.state) for run in group.runs] == [(0, "done"), (2, "running")]
    assert [run.seed for run in group.failed] == [1]
    assert sorted(run.seed for run in group.superseded) == [0, 2]


def test_folds_count_as_seeds_do(make):
    def on(fold, name="waves", digest="aa", **settings):
        status = {"data_fingerprint": digest, "data_description": "48 training sequences"}
        return {"data": name, "data__folds": 3, "data__fold": fold, "status": status, **settings}

    runs = [(model, seed, on(fold)) for model in ("lstm", "gru") for seed in (0, 1)
            for fold in (2, 0, 1)]  # fmt: skip
    [section] = make(*runs, ("lstm", 0, on(0, state="failed")))
    lstm, _ = section.groups
    assert labels(section) == ["lstm", "gru"]
    assert (section.folds, lstm.folds) == (3, 3)
    assert [run.pair for run in lstm.runs] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert len(lstm.superseded) == 1
    choose_baselines([section], [])
    (result,) = analyse(section).results[1:]
    test = result.comparisons["lstm"].test_accuracy
    assert test.n == 3  # a fold is one observation
    assert test.p is not None
    assert result.to_best.reach.runs == 6  # by fold and seed, not by seed alone


@pytest.mark.parametrize("digest", ["aa", None])
def test_own_data_have_columns_of_balanced_scores(make, digest):
    def status(balanced, f1):
        of_run = {"test_balanced_accuracy": balanced, "test_macro_f1": f1}
        return {"data": "waves", "status": {**of_run, "data_fingerprint": digest}}

    [section] = make(("lstm", 0, status(0.5, 0.25)), ("lstm", 1, status(0.7, 0.35)), ("gru", 0, {
        "data": "waves", "status": {"data_fingerprint": digest}}))  # fmt: skip
    choose_baselines([section], [])
    analysis = analyse(section)
    table = next(b for b in section_blocks(analysis, Pictures(*[None] * 6)) if isinstance(b, Table))
    by_name = dict(zip(table.header, table.rows[0], strict=True))
    if digest is None:
        assert "Macro F1, %" not in by_name
    else:
        assert by_name["Balanced accuracy, %"] == "60.00 ± 14.14"
        assert by_name["Macro F1, %"] == "30.00 ± 7.07"
        assert table.rows[1][table.header.index("Macro F1, %")] == "–"
    row, *_ = csv.DictReader(io.StringIO(summary_csv([analysis])))
    assert float(row["test_balanced_accuracy"]) == pytest.approx(0.6)
    assert float(row["test_macro_f1"]) == pytest.approx(0.3)


def test_other_data_of_the_same_name_are_another_task(make):
    def on(digest, path):
        status = {"data_fingerprint": digest, "data_description": f"3 sequences from {path}"}
        settings = {"data": "waves", "data__source": "arrays", "data__path": path}
        return {**settings, "status": status}

    sections = make(
        ("lstm", 0, on("aaaa", "a/waves.npz")),
        ("lstm", 1, on("aaaa", "b/waves.npz")),  # moved
        ("lstm", 2, on("bbbb", "a/waves.npz")),  # changed
        ("lstm", 3, on(None, "a/waves.npz")),  # of a version that recorded none
    )
    found = {(s.title, tuple(run.seed for run in s.runs), *s.others) for s in sections}
    assert found == {
        ("waves fingerprint=aaaa", (0, 1), "", "bbbb"),
        ("waves fingerprint=bbbb", (2,), "", "aaaa"),
        ("waves", (3,), "aaaa", "bbbb"),
    }
    choose_baselines(sections, [])
    nothing = Pictures(*[None] * 6)
    text = "".join(to_markdown(section_blocks(analyse(s), nothing)) for s in sections)
    assert "Data: 3 sequences from a/waves.npz; checksum aaaa." in text
    assert (
        "Other runs read other data under the name waves (checksum not recorded, bbbb). They have "
        "separate sections, and no number here includes them." in text
    )


def test_an_older_run_without_a_new_option_of_the_data_is_on_the_same_task(make):
    sections = make(
        ("lstm", 0),
        ("lstm", 1, {"data__permute_seed": 0}),
        ("lstm", 2, {"data__permute_seed": 3}),
    )
    assert sorted([run.seed for run in section.runs] for section in sections) == [[0, 1], [2]]


def test_other_files_of_a_published_set_are_another_task(make):
    """Compares the files of two folders data.root; a run without a record may use either."""
    read = [{"status": {"data_content": name}} for name in ("aa", "bb")]
    sections = make(("lstm", 0, read[0]), ("lstm", 1, read[1]), ("lstm", 2),
                    ("lstm", 3, {"data__pixels_per_step": 4, **read[0]}),
                    ("lstm", 4, {"data__pixels_per_step": 4}))  # fmt: skip
    assert {tuple(run.seed for run in s.runs): s.others for s in sections} == {
        (0,): ["", "bb"], (1,): ["", "aa"], (2,): ["aa", "bb"], (3, 4): [],
    }  # fmt: skip


def test_runs_in_several_processes_are_a_group_of_their_own(make):
    [section] = make(("lstm", 0, {"status": {"processes": 4}}), ("lstm", 1))
    assert labels(section) == ["lstm", "lstm processes=4"]
    resumed = {"processes": 1, "processes_changes": [[0, 4], [120, 1]]}
    [section] = make(("lstm", 2, {"status": resumed}), ("lstm", 1))
    assert labels(section) == ["lstm", "lstm processes=4", "lstm processes=4 then 1"]


def test_initial_weights_are_known_by_their_content(make):
    def of(path, digest):
        source = {"path": path, "step": 5, "sha256": digest * 32}
        return {"trainer__init_from": path, "status": {"init_from": source}}

    [section] = make(("lstm", 0, of("a/best.pt", "ab")), ("lstm", 1, of("/b/best.pt", "ab")),
                     ("lstm", 2, of("a/best.pt", "cd")))  # fmt: skip
    assert sorted((g.label, len(g.runs)) for g in section.groups) == [
        ("lstm init_from=abababab (step 5)", 2), ("lstm init_from=cdcdcdcd (step 5)", 1),
    ]  # fmt: skip
    assert section.runs[1].made_with["init_from"] == "abababab (step 5): /b/best.pt"


def test_folds_and_seeds_may_be_interpolations(tmp_path):
    for seed in range(3):
        settings = {"data__folds": "${k}", "k": 3, "data__fold": "${seed}"}
        run = write_run(tmp_path / str(seed), data="waves", seed=seed, epochs=1, **settings)
    config = run / ".hydra/config.yaml"
    config.write_text(config.read_text().replace("seed: 2", "seed: ${two}\ntwo: 2"))
    [section] = make_sections(load_runs([tmp_path])[0], ["two"])
    assert section.folds == 3
    assert [run.pair for run in section.runs] == [(0, 0), (1, 1), (2, 2)]


def test_curves_of_fewer_evaluations_have_areas_over_the_same_epochs(tmp_path):
    write_run(tmp_path / "a", "lstm", epochs=4)
    write_run(tmp_path / "b", "gru", epochs=4, trainer__evaluate_every=2)
    [section] = make_sections(load_runs([tmp_path])[0])
    epoch = np.arange(1.0, 5.0)
    curve = Curve(epoch, epoch, np.array([0.1, 0.5, 0.7, 0.9]))
    sparse = Curve(*(each[1::2] for each in (curve.epoch, curve.seconds, curve.value)))
    for group, found in zip(section.groups, (curve, sparse), strict=True):
        group.runs[:] = [replace(group.runs[0], validation=found)]
    choose_baselines([section], [])
    analysis = analyse(section)
    assert (analysis.start, analysis.horizon) == (2, 4)
    assert [r.area.mean for r in analysis.results] == [pytest.approx(0.7)] * 2
    assert "evaluated every 1 or 2 epochs" in str(findings(analysis))


def test_numbers_in_results_csv_stay_numbers(make):
    source = {"trainer__init_from": "a" * 40}
    [section] = make(("bn_lstm", 0, {"model__gamma_c": -0.5}), ("bn_lstm", 1, source))
    choose_baselines([section], [])
    rows = list(csv.DictReader(io.StringIO(results_csv([analyse(section)]))))
    assert {row["model.gamma_c"] for row in rows} == {"-0.5", "1"}
    assert "a" * 40 in {row["trainer.init_from"] for row in rows}


def test_keys_can_be_ignored(make):
    settings = {"trainer__device": "cpu"}
    [section] = make(("lstm", 0), ("lstm", 1, settings), ignored=["trainer.device"])
    assert labels(section) == ["lstm"]


def test_baselines(make):
    sections = make(
        ("gru", 0),
        ("lstm", 0, {"optimizer__lr": 0.01, "offset": 0.1}),
        ("lstm", 0, {"optimizer__lr": 0.1}),
        ("gru", 0, {"data__name": "mnist"}),
    )
    fashion, mnist = sections
    choose_baselines(sections, [])
    assert fashion.baseline.label == "lstm lr=0.01"  # the better of the two
    assert labels(fashion)[0] == "lstm lr=0.01"
    assert mnist.baseline.label == "gru"
    for spec, label in (
        ("gru", "gru"),
        ("lstm lr=0.1", "lstm lr=0.1"),
        ("lr=0.1", "lstm lr=0.1"),
        ("optimizer.lr=0.1", "lstm lr=0.1"),
        ("model=lstm", "lstm lr=0.01"),
        ("optimizer=adam", "lstm lr=0.01"),
    ):
        choose_baselines(sections, [spec])
        assert fashion.baseline.label == label
    with pytest.raises(UserError, match=r"no such group; .* one of: gru; lstm lr=0\.01"):
        choose_baselines(sections, ["elstm"])
