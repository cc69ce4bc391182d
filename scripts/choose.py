"""Each model's best setting, by validation accuracy, from the runs of a tuning stage.

    python scripts/choose.py outputs/paper/tuning                # a table, as Markdown
    python scripts/choose.py outputs/paper/tuning --model lstm   # its setting, as overrides

A setting is what differs between a model's runs besides the seed. Of the settings with the most
seeds the one with the highest mean of the best validation accuracies is taken: a second seed is
spent on the best of the first alone. Test accuracies are not looked at.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from elstm.errors import UserError
from elstm.reporting.groups import Group, choose_baselines, make_sections, show_value
from elstm.reporting.runs import load_runs


@dataclass(frozen=True)
class Setting:
    """One setting of one model; `bests` are its best validation accuracies, by seed."""

    model: str
    overrides: tuple[str, ...]
    bests: tuple[float, ...]

    @property
    def mean(self) -> float:
        return sum(self.bests) / len(self.bests)


def read_settings(folder: Path) -> dict[str, list[Setting]]:
    """By model its settings, the best first.

    Raises:
        UserError: no finished runs there, or runs on several tasks.
    """
    runs, _ = load_runs([folder])
    sections = make_sections([run for run in runs if run.state == "done"])
    if len(sections) != 1:
        raise UserError(f"{folder} has to hold finished runs on one task, not {len(sections)}")
    choose_baselines(sections, [])
    models: dict[str, list[Group]] = {}
    for group in sections[0].groups:
        models.setdefault(group.model, []).append(group)
    return {model: _ranked(groups) for model, groups in models.items()}


def _ranked(groups: Sequence[Group]) -> list[Setting]:
    varied = {
        key for key in groups[0].settings if len({group.settings.get(key) for group in groups}) > 1
    }
    settings = [
        Setting(
            group.model,
            tuple(f"{key}={show_value(group.settings[key])}" for key in sorted(varied)),
            tuple(run.best_val_accuracy for run in group.runs if run.best_val_accuracy is not None),
        )
        for group in groups
    ]
    return sorted(settings, key=lambda s: (-len(s.bests), -s.mean))


def table(models: dict[str, list[Setting]]) -> str:
    """All settings of all models, the chosen ones in bold."""
    lines = ["| model | setting | best validation accuracy, % | seeds |", "|---|---|--:|--:|"]
    for model, settings in models.items():
        for setting in settings:
            mark = "**" if setting is settings[0] else ""
            name = ", ".join(override.partition(".")[2] for override in setting.overrides)
            name = re.sub(r"gamma_c=(\S+), gamma_hh=\1, gamma_ih=\1,", r"gamma=\1,", name)
            mean = f"{mark}{100 * setting.mean:.2f}{mark}"
            lines.append(f"| {model} | {mark}{name}{mark} | {mean} | {len(setting.bests)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", help="print this model's setting alone")
    args = parser.parse_args()
    try:
        models = read_settings(args.folder)
        if args.model is None:
            print(table(models))
        elif args.model in models:
            print(" ".join(models[args.model][0].overrides))
        else:
            raise UserError(f"no finished run of {args.model} in {args.folder}")
    except UserError as error:
        sys.exit(f"choose.py: error: {error}")


if __name__ == "__main__":
    main()
