"""Reads the ranges and choices that a search varies, with types from the config.

The grammar is that of Hydra. `interval(a,b)` and `tag(log, interval(a,b))` have the key's type,
integers for model.hidden_size and floats for optimizer.lr. `range(a,b,step)` has steps. A list,
`choice(...)` and `glob(...)` are choices without an order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from elstm.config.compose import Composer
from elstm.config.identity import identity
from elstm.config.schema import Config
from elstm.config.values import number_type
from elstm.errors import UserError, show
from elstm.sweeps.fingerprints import Fingerprints
from elstm.sweeps.plan import MAX_RUNS, last_ones, values_of

DIGITS = 4  # of a float that a search chooses, so that it is easy to read and type


class Space:
    """Holds the keys that a search varies, each with its distribution.

    Args:
        overrides: of the command line, parsed; those with one value are fixed.

    Attributes:
        distributions: Optuna's, by key.
        first: the config of one trial.
        undrawn: the config of a trial with data.val_fraction=0, which draws no validation split; or
            None.

    Raises:
        UserError: a range or a choice that the config does not allow, alone or with the others.
    """

    def __init__(self, composer: Composer, overrides: Sequence[Override]) -> None:
        from optuna.distributions import CategoricalDistribution

        given = last_ones(overrides)
        self._texts = {key: o.get_key_element() for key, o in given.items()}
        self._fixed = {k: values_of(o)[0] for k, o in given.items() if not o.is_sweep_override()}
        varied = {k: o for k, o in given.items() if k not in self._fixed}
        if not varied:
            raise UserError(
                "a search needs a range or a choice: 'optimizer.lr=tag(log,interval(1e-3,1e-1))', "
                "model.gamma_c=0.1,1"
            )
        numbers = {
            k: o for k, o in varied.items() if isinstance(o.value(), IntervalSweep | RangeSweep)
        }
        choices = {k: values_of(o) for k, o in varied.items() if k not in numbers}
        count = math.prod(map(len, choices.values()))
        if count > MAX_RUNS:
            raise UserError(f"{count:,} combinations of choices: at most {MAX_RUNS:,} are possible")
        config_of = composer.many()
        lowest = {k: _ends(o)[0] for k, o in numbers.items()}
        first = config_of(self.overrides({**{k: v[0] for k, v in choices.items()}, **lowest}))
        ranges = {k: _distribution(o, first) for k, o in numbers.items()}
        self.distributions = {
            **ranges,
            **{k: CategoricalDistribution(values) for k, values in choices.items()},
        }
        # Composing checks every combination of choices with both ends of all ranges.
        self.first = first
        self.undrawn: Config | None = None
        for end in ("high", "low"):
            ends = {k: _text(r, getattr(r, end)) for k, r in ranges.items()}
            for values in itertools.product(*choices.values()):
                chosen = dict(zip(choices, values, strict=True))
                config = config_of(self.overrides({**chosen, **ends}))
                if getattr(config.data, "val_fraction", None) == 0:
                    self.undrawn = config

    def texts(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Returns the values that a sampler chose as texts for overrides."""
        return {key: _text(self.distributions[key], value) for key, value in values.items()}

    def overrides(self, varied: Mapping[str, str]) -> list[str]:
        """Returns KEY=VALUE for all keys, in the order of the command line."""
        values = {**self._fixed, **varied}
        return [f"{text}={values[key]}" for key, text in self._texts.items()]

    def __repr__(self) -> str:
        """Returns the same text for equal searches: fixed settings and distributions."""
        prints = Fingerprints()
        known = identity(self.first, prints.of(self.first), prints.of_source(self.first))
        return repr((known, sorted(map(repr, self.distributions.items()))))


def _text(distribution: Any, value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    if distribution.step is not None:
        return f"{value:.12g}"
    rounded = float(f"{value:.{DIGITS}g}")
    return repr(min(max(rounded, distribution.low), distribution.high))


def _ends(override: Override) -> tuple[str, str]:
    value = override.value()
    if isinstance(value, IntervalSweep):
        return f"{value.start:.15g}", f"{value.end:.15g}"  # Hydra turns 4 into 4.0
    values = values_of(override)
    return values[0], values[-1]


def _distribution(override: Override, config: Config) -> Any:
    """Makes a distribution; raises UserError if the key takes no numbers or the range is empty."""
    from optuna.distributions import FloatDistribution, IntDistribution

    key, line, value = override.key_or_group, show(override.input_line), override.value()
    kind = number_type(config, key)
    if kind is None:
        raise UserError(f"{line}: {key} takes no range of numbers; list some values")
    low, high = map(float, _ends(override))
    log = "log" in value.tags
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise UserError(f"{line}: an interval goes from a number to a higher one")
    step = abs(float(value.step)) if isinstance(value, RangeSweep) else None
    if log and (low <= 0 or step is not None):
        raise UserError(f"{line}: a logarithmic scale needs an interval above 0")
    if kind is float:
        return FloatDistribution(low, high, log=log, step=step)
    if not all(float(n or 0).is_integer() for n in (low, high, step)):
        raise UserError(f"{line}: {key} takes integers")
    return IntDistribution(int(low), int(high), log, int(step or 1))
