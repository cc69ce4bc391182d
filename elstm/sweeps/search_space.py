"""What a search chooses from: the ranges and choices of a command line, typed by the config.

Hydra's own grammar: `interval(a,b)` and `tag(log, interval(a,b))` are of the key's type, whole
numbers for model.hidden_size and real ones for optimizer.lr; `range(a,b,step)` has steps; a list,
`choice(...)` and `glob(...)` are choices without an order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from elstm.config.check import number_type, show
from elstm.config.compose import Composer
from elstm.config.schema import Config
from elstm.errors import UserError
from elstm.sweeps.plan import MAX_RUNS, identity, words_of

DIGITS = 4  # of a real number that a search has chosen: what people can read and type


@dataclass(frozen=True)
class Range:
    """From low to high, both included."""

    low: float
    high: float
    step: float | None = None
    log: bool = False
    whole: bool = False

    def text(self, value: float) -> str:
        if self.whole:
            return str(int(value))
        if self.step is not None:
            return f"{value:.12g}"
        return repr(min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high))


class Space:
    """The keys that a search varies, each with its range or its choices.

    Args:
        overrides: of the command line, parsed; those with one value are fixed.

    Raises:
        UserError: a range or a choice that the config does not allow, alone or with the others.
    """

    def __init__(self, composer: Composer, overrides: Sequence[Override]) -> None:
        given = {o.get_key_element(): o for o in overrides if not o.is_hydra_override()}
        self.configs = composer.many()
        self.keys = list(given)
        self.fixed = {k: _value(words_of(o)[0]) for k, o in given.items() if not _varied(o)}
        varied = {k: o for k, o in given.items() if _varied(o)}
        if not varied:
            raise UserError(
                "a search needs something to vary: 'optimizer.lr=tag(log,interval(1e-3,1e-1))', "
                "model.gamma_c=0.1,1"
            )
        numbers = {
            k: o for k, o in varied.items() if isinstance(o._value, IntervalSweep | RangeSweep)
        }
        self.choices = {
            k: [*map(_value, words_of(o))] for k, o in varied.items() if k not in numbers
        }
        self.ranges: dict[str, Range] = {}
        first = self.config({
            **{k: values[0] for k, values in self.choices.items()},
            **{k: _ends(o)[0] for k, o in numbers.items()},
        })  # fmt: skip
        for key, override in numbers.items():
            self.ranges[key] = _range(override, first)
        self.first = self._check()

    def words(self, values: Mapping[str, Any]) -> dict[str, str]:
        """The text of each key's value, of what a sampler chose."""
        return {
            key: self.ranges[key].text(values[key]) if key in self.ranges else str(values[key])
            for key in self.keys
            if key in values
        }

    def all_words(self, varied: Mapping[str, str]) -> list[str]:
        """KEY=VALUE for all keys, in the order of the command line."""
        values = {**self.fixed, **varied}
        return [f"{key}={values[key]}" for key in self.keys]

    def config(self, varied: Mapping[str, str]) -> Config:
        return self.configs(self.all_words(varied))

    def _check(self) -> Config:
        """Composes every combination of choices with the ranges' ends; returns the first."""
        count = math.prod(len(values) for values in self.choices.values())
        if count > MAX_RUNS:
            raise UserError(f"{count:,} combinations of choices: at most {MAX_RUNS:,} are possible")
        first, *_ = map(self.config, self._corners())  # composing is the check: of all of them
        return first

    def _corners(self) -> Iterator[dict[str, str]]:
        for end in ("low", "high"):
            ends = {key: r.text(getattr(r, end)) for key, r in self.ranges.items()}
            for values in itertools.product(*self.choices.values()):
                yield {**dict(zip(self.choices, values, strict=True)), **ends}

    def __repr__(self) -> str:
        """What makes two searches the same: the fixed settings, and what is chosen from."""
        return repr(
            (identity(self.first), sorted(self.ranges.items()), sorted(self.choices.items()))
        )


def _varied(override: Override) -> bool:
    return bool(override.is_sweep_override())


def _value(word: str) -> str:
    return word.partition("=")[2]


def _ends(override: Override) -> tuple[str, str]:
    value = override._value
    if isinstance(value, IntervalSweep):
        return f"{value.start:.15g}", f"{value.end:.15g}"  # Hydra has made 4 into 4.0
    first, *rest = [*map(_value, words_of(override))]
    return first, rest[-1] if rest else first


def _range(override: Override, config: Config) -> Range:
    """Raises UserError where the key takes no numbers, or the range is empty."""
    key, line, value = override.get_key_element(), show(override.input_line), override._value
    kind = number_type(config, key)
    if kind is None:
        raise UserError(f"{line}: {key} takes no range of numbers; list some values")
    low, high = map(float, _ends(override))
    log = "log" in value.tags
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise UserError(f"{line}: has to go from a number to a higher one")
    step = abs(float(value.step)) if isinstance(value, RangeSweep) else None
    if log and (low <= 0 or step is not None):
        raise UserError(f"{line}: on a logarithmic scale an interval above 0 is possible")
    if kind is int and not all(float(n or 0).is_integer() for n in (low, high, step)):
        raise UserError(f"{line}: {key} takes whole numbers")
    return Range(low, high, step, log, kind is int)
