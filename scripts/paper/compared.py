"""Compares eLSTM-BN with the other models of a study, with the correction that its plan names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from elstm.errors import UserError
from elstm.files.bounded import Value
from elstm.reporting import wording
from elstm.reporting.groups import Group, by_standing, choose_baselines, make_sections
from elstm.reporting.measures import GroupResult, analyse
from elstm.reporting.runs import Run, load_runs
from elstm.reporting.stats import PairedTest, holm

OURS = "elstm_bn"
NAMES = {
    "lstm": "LSTM",
    "gru": "GRU",
    "ln_lstm": "LayerNorm-LSTM",
    "bn_lstm_input": "input-only BN-LSTM",
    "bn_lstm_gates": "gates-only BN-LSTM",
    "bn_lstm": "BN-LSTM",
    "elstm_bn": "eLSTM-BN",
    "elstm_bn_center": "eLSTM-BN, centring only",
}


@dataclass(frozen=True)
class Task:
    """Names the runs of a study that were trained on one task.

    Attributes:
        title: what a table calls the task.
        study: the name of the study.
        settings: what the config of each run has, such as data.name, if it has the key at all.
    """

    title: str
    study: str
    settings: Mapping[str, Value]


@dataclass
class Compared:
    """Holds the measures of each model on one task, and eLSTM-BN less each other model.

    `to_best` of a result refers to the best validation accuracy of the LSTM.
    """

    task: Task
    results: dict[str, GroupResult]  # by model, in the order of NAMES
    tests: dict[str, PairedTest]  # by the other model


class Archives:
    """Reads the archives of studies, or their run folders, each once.

    Args:
        out: the folder that holds a folder for each study.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self._runs: dict[str, list[Run]] = {}

    def runs(self, task: Task) -> list[Run]:
        """Returns the finished runs of a task."""
        if task.study not in self._runs:
            self._runs[task.study] = load_runs([self.out / task.study])[0]
        return [
            run
            for run in self._runs[task.study]
            if run.state == "done"
            and all(run.config.get(key, value) == value for key, value in task.settings.items())
        ]

    def compare(self, task: Task, needed: Sequence[str] = ("lstm", OURS)) -> Compared:
        """Measures every model of a task, at its best setting by validation accuracy.

        Args:
            needed: the models that have to have finished runs.

        Raises:
            UserError: one of them has none, or the runs are on several tasks.
        """
        sections = make_sections(self.runs(task))
        if len(sections) != 1:
            raise UserError(
                f"{self.out / task.study} has to hold finished runs of one task with "
                f"{dict(task.settings)}, not {len(sections)}"
            )
        section = sections[0]
        best: dict[str, Group] = {}
        for group in by_standing(section.groups):
            best.setdefault(group.model, group)
        missing = [model for model in needed if model not in best]
        if missing:
            raise UserError(f"{task.title} has no finished run of {' and '.join(missing)}")
        section.groups = list(best.values())
        models = list(best)
        specs = ["model=lstm", *(f"model={m}" for m in models if m not in ("lstm", OURS))]
        choose_baselines([section], specs)
        results = {result.group.model: result for result in analyse(section, specs).results}
        tests = {}
        for model, result in results.items():
            test = None if model == OURS else results[OURS].comparisons[result.group.label]
            if test is not None and test.test_accuracy is not None:
                tests[model] = test.test_accuracy
        ordered = {name: results[name] for name in NAMES if name in results}
        return Compared(task, ordered, tests)


def correct(compared: Sequence[Compared], against: Sequence[str], planned: int) -> None:
    """Applies Holm's correction over the tests against these models on all the tasks.

    Args:
        planned: how many tests the plan names. Those that are not made yet count as p = 1.
    """
    family = [(each.tests, model) for each in compared for model in against if model in each.tests]
    # Where all pairs differ by the same there is no p: nothing is shown.
    p_values = [1.0 if (p := tests[model].p) is None else p for tests, model in family]
    corrected = holm(p_values + [1.0] * (planned - len(p_values)))
    for (tests, model), p_holm in zip(family, corrected, strict=False):
        tests[model] = replace(tests[model], p_holm=p_holm)


def markdown(header: Sequence[str], left: int, rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a Markdown table whose first columns are text."""
    rule = ["---"] * left + ["--:"] * (len(header) - left)
    lines = ["".join(f"| {cell} " if cell else "| " for cell in row) for row in (header, *rows)]
    return [f"{lines[0]}|", f"|{'|'.join(rule)}|", *(f"{line}|" for line in lines[1:])]


def mean(result: GroupResult | None, digits: int = 2) -> str:
    """Returns the mean test accuracy in percent."""
    summary = None if result is None else result.test_accuracy
    return wording.NONE if summary is None else f"{100 * summary.mean:.{digits}f}"


def epochs(result: GroupResult) -> str:
    """Returns the part of the LSTM's epochs in which a model reaches the LSTM's best validation."""
    way = result.to_best
    ratio = wording.ratio(way.epochs_ratio, way.reach)
    if way.reach is not None and not way.reach.all_reached:
        ratio += f" ({way.reach.reached} of {way.reach.runs})"
    return ratio
