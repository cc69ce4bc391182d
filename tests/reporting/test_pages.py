"""The parts of a page around its sections: contents, the table of runs, tasks without a section."""

import re
import shutil
from urllib.parse import unquote

from synthetic_runs import write_run

from elstm.commands.report import main
from elstm.reporting.document import Heading, anchored


def report(tmp_path, runs="runs"):
    folder = tmp_path / "a report"
    assert main([str(tmp_path / runs), "-o", str(folder), "--figures", "none"]) == 0
    return (folder / "report.md").read_text(), (folder / "report.html").read_text()


def test_contents_from_two_tasks_on(tmp_path):
    write_run(tmp_path / "runs/a", data="mnist", epochs=1)
    write_run(tmp_path / "runs/b", data="fashion_mnist", epochs=1)
    text, page = report(tmp_path)
    assert "- [fashion_mnist](#fashion_mnist)\n- [mnist](#mnist)\n- [Runs](#runs)" in text
    anchors = re.findall(r'href="#([^"]*)"', page)
    assert len(anchors) == 4
    assert all(page.count(f' id="{anchor}"') == 1 for anchor in anchors)
    shutil.rmtree(tmp_path / "runs/a")
    text, page = report(tmp_path)
    assert "Contents" not in text + page


def test_anchors_are_those_of_github():
    titles = ["mnist permute=true", "Runs", "Runs", "100 % <x>, (n)"]
    headings = anchored([Heading(2, title) for title in titles])
    assert [h.anchor for h in headings] == [
        "mnist-permutetrue",
        "runs",
        "runs-1",
        "100--x-n",
    ]


def test_runs_are_linked_to_their_folders_where_these_exist(tmp_path):
    write_run(tmp_path / "runs/seed 0) & #1", epochs=1)
    write_run(tmp_path / "runs/gone", seed=1, epochs=1)
    main(["--pack", str(tmp_path / "runs")])
    shutil.rmtree(tmp_path / "runs/gone")
    text, page = report(tmp_path)
    assert "2 runs" in text
    for links in (re.findall(r"\]\((\.\.[^)]*)\)", text), re.findall(r'href="([^"]*)"', page)):
        [link] = links
        assert (tmp_path / "a report" / unquote(link)).resolve() == tmp_path / "runs/seed 0) & #1"
    assert re.search(r"\| runs/gone \| fashion_mnist \| lstm \| 1 \| done \| 1 \| \d", text)


def test_tasks_without_a_finished_run_are_listed_and_open_no_section(tmp_path, capsys):
    write_run(tmp_path / "runs/done", epochs=2)
    write_run(tmp_path / "runs/left", data="mnist", epochs=2, until=1, state="interrupted")
    write_run(tmp_path / "runs/dead", data="mnist", epochs=2, until=1, state="running", seed=1)
    write_run(tmp_path / "runs/bad", data="mnist", epochs=2, until=0.5, state="failed", seed=2)
    capsys.readouterr()
    text, _ = report(tmp_path)
    assert "## fashion_mnist\n" in text
    assert "## mnist\n" not in text
    assert "No finished run and none in training on mnist" in text
    for name in ("left", "dead", "bad"):  # in the table of runs, and with the reason
        assert text.count(f"runs/{name}") >= 2
    assert "Contents" not in text
    assert "mnist:\n" not in capsys.readouterr().out.replace("fashion_mnist:", "")


def test_a_run_in_training_opens_a_section(tmp_path):
    write_run(tmp_path / "runs/done", epochs=2)
    write_run(
        tmp_path / "runs/now", data="mnist", epochs=2, until=1, state="running",
        status={"updated": "2999-01-01T00:00:00+00:00"},
    )  # fmt: skip
    assert "## mnist\n" in report(tmp_path)[0]


def test_an_interrupted_run_alone_is_shown(tmp_path):
    write_run(tmp_path / "runs/left", epochs=2, until=1, state="interrupted")
    assert "## fashion_mnist\n" in report(tmp_path)[0]
