"""Sorts runs into sections by task and into groups by all that differs besides the seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from elstm.config.schema import settings_without_effect
from elstm.errors import UserError
from elstm.files.bounded import Config, Value
from elstm.reporting.completed import completed, data_settings
from elstm.reporting.labels import (
    differing_keys,
    make_label,
    make_unique,
    naming_keys,
    natural_key,
    show_value,
)
from elstm.reporting.runs import Run
from elstm.reporting.stats import Folds, summarize

# Differences that do not make another experiment. Threads change the times, so a report mentions
# where they differ.
IGNORED = ("seed", "data.fold", "hydra", *settings_without_effect())
# These settings under data. belong to the model's training; the others make the task.
TRAINING_DATA_KEYS = ("data.batch_size", "data.eval_batch_size", "data.bucket", "data.augment")
FINGERPRINT = "data.fingerprint"  # makes data of one name different tasks if they differ
# The order in which models are listed, plainest first; others follow by name.
MODEL_ORDER = (
    "lstm",
    "gru",
    "ln_lstm",
    "bn_lstm_input",
    "bn_lstm_gates",
    "bn_lstm_published",
    "bn_lstm",
    "elstm_bn",
    "elstm_bn_center",
)
MAX_LABEL = 60
# They stand in every label if they differ at all, because no model's name implies them.
BUDGET = ("trainer.max_epochs", "trainer.max_steps", "extended", "processes")

Task = tuple[str, frozenset[tuple[str, Value]]]  # the name of the data, and settings of the data

_RANK = {"done": 0, "running": 1, "interrupted": 2, "pruned": 3, "failed": 4}


@dataclass(eq=False)
class Group:
    """Holds runs that differ only in their seeds, and in cross-validation in their folds."""

    label: str
    model: str
    settings: Config  # what differs between the groups of the section
    runs: list[Run]  # one per fold and seed, in this order, without the failed
    failed: list[Run]
    superseded: list[Run]  # left out: another run with the same config and seed got further
    folds: int | None = None  # K, where the runs of the section are on several of K folds

    def count(self, state: str) -> int:
        return sum(run.state == state for run in self.runs)

    @property
    def counted_runs(self) -> list[Run]:
        """Returns the finished runs, or all runs while none is finished."""
        return [run for run in self.runs if run.state == "done"] or self.runs

    @property
    def best_validation(self) -> float:
        """Returns the mean of the accuracies by which settings are chosen; -1 if there is none."""
        runs = self.counted_runs
        mean = summarize([run.choosing_accuracy for run in runs], folds_of(runs, self.folds))
        return -1.0 if mean is None else mean.mean


@dataclass
class Section:
    """Holds all groups on one task, a data set that is cut into sequences in one way."""

    title: str
    data: str
    groups: list[Group]
    common: Config  # what all runs of the section share
    fingerprint: str = ""  # of the data, if the runs recorded it
    others: list[str] = field(default_factory=list)  # of other data with the same name
    baseline: Group = field(init=False)

    @property
    def folds(self) -> int | None:
        """Returns K, where the runs are on several of K folds."""
        return self.groups[0].folds

    @property
    def runs(self) -> list[Run]:
        """Returns the runs that count."""
        return [run for group in self.groups for run in group.runs]


def make_sections(runs: Iterable[Run], ignored: Sequence[str] = ()) -> list[Section]:
    """Returns the sections by title, with their groups in order; no baseline is chosen yet."""
    skipped = (*IGNORED, *ignored)
    tasks: dict[Task, list[Run]] = defaultdict(list)
    runs = list(runs)
    keys = {k for run in runs for k in run.config if _is_task(k) and not _is_in(k, skipped)}
    for run in runs:
        task = data_settings(run.config, keys)
        if run.fingerprint:
            task[FINGERPRINT] = run.fingerprint
        tasks[run.data, frozenset(task.items())].append(run)
    rivals = _divide_by_content(tasks)
    by_name: dict[str, list[Config]] = defaultdict(list)
    for name, items in tasks:
        by_name[name].append(dict(items))
    sections = []
    for (name, items), members in tasks.items():
        varying = differing_keys(by_name[name])
        title = make_label(name, dict(items), varying)
        groups, common = _groups(members, skipped)
        several = len({run.fold for run in members if run.fold is not None}) > 1
        for group in groups:
            group.folds = int(str(members[0].config["data.folds"])) if several else None
        here = str(dict(items).get(FINGERPRINT, ""))
        prints = {
            str(dict(each).get(FINGERPRINT, "")) for of, each in tasks.keys() - rivals if of == name
        }
        others = rivals.get((name, items), prints) - {here}
        sections.append(Section(title, name, groups, common, here, sorted(others)))
    sections.sort(key=lambda section: natural_key(section.title))
    make_unique(sections, lambda s: s.title, lambda s, title: setattr(s, "title", title))
    return sections


def _divide_by_content(tasks: dict[Task, list[Run]]) -> dict[Task, set[str]]:
    """Divides tasks whose runs read different files of a published set, as from two data.root.

    Returns the divided tasks, each with the checksums of all the files. Where there are no two
    checksums, the runs of earlier versions, which recorded none, count with the others.
    """
    divided: dict[Task, set[str]] = {}
    for (name, items), members in list(tasks.items()):
        contents = {run.content for run in members}
        if len(contents - {""}) < 2:
            continue
        del tasks[name, items]
        for content in sorted(contents):
            task = name, items | {(FINGERPRINT, content)} if content else items
            tasks[task] = [run for run in members if run.content == content]
            divided[task] = contents
    return divided


def _groups(runs: Sequence[Run], skipped: Sequence[str]) -> tuple[list[Group], Config]:
    members: dict[frozenset[tuple[str, Value]], list[Run]] = defaultdict(list)
    for run, config in zip(runs, completed([run.config for run in runs]), strict=True):
        kept = {key: value for key, value in config.items() if not _is_in(key, skipped)}
        if run.extensions:  # its schedule differs from that of a run planned at this length
            kept["extended"] = run.extensions
        if run.processes != 1:  # a step then has the batches of all of them
            kept["processes"] = run.processes
        members[frozenset(kept.items())].append(run)
    configs = [dict(items) for items in members]
    varying = differing_keys(configs)
    common = {key: configs[0][key] for key in configs[0].keys() - set(varying)}
    by_model: dict[Value, list[Config]] = defaultdict(list)
    for config in configs:
        by_model[config.get("model.name")].append(config)
    budget = [key for key in BUDGET if key in varying]
    telling = {name: sorted({*naming_keys(of), *budget}) for name, of in by_model.items()}
    groups = []
    for config, group_runs in zip(configs, members.values(), strict=True):
        model = group_runs[0].model
        settings = {key: config[key] for key in varying if key in config}
        label = make_label(model, settings, telling[config.get("model.name")])
        groups.append(_group(label, model, settings, group_runs))
    groups.sort(key=_group_order)
    for index, group in enumerate(groups, start=1):
        if len(group.label) > MAX_LABEL:
            group.label = f"{group.model} #{index}"
    make_unique(groups, lambda g: g.label, lambda g, label: setattr(g, "label", label))
    return groups, common


def _group(label: str, model: str, settings: Config, runs: Sequence[Run]) -> Group:
    best: dict[tuple[int, int], Run] = {}
    for run in sorted(runs, key=lambda r: (-_RANK[r.state], r.epoch, r.started, r.path)):
        best[run.pair] = run  # the last one is the furthest
    kept = sorted(best.values(), key=lambda run: run.pair)
    return Group(
        label,
        model,
        settings,
        runs=[run for run in kept if run.state != "failed"],
        failed=[run for run in kept if run.state == "failed"],
        superseded=[run for run in runs if best[run.pair] is not run],
    )


def folds_of(runs: Sequence[Run], count: int | None) -> Folds | None:
    """Returns the folds of the runs; None if the section does not have several folds."""
    return None if count is None else Folds([run.pair[0] for run in runs], count)


def choose_baselines(sections: Sequence[Section], specs: Sequence[str]) -> list[str]:
    """Sets each section's `baseline`: by the first spec, else `lstm`, else the first group.

    If a spec fits several groups, the first of `by_standing` is taken, because a baseline deserves
    its best setting. Returns the specs, checked.

    Raises:
        UserError: a spec fits no group of any section.
    """
    for spec in specs:
        if not any(matches(section, spec) for section in sections):
            labels = sorted({group.label for section in sections for group in section.groups})
            shown = "; ".join(labels[:12]) + ("; ..." if len(labels) > 12 else "")
            raise UserError(f"--baseline {spec}: no such group; give KEY=VALUE or one of: {shown}")
    for section in sections:
        section.baseline = (
            (matches(section, specs[0]) if specs else None)
            or matches(section, "model=lstm")
            or section.groups[0]
        )
        others = [group for group in section.groups if group is not section.baseline]
        section.groups = [section.baseline, *others]
    return list(specs)


def matches(section: Section, spec: str) -> Group | None:
    """Returns the group with this label, or the first by standing of those with this key=value."""
    exact = [group for group in section.groups if group.label == spec]
    key, _, value = spec.partition("=")
    fitting = exact or [group for group in section.groups if _has(group, section, key, value)]
    if not fitting and not value:
        fitting = [group for group in section.groups if group.model == spec]
    return next(iter(by_standing(fitting)), None)


def by_standing(groups: Iterable[Group]) -> list[Group]:
    """Sorts groups by the accuracy by which settings are chosen, the best first.

    Groups with less than half the finished runs of another come after the others, because the best
    of many settings with one seed each is partly the luckiest. Those without a finished run, with
    which nothing can be compared, come last.
    """
    groups = list(groups)
    most = max((group.count("done") for group in groups), default=0)

    def key(group: Group) -> tuple[bool, bool, float]:
        done = group.count("done")
        return done > 0, 2 * done >= most, group.best_validation

    return sorted(groups, key=key, reverse=True)


def _has(group: Group, section: Section, key: str, value: str) -> bool:
    settings = {**section.common, **group.settings}
    return any(
        show_value(setting) == value and (f".{name}".endswith((f".{key}", f".{key}.name")))
        for name, setting in settings.items()
    )


def leading_groups(section: Section, at_most: int, otherwise: int | None = None) -> list[Group]:
    """Returns all groups if they are few, else the baseline, each model's best and the next best.

    The order is that of `by_standing`, never by test accuracy on test data alone.

    Args:
        at_most: groups that count as few.
        otherwise: how many to choose if they are more; None: at_most.
    """
    if len(section.groups) <= at_most:
        return list(section.groups)
    ranked = by_standing(section.groups)
    firsts = {group.model: group for group in reversed(ranked)}  # each model's best
    leading = [section.baseline, *sorted(firsts.values(), key=ranked.index), *ranked]
    chosen: list[Group] = []
    for group in leading:
        if group not in chosen:
            chosen.append(group)
    return chosen[: at_most if otherwise is None else otherwise]


def _group_order(group: Group) -> tuple[int, list[tuple[int, float, str]]]:
    known = MODEL_ORDER.index(group.model) if group.model in MODEL_ORDER else len(MODEL_ORDER)
    return known, natural_key(group.label)


def _is_task(key: str) -> bool:
    return key.startswith("data.") and not _is_in(key, TRAINING_DATA_KEYS)


def _is_in(key: str, groups: Sequence[str]) -> bool:
    return any(key == group or key.startswith(group + ".") for group in groups)
