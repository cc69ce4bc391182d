"""Ranks the settings of each model in a study by validation accuracy, or over folds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from elstm.errors import UserError
from elstm.files.bounded import Value
from elstm.reporting.groups import Group, choose_baselines, folds_of, make_sections
from elstm.reporting.labels import differing_keys, show_value
from elstm.reporting.repeat import quoted
from elstm.reporting.runs import load_runs
from elstm.reporting.stats import Folds, summarize


@dataclass(frozen=True)
class RankedSetting:
    """Holds a setting of a model.

    Attributes:
        bests: the accuracies of its runs, by fold and seed.
        folds: their folds, where the runs are on several of a cross-validation.
    """

    model: str
    overrides: tuple[str, ...]
    bests: tuple[float, ...]
    folds: Folds | None = None

    @property
    def mean(self) -> float:
        """Returns the mean over the runs, or over the folds; -1 if there is none."""
        summary = summarize(self.bests, self.folds)
        return -1.0 if summary is None else summary.mean


def read_settings(folders: Sequence[Path]) -> dict[str, list[RankedSetting]]:
    """Returns each model's settings, the best first.

    A setting consists of all that differs between a model's runs besides the seed. Runs that were
    extended are left out, because no setting repeats their schedule. Among the settings with the
    most seeds, the one with the highest mean of the best validation accuracies comes first, because
    only the best ones are trained with more seeds. Test accuracies are not read, except in
    cross-validation with data.val_fraction=0, where the part left out validates.

    Args:
        folders: run folders or archives of studies, or paths below them.

    Raises:
        UserError: there are no finished runs, or runs on several tasks.
    """
    runs, _ = load_runs(folders)
    planned = [run for run in runs if run.state == "done" and not run.extensions]
    sections = make_sections(planned)
    if len(sections) != 1:
        places = ", ".join(map(str, folders))
        raise UserError(f"{places} has to hold finished runs on one task, not {len(sections)}")
    choose_baselines(sections, [])
    models: dict[str, list[Group]] = {}
    for group in sections[0].groups:
        models.setdefault(group.model, []).append(group)
    return {model: _ranked(groups) for model, groups in models.items()}


def best_overrides(folders: Sequence[Path], model: str) -> tuple[str, ...]:
    """Returns the best setting of a model as overrides of the command line.

    Raises:
        UserError: the model has no finished run there.
    """
    models = read_settings(folders)
    if model not in models:
        raise UserError(f"no finished run of {model} in {', '.join(map(str, folders))}")
    return models[model][0].overrides


def _ranked(groups: Sequence[Group]) -> list[RankedSetting]:
    varied = set(differing_keys([group.settings for group in groups])) - {"processes"}
    settings = []
    for group in groups:
        overrides = tuple(
            f"{key}={_as_override(group.settings[key])}"
            for key in sorted(varied & group.settings.keys())
        )
        found = [(run, best) for run in group.runs if (best := run.choosing_accuracy) is not None]
        bests = tuple(best for _, best in found)
        folds = folds_of([run for run, _ in found], group.folds)
        settings.append(RankedSetting(group.model, overrides, bests, folds))
    if not any(setting.bests for setting in settings):
        raise UserError(
            f"the runs of {groups[0].model} have neither a validation split nor folds, so that no "
            "setting can be chosen"
        )
    return sorted(settings, key=lambda s: (-len(s.bests), -s.mean))


def _as_override(value: Value) -> str:
    """Returns a setting as Hydra reads it back, with all digits and the complete text."""
    if isinstance(value, str):
        return quoted(value)
    shown = show_value(value)
    return repr(value) if isinstance(value, float) and float(shown) != value else shown


def _without_bars(text: str) -> str:
    """Returns text in which no bar ends a cell of a Markdown table."""
    return text.replace("\\", "\\\\").replace("|", "\\|")


def settings_table(models: dict[str, list[RankedSetting]]) -> str:
    """Returns all settings of all models as a Markdown table, the best of each in bold."""
    lines = ["| model | setting | best validation accuracy, % | seeds |", "|---|---|--:|--:|"]
    for model, settings in models.items():
        for setting in settings:
            mark = "**" if setting is settings[0] else ""
            name = ", ".join(override.partition(".")[2] for override in setting.overrides)
            name = re.sub(r"gamma_c=(\S+), gamma_hh=\1, gamma_ih=\1,", r"gamma=\1,", name)
            mean = f"{mark}{100 * setting.mean:.2f}{mark}"
            cells = model, f"{mark}{name}{mark}", mean, str(len(setting.bests))
            lines.append(f"| {' | '.join(map(_without_bars, cells))} |")
    return "\n".join(lines)
