"""Reads the files that describe studies (conf/study) within bounds, as their origin is unknown.

A file holds:

    question, hypothesis, tuned, tests, cost    text; what is tuned on what, how it is tested
    stopping          text: when a run and when the study ends
    models, seeds     lists: each model is trained with each seed
    settings          KEY: VALUE, of every run; a group such as optimizer is a key too
    grid              KEY: [VALUE, ...]: each combination is trained
    choose            studies (NAME or NAME/PATH) whose best setting by validation each model takes;
                      {from: NAME, model: MODEL}: the best setting of that model, for all models;
                      {from: [NAME, ...]}: the best setting in several places; a study may choose
                      from its own runs, which earlier parts have trained
    parts             several of the above; each part takes what it does not name from the study,
                      and its settings count after the chosen ones
    quick             settings for --quick, which count last, and `seeds`, their number
    alone             true: one run at a time, whatever --jobs is, because times are compared
    gpu               true: trained only if there is a GPU
    report            title, baselines, figures; times: false draws no wall-clock times; `with`:
                      runs of other studies, as NAME/DATA/MODEL, where * stands for any text
    tables            FILE.md: PATH, the settings of the runs below PATH as a table, best first
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from elstm.errors import UserError
from elstm.files.bounded import Damaged, Value, flatten, one_line, read_tree

Settings = dict[str, Value]


@dataclass(frozen=True)
class Part:
    """Holds models, seeds and a grid that are trained together."""

    models: list[str]
    seeds: list[int]
    settings: Settings = field(default_factory=dict)
    grid: dict[str, list[Value]] = field(default_factory=dict)
    choose: list[Any] = field(default_factory=list)
    quick: bool = True  # whether --quick trains it


@dataclass(frozen=True)
class Study:
    """Holds a study as its file describes it."""

    name: str
    settings: Settings
    parts: list[Part]
    quick: dict[str, Any]
    alone: bool
    gpu: bool
    report: dict[str, Any]
    tables: dict[str, str]

    @property
    def sources(self) -> set[str]:
        """Returns the names of the studies whose best settings this one uses."""
        return {
            place.partition("/")[0]
            for part in self.parts
            for each in part.choose
            for place in source_of(each)[0]
        }


TEXTS = ("question", "hypothesis", "tuned", "tests", "cost", "stopping")
KINDS: dict[str, type] = {
    **dict.fromkeys(TEXTS, str),
    **dict.fromkeys(("models", "seeds", "choose", "parts"), list),
    **dict.fromkeys(("settings", "grid", "quick", "report", "tables"), dict),
    **dict.fromkeys(("alone", "gpu"), bool),
}
REQUIRED = ("question", "hypothesis", "tuned", "tests", "cost", "models", "seeds")
_KEY = re.compile(r"[A-Za-z_][\w./]*", re.ASCII)
_FILE = re.compile(r"\w[\w.-]*\.md", re.ASCII)
_KIND_NAMES = {str: "text", list: "list", dict: "mapping", bool: "true or false"}
REPORT = {"title": str, "baselines": list, "figures": list, "times": bool, "with": list}


def read_study(path: Path) -> Study:
    """Reads a study's file.

    Raises:
        UserError: it cannot be read, or a key is unknown, missing or of another type.
    """
    try:
        tree = read_tree(path)
        flatten(tree, path.name)  # bounds the size to which aliases unfold
    except Damaged as error:
        raise UserError(f"{path}: {error}") from None
    _check(path, tree, KINDS)
    for key in REQUIRED:
        if key not in tree:
            raise UserError(f"{path}: {key} is missing; a study has {', '.join(REQUIRED)}")
    _check(path, tree.get("report", {}), REPORT, "report.")
    names = [each.name for each in fields(Part)]
    shared = {key: tree[key] for key in ("models", "seeds", "grid", "choose") if key in tree}
    parts = []
    for part in tree.get("parts", [{}]):
        if not isinstance(part, dict):
            raise UserError(f"{path}: parts holds {one_line(part, 40)}, which is no mapping")
        _check(path, part, {key: bool if key == "quick" else KINDS[key] for key in names}, "parts.")
        parts.append(Part(**{**shared, **part}))
    study = Study(
        name=path.stem,
        settings=tree.get("settings", {}),
        parts=parts,
        quick=tree.get("quick", {}),
        alone=tree.get("alone", False),
        gpu=tree.get("gpu", False),
        report=tree.get("report", {}),
        tables=tree.get("tables", {}),
    )
    _check_values(path, study)
    return study


def _check(path: Path, tree: dict[str, Any], kinds: dict[str, Any], prefix: str = "") -> None:
    for key, value in tree.items():
        if key not in kinds:
            known = ", ".join(kinds)
            raise UserError(f"{path}: there is no {prefix}{one_line(key, 40)}; there are {known}")
        if not isinstance(value, kinds[key]):
            raise UserError(f"{path}: {prefix}{key} is no {_KIND_NAMES[kinds[key]]}")


def _check_values(path: Path, study: Study) -> None:
    """Checks the values that become arguments of elstm-train, and that places lie below a study."""

    def check(what: str, value: object, good: bool, expected: str) -> None:
        if not good:
            raise UserError(f"{path}: {what} {one_line(value, 40)} is no {expected}")

    quick = study.quick.get("settings", {})
    check("quick.settings", quick, isinstance(quick, dict), "mapping")
    seeds = study.quick.get("seeds", 1)
    check("quick.seeds", seeds, type(seeds) is int and seeds > 0, "number of seeds")
    for settings in (study.settings, quick, *(part.settings for part in study.parts)):
        for key, value in settings.items():
            check("the key", key, isinstance(key, str) and bool(_KEY.fullmatch(key)), "setting")
            check(key, value, isinstance(value, str | int | float | None), "single value")
    for part in study.parts:
        for model in part.models:
            check("the model", model, isinstance(model, str) and model.isidentifier(), "name")
        for seed in part.seeds:
            check("the seed", seed, type(seed) is int, "integer")
        for key, values in part.grid.items():
            check("the key", key, isinstance(key, str) and bool(_KEY.fullmatch(key)), "setting")
            check(
                f"grid.{key}", values, isinstance(values, list) and bool(values), "list of values"
            )
            for value in values:
                check(f"grid.{key}", value, isinstance(value, str | int | float | None), "value")
    sources = [
        place for part in study.parts for each in part.choose for place in source_of(each)[0]
    ]
    for place in (*sources, *study.report.get("with", []), *study.tables.values()):
        inner = isinstance(place, str) and not place.startswith("/") and "\\" not in place
        check("the place", place, inner and ".." not in str(place).split("/"), "path of a study")
    for name in study.tables:
        check("tables:", name, bool(_FILE.fullmatch(str(name))), "file name that ends in .md")
    for key in ("baselines", "figures"):
        for value in study.report.get(key, []):
            check(f"report.{key}", value, isinstance(value, str), "text")


def source_of(each: Any) -> tuple[list[str], str | None]:
    """Returns the places of a choice, and the model whose setting is chosen if it is named."""
    if isinstance(each, str):
        return [each], None
    if isinstance(each, dict) and {"from"} <= each.keys() <= {"from", "model"}:
        places = each["from"] if isinstance(each["from"], list) else [each["from"]]
        if places:
            model = each.get("model")
            return [str(place) for place in places], model if model is None else str(model)
    raise UserError(
        f"choose: {one_line(each, 60)}; write STUDY or {{from: STUDY, model: MODEL}}, where "
        "`from` may be a list and `model` may be absent"
    )


def in_order(studies: Sequence[Study]) -> list[Study]:
    """Returns the studies so that each comes after those from which it takes settings."""
    by_name = {study.name: study for study in studies}
    graph = {name: study.sources & by_name.keys() - {name} for name, study in by_name.items()}
    try:
        return [by_name[name] for name in TopologicalSorter(graph).static_order()]
    except CycleError as error:
        raise UserError(f"studies choose from each other: {' <- '.join(error.args[1])}") from None
