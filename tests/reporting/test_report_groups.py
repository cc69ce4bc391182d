"""Grouping the runs of a report by task and by settings."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from synthetic_runs import write_run

from elstm.errors import UserError
from elstm.reporting.document import Table, to_markdown
from elstm.reporting.findings import findings
from elstm.reporting.groups import choose_baselines, make_sections
from elstm.reporting.measures import analyse
from elstm.reporting.runs import Curve, load_runs
from elstm.reporting.section import Pictures, section_blocks
from elstm.reporting.tables import results_csv, summary_csv


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
