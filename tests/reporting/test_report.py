import base64
import csv
import html
import re
import subprocess
import sys
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure
from synthetic_runs import write_run

from elstm.commands.report import main
from elstm.reporting.figures import _log_axis
from elstm.reporting.labels import short_names


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Two models with three seeds, one of them with a running and a failed one; damage."""
    root = tmp_path_factory.mktemp("outputs")
    for model in ("lstm", "elstm_bn"):
        for seed in range(3):
            write_run(root / f"{model}-{seed}", model, seed=seed, epochs=4)
    write_run(root / "running", "elstm_bn", seed=3, epochs=4, state="running", until=2.5)
    write_run(root / "failed", "elstm_bn", seed=4, epochs=4, state="failed", error="line | `40`")
    write_run(root / "mnist", "lstm", "mnist", epochs=4)
    (write_run(root / "damaged", "lstm", seed=9) / "status.json").write_text("{")
    return root


@pytest.fixture(scope="module")
def report(outputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    main([str(outputs), "-o", str(folder), "--thresholds", "40,70.5"])
    return folder


def rows_of(folder, name):
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def fails(capsys, *arguments):
    """The one line with which the command ends."""
    assert main([str(argument) for argument in arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("elstm-report: error: ")
    return err


def test_markdown_says_what_was_found(report):
    text = (report / "report.md").read_text()
    assert "9 runs in 3 groups on 2 tasks: 7 done, 1 running, 1 failed; 1 folder" in text
    assert "**Preliminary:** 1 run not finished yet" in text
    assert "## fashion_mnist\n" in text
    assert "## mnist\n" in text
    assert re.search(
        r"\| elstm_bn \| 3 done, 1 running, 1 failed \| \d\d\.\d\d ± 0\.\d\d \(3\)", text
    )
    assert "| 40 % | 70.5 % | lstm's best | ratio to it |" in text
    assert "### Paired tests against lstm" in text
    assert "One finished seed per group: the variance there is unknown" in text
    assert "`line \\| '40'`" in text  # the failed run's error, within its cell
    assert "status.json is not JSON" in text


def test_markdowns_pictures_are_there(report):
    pictures = re.findall(r"!\[.*\]\((.*)\)", (report / "report.md").read_text())
    assert len(pictures) == 7  # four of fashion_mnist; mnist has no other group to race
    for path in pictures:
        assert matplotlib.image.imread(report / path).shape[1] == 1440
        svg = (report / path).with_suffix(".svg").read_text()
        assert svg.startswith("<?xml")
        assert "$" not in svg  # no formula that is not set


def test_html_needs_no_other_file_and_is_well_formed(report):
    text = (report / "report.html").read_text()
    sources = re.findall(r'src="([^"]*)"', text)
    assert len(sources) == 7
    links = re.findall(r'href="([^"]*)"', text)  # nothing is loaded from them
    assert all(link.startswith(("#", "../")) for link in links)
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert base64.b64decode(sources[0].partition(",")[2]).startswith(b"<?xml")
    check_balance(text)


def check_balance(text):
    opened = []

    class Balance(HTMLParser):
        def handle_starttag(self, tag, attributes):
            if tag not in ("meta", "img"):
                opened.append(tag)

        def handle_endtag(self, tag):
            assert opened.pop() == tag

    Balance().feed(text)
    assert opened == []


def test_results_has_a_row_per_run(report):
    rows = rows_of(report, "results.csv")
    assert len(rows) == 9
    running = next(row for row in rows if row["state"] == "running")
    assert (running["seed"], running["epochs"], running["test_accuracy"]) == ("3", "2.5", "")
    assert (running["model.cell_norm"], running["left_out"]) == ("update", "false")
    done = next(row for row in rows if row["group"] == "lstm" and row["task"] == "fashion_mnist")
    assert 0 < float(done["test_accuracy"]) < 1
    assert float(done["epochs_to_0.4"]) >= 1


def test_summary_has_a_row_per_group(report):
    rows = rows_of(report, "summary.csv")
    assert [(r["task"], r["group"]) for r in rows] == [
        ("fashion_mnist", "lstm"), ("fashion_mnist", "elstm_bn"), ("mnist", "lstm"),
    ]  # fmt: skip
    ours = rows[1]
    runs = [r for r in rows_of(report, "results.csv") if r["task"] == "fashion_mnist"]
    by_model = {
        model: [
            float(r["test_accuracy"]) for r in runs if r["group"] == model and r["test_accuracy"]
        ]
        for model in ("lstm", "elstm_bn")
    }
    mean = {model: sum(values) / 3 for model, values in by_model.items()}
    assert float(ours["test_accuracy"]) == pytest.approx(mean["elstm_bn"])
    assert float(ours["test_accuracy_test_difference"]) == pytest.approx(
        mean["elstm_bn"] - mean["lstm"]
    )
    assert (ours["test_accuracy_test_n"], ours["baseline"]) == ("3", "lstm")
    assert float(ours["val_gap"]) == pytest.approx(0.0008)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two models with two seeds."""
    root = tmp_path_factory.mktemp("pair")
    for model in ("lstm", "elstm_bn"):
        for seed in range(2):
            write_run(root / f"{model}-{seed}", model, seed=seed, epochs=2)
    return root


def test_a_second_baseline_adds_tests(pair, tmp_path):
    main([str(pair), "-o", str(tmp_path), "--baseline", "elstm_bn", "--baseline", "lstm"])
    text = (tmp_path / "report.md").read_text()
    assert "**elstm_bn** is the baseline" in text
    assert "Test accuracy against **lstm**" in text
    assert "### Paired tests against lstm" in text
    assert text.count("### Paired tests against elstm_bn") == 1
    assert len(rows_of(tmp_path, "summary.csv")) == 4


def test_half_the_epochs(tmp_path):
    """Runs of two budgets: the label says which, the ratio holds the short ones to the long."""
    for seed in range(3):
        write_run(tmp_path / f"runs/long-{seed}", "lstm", seed=seed, epochs=10)
        write_run(tmp_path / f"runs/half-{seed}", "lstm", seed=seed, epochs=5)
        write_run(tmp_path / f"runs/ours-{seed}", "elstm_bn", seed=seed, epochs=5, offset=0.05)
    main([str(tmp_path / "runs"), "-o", str(tmp_path / "report")])
    text = (tmp_path / "report/report.md").read_text()
    assert "- **lstm max_epochs=10** is the baseline" in text
    assert "- **elstm_bn max_epochs=5**: " in text
    assert "Finished runs have trained between 5 and 10 epochs" in text
    rows = {row["group"]: row for row in rows_of(tmp_path / "report", "summary.csv")}
    ours = rows["elstm_bn max_epochs=5"]
    assert (ours["reached_baseline_best"], ours["runs"]) == ("3", "3")
    assert float(ours["epochs_ratio_to_baseline"]) < 0.6


def test_times_of_a_busy_machine(tmp_path):
    for seed, seconds in ((0, 40.0), (1, 60.0)):
        write_run(tmp_path / f"runs/{seed}", seed=seed, epochs=4, status={"train_seconds": seconds})
        write_run(
            tmp_path / f"runs/bn-{seed}", "bn_lstm", seed=seed, epochs=4,
            status={"train_seconds": 40.0 + seed},
        )  # fmt: skip
    main([str(tmp_path / "runs"), "-o", str(tmp_path / "report")])
    text = (tmp_path / "report/report.md").read_text()
    assert "Times are rough: within lstm the seconds" in text
    assert re.search(r"of its epochs and roughly \d\.\d\d of its time", text)
    assert "12.5 ± 3.5" in text
    # The figures have no panel for times that the page calls rough.
    assert "validation accuracy against epochs. Mean" in text
    svg = (tmp_path / "report/figures/fashion_mnist-validation-accuracy.svg").read_text()
    assert "epoch" in svg
    assert "wall-clock" not in svg


def test_figures_show_comparable_times(report):
    assert (
        "validation accuracy against epochs and wall-clock time. Mean"
        in (report / "report.md").read_text()
    )
    svg = (report / "figures/fashion_mnist-validation-accuracy.svg").read_text()
    assert "wall-clock" in svg


def test_a_gap_is_of_normalised_models_alone(pair, tmp_path):
    main([str(pair), "-o", str(tmp_path)])
    text = (tmp_path / "report.md").read_text()
    table = text.partition("### Population against")[2].partition("###")[0]
    assert "| elstm_bn | " in table
    assert "+0.08 ± 0.00" in table
    assert "| lstm |" not in table


@pytest.mark.parametrize("losses", [(1.1, 0.9), (0.44, 0.41), (2.3, 0.3), (2.3, 0.03)])
def test_the_axis_of_a_loss_has_numbers(losses):
    axes = Figure().subplots()
    axes.plot(losses)
    _log_axis(axes, np.array(losses))
    low, high = axes.get_ylim()
    assert sum(low <= tick <= high for tick in axes.get_yticks()) >= 2


def test_a_report_made_again_is_the_same(pair, tmp_path):
    def contents():
        main([str(pair), "-o", str(tmp_path / "report")])
        files = (tmp_path / "report").rglob("*.*")
        return {path.name: path.read_bytes() for path in files if path.is_file()}

    first = contents()
    assert len(first) == 12
    assert contents() == first


def test_runs_that_have_only_begun(tmp_path):
    for seed in (0, 1):
        run = write_run(tmp_path / f"runs/{seed}", seed=seed, state="running", until=0.0, epochs=3)
        (run / "metrics.csv").unlink()
    main([str(tmp_path / "runs"), "-o", str(tmp_path / "report")])
    text = (tmp_path / "report/report.md").read_text()
    assert "2 runs not finished yet" in text
    assert "![" not in text


def test_only_failed_runs(tmp_path):
    write_run(tmp_path / "run", state="failed", until=0.5, error="out of memory")
    main([str(tmp_path / "run"), "-o", str(tmp_path / "report")])
    assert "`out of memory`" in (tmp_path / "report/report.md").read_text()


EVIL = "<script>alert(1)</script>|`\\|$\\frac$**x**"


def test_foreign_text_stays_text(tmp_path):
    for seed in (0, 1):
        write_run(
            tmp_path / f"runs/{seed}", seed=seed, epochs=2, model__name="_" + EVIL,
            data__name="=cmd|x" + EVIL, git_commit="", status={"device": EVIL},
        )  # fmt: skip
    error = "\x1b[31m\n# x" + EVIL
    write_run(tmp_path / "runs/x", seed=2, state="failed", error=error, model__name=EVIL)
    main([str(tmp_path / "runs"), "-o", str(tmp_path / "report")])
    page = (tmp_path / "report/report.html").read_text()
    assert page.count("<script") == 1  # the page's own
    assert "<script>alert" not in page
    assert html.escape("<script>") in page
    check_balance(page)
    text = (tmp_path / "report/report.md").read_text()
    assert "\x1b" not in text + page
    # Only within code spans, where it is no tag.
    bare = re.sub(r"\\.", "", text)
    assert "<script" not in re.sub(r"`[^`]*`", "", bare)
    for table in re.findall(r"(?m)(?:^\|.*\n)+", text):  # a bar in a label adds no cell
        bars = [len(re.findall(r"\|", re.sub(r"\\.", "", row))) for row in table.splitlines()]
        assert len(set(bars)) == 1, table
    assert rows_of(tmp_path / "report", "results.csv")[0]["task"].startswith("'=cmd")
    assert all(p.parent == tmp_path / "report/figures" for p in tmp_path.rglob("*.png"))


def test_errors_are_one_line(tmp_path, outputs, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no run folders in" in fails(capsys, empty)
    assert "not a folder" in fails(capsys, tmp_path / "nowhere")
    assert "status.json is not JSON" in fails(capsys, outputs / "damaged")
    assert "no such group" in fails(capsys, outputs, "--baseline", "gpt")
    (tmp_path / "file").touch()
    assert "cannot write" in fails(capsys, outputs, "-o", tmp_path / "file")


@pytest.mark.parametrize("value", ["0.85", "85;90", "101", "nan", ""])
def test_thresholds_are_percent(value, outputs, capsys):
    with pytest.raises(SystemExit) as end:
        main([str(outputs), "--thresholds", value])
    assert end.value.code == 2
    assert "85,88,90" in capsys.readouterr().err


def test_of_many_groups_the_tables_show_some(tmp_path):
    template = write_run(tmp_path / "template", epochs=10)
    config, status, metrics = (
        (template / name).read_text()
        for name in (".hydra/config.yaml", "status.json", "metrics.csv")
    )
    for n in range(400):
        folder = tmp_path / "runs" / str(n)
        (folder / ".hydra").mkdir(parents=True)
        settings = config.replace("seed: 0", f"seed: {n % 2}").replace("0.003", f"{1 + n // 2}e-4")
        (folder / ".hydra/config.yaml").write_text(settings)
        (folder / "status.json").write_text(status)
        (folder / "metrics.csv").write_text(metrics)
    main([str(tmp_path / "runs"), "-o", str(tmp_path / "report")])
    text = (tmp_path / "report/report.md").read_text()
    assert "400 runs in 200 groups" in text
    assert "Of 200 groups the tables show 40" in text


def test_many_settings_are_named_in_a_moment():
    """If each key were compared with each other, this test would take hours."""
    keys = [f"extra.group{n}.key" for n in range(30_000)]
    names = short_names(keys)
    assert names[keys[7]] == "group7.key"


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        (["model.hidden_size", "seed"], ["hidden_size", "seed"]),
        (["optimizer.lr", "optimizer.name", "name"], ["lr", "optimizer", "name"]),
        (["a.lr", "b.lr", "lr"], ["a.lr", "b.lr", "lr"]),
        (["x.a.lr", "x.b.lr", "c.lr"], ["a.lr", "b.lr", "c.lr"]),
        (["optimizer.name", "x.optimizer"], ["optimizer", "x.optimizer"]),
        (["x.optimizer.name", "y.optimizer"], ["x.optimizer", "y.optimizer"]),
        (["optimizer.name", "optimizer"], ["name", "optimizer"]),
    ],
)
def test_settings_have_the_shortest_names_that_tell_them_apart(keys, names):
    assert list(short_names(keys).values()) == names


def test_reports_need_no_torch():
    code = "import sys, elstm.commands.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
