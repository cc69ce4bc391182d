"""Prints the tables of README.md, outputs/paper/README.md and elstm/data/README.md from archives.

    python scripts/tables.py                     # all tables
    python scripts/tables.py headline ucr        # some
    python scripts/tables.py --out outputs       # archives or run folders elsewhere

Each p is corrected by Holm over the tests that the plan in conf/study names, which may stand in
several sections of a report.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from paper.compared import (
    NAMES,
    OURS,
    Archives,
    Compared,
    Task,
    correct,
    epochs,
    markdown,
    mean,
)
from paper.ucr import small_sets

from elstm.errors import UserError
from elstm.reporting import wording
from elstm.reporting.labels import show_value
from elstm.reporting.measures import GroupResult, to_best

FASHION = Task("Fashion-MNIST, 28 steps, chosen settings", "rows", {"data.name": "fashion_mnist"})
MNIST = Task("MNIST, 28 steps, chosen settings", "rows", {"data.name": "mnist"})
ROWS = (FASHION, MNIST)
SAME = (
    Task(
        "Fashion-MNIST, 28 steps, default setting", "rows-default", {"data.name": "fashion_mnist"}
    ),
    Task("MNIST, 28 steps, default setting", "rows-default", {"data.name": "mnist"}),
)
STEPS_196 = Task("Fashion-MNIST, 196 steps, 10,000 images", "long-196", {})
IN_ORDER = Task("MNIST, 784 steps in order, 10,000 images", "long-ordered", {})
PERMUTED = Task("MNIST, 784 steps permuted, 10,000 images", "long-permuted", {})
TASKS = (*SAME, *ROWS, STEPS_196, IN_ORDER, PERMUTED)
SCHEDULES = (2, 3, 5, 10)
PEERS = ("lstm", "bn_lstm")  # the models that the headline compares with


def headline(archives: Archives) -> list[str]:
    """Compares the main three models on each task."""
    header = ["task", "seeds", *(NAMES[m] for m in (*PEERS, OURS))]
    header += [*(f"against {NAMES[m]}" for m in PEERS), "epochs"]
    rows = []
    for task in TASKS:
        compared = archives.compare(task, (*PEERS, OURS))
        ours = compared.results[OURS]
        rows.append(
            [
                task.title,
                str(ours.test_accuracy.n if ours.test_accuracy else 0),
                *(mean(compared.results[model]) for model in (*PEERS, OURS)),
                *(wording.points(compared.tests.get(model)) for model in PEERS),
                epochs(ours),
            ]
        )
    return markdown(header, 1, rows)


def against_each(archives: Archives, tasks: Sequence[Task], planned: int) -> list[str]:
    """Subtracts each model from eLSTM-BN on some tasks, with one correction for all the tests."""
    found = [archives.compare(task) for task in tasks]
    correct(found, list(NAMES), planned)
    header = [
        "task", "model", "setting", "test, %", "eLSTM-BN less it, points (95 %)",
        f"p (Holm, {planned})", "95 % over images", "epochs",
    ]  # fmt: skip
    lines = []
    for compared in found:
        ours = compared.results[OURS]
        for model, result in compared.results.items():
            first = compared.task.title if model == next(iter(compared.results)) else ""
            test = compared.tests.get(model)
            lines.append(
                [
                    first,
                    NAMES[model],
                    setting(result),
                    f"{wording.percent(result.test_accuracy)}{seeds(result, ours)}",
                    "" if test is None else wording.points(test),
                    "" if test is None else wording.p_value(test.p_holm),
                    over_images(compared, model),
                    epochs(result),
                ]
            )
    return markdown(header, 3, lines)


def seeds(result: GroupResult, ours: GroupResult) -> str:
    """Returns the number of seeds if it is not that of eLSTM-BN, because runs diverged, say."""
    here, there = result.test_accuracy, ours.test_accuracy
    if here is None or there is None or here.n == there.n:
        return ""
    return f" ({here.n} seeds)"


def over_images(compared: Compared, model: str) -> str:
    """Returns the interval of eLSTM-BN less a model over the images of the test set."""
    label = compared.results[model].group.label
    comparison = compared.results[OURS].comparisons.get(label)
    test = comparison.images if comparison is not None else None
    if model == OURS or test is None:
        return ""
    return f"{wording.signed(100 * test.low)} to {wording.signed(100 * test.high)}"


def setting(result: GroupResult) -> str:
    """Returns the tuned settings of a model: rate, decay and what is decayed, gate biases."""
    config = result.group.runs[0].config
    words = [show_value(config["optimizer.lr"])]
    decay = config["optimizer.weight_decay"]
    if decay:
        of = "all" if config["optimizer.decay_all"] else "matrices"
        words.append(f"decay {show_value(decay)} of {of}")
    biases = config.get("model.forget_bias", config.get("model.update_bias"))
    if biases != "chrono":
        words.append(f"bias {show_value(biases)}")
    return ", ".join(words)


def few_epochs(archives: Archives) -> list[str]:
    """Compares the main three models with a schedule of their own for each number of epochs."""
    header = ["data", "epochs", *(NAMES[m] for m in (*PEERS, OURS))]
    header += [*(f"against {NAMES[m]}, p" for m in PEERS), "runs at the LSTM's mark"]
    found = [
        archives.compare(
            Task(title, "epochs", {"data.name": data, "trainer.max_epochs": schedule}),
            (*PEERS, OURS),
        )
        for title, data in (("Fashion-MNIST", "fashion_mnist"), ("MNIST", "mnist"))
        for schedule in SCHEDULES
    ]
    correct(found, PEERS, planned=len(found) * len(PEERS))
    lines = []
    for index, compared in enumerate(found):
        longest = found[index - index % len(SCHEDULES) + len(SCHEDULES) - 1]
        mark = longest.results["lstm"].group
        reached = [to_best(compared.results[model].group, mark).reach for model in (*PEERS, OURS)]
        tests = [compared.tests[model] for model in PEERS]
        lines.append(
            [
                compared.task.title if index % len(SCHEDULES) == 0 else "",
                str(compared.task.settings["trainer.max_epochs"]),
                *(mean(compared.results[model]) for model in (*PEERS, OURS)),
                *(
                    f"{wording.signed(100 * t.difference)}, {wording.p_value(t.p_holm)}"
                    for t in tests
                ),
                ", ".join(f"{each.reached if each else 0}" for each in reached),
            ]
        )
    return markdown(header, 1, lines)


def statistics(archives: Archives) -> list[str]:
    """Subtracts the test accuracy with batch statistics from that with population statistics."""
    models = (*PEERS[1:], OURS)
    lines = []
    for task in TASKS:
        results = archives.compare(task, models).results
        gaps = [results[model].test for model in models]  # population, batch, batch - population
        lines.append([task.title, *(wording.signed(-100 * g[2].mean) if g else "" for g in gaps)])
    return markdown(["task", *(NAMES[model] for model in models)], 1, lines)


TABLES: dict[str, Callable[[Archives], list[str]]] = {
    "headline": headline,
    "rows": partial(against_each, tasks=ROWS, planned=12),
    "default": partial(against_each, tasks=SAME, planned=4),
    "epochs": few_epochs,
    "steps-196": partial(against_each, tasks=(STEPS_196,), planned=4),
    "ordered": partial(against_each, tasks=(IN_ORDER,), planned=4),
    "permuted": partial(against_each, tasks=(PERMUTED,), planned=4),
    "statistics": statistics,
    "ucr": small_sets,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("--out", type=Path, default=Path("outputs/paper"), metavar="FOLDER")
    args = parser.parse_args(argv)
    for name in args.tables:
        if name not in TABLES:
            parser.error(f"there is no table {name!r}; the tables are {', '.join(TABLES)}")
    archives = Archives(args.out)
    try:
        for name in args.tables or TABLES:
            print(f"{name}\n", *TABLES[name](archives), "", sep="\n")
    except UserError as error:
        print(f"tables.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
