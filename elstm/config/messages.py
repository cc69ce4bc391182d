"""Converts errors of Hydra and OmegaConf to messages with the key and the allowed values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from elstm.config.fields import leaves
from elstm.config.hints import NO_OPTION, options_with, unknown_key
from elstm.config.hydra_nodes import Root
from elstm.config.schema import SCHEMAS, Config, SweepConfig, TrackingConfig, TrainerConfig
from elstm.config.values import wrong_value
from elstm.errors import UserError, show, show_key


def explain(error: BaseException, arguments: Sequence[str] = ()) -> UserError:
    """Returns a UserError for an exception of Hydra or OmegaConf.

    Args:
        arguments: of the command line, if the exception is about what Hydra composed of them.
    """
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    for cause in chain:
        if isinstance(cause, OmegaConfBaseException) and cause.full_key:
            return _explain_key(cause, str(error), arguments)
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, RecursionError):
        text = "nested too deeply"
    return UserError(text if len(text) <= 400 else f"{text[:400]}...")


def _explain_key(error: OmegaConfBaseException, outer: str, arguments: Sequence[str]) -> UserError:
    key, owner = str(error.full_key), error.object_type
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if key == "hydra.launcher.n_jobs":
        return UserError(f"{key} needs a launcher that has it: -m hydra/launcher=joblib {key}=N")
    unknown = isinstance(error, ConfigAttributeError | ConfigKeyError)
    if unknown and key.startswith(("hydra.launcher.", "hydra.sweeper.")):
        group, kind = key.rpartition(".")[0], key.split(".")[1]
        names = getattr(owner, "__dataclass_fields__", ())
        known = [f"{group}.{name}" for name in names if name[0] != "_" and name != "params"]
        if known:
            return unknown_key(key, known)
        return UserError(
            f"{show_key(key)}: this {kind} has no settings; hydra/{kind}=NAME chooses another"
        )
    if key.startswith("hydra."):
        return UserError(f"{show_key(key)}: {show(text)}")
    if key.partition(".")[0] in NO_OPTION and "Could not override" not in outer:
        return UserError(
            f"{show_key(key)}: the first line of such a file has to be '# @package _global_', "
            "because its settings are those of all groups"
        )
    if unknown:
        given = re.search(r"Could not override '([^']*)'", outer)
        if given and given[1].startswith(f"{key}."):
            key = given[1]
        in_file = None if given else _set_by_a_file(key, arguments)
        return in_file or unknown_key(key, _known_keys(key, owner))
    owner = Config if owner is Root else owner
    name = key.rpartition(".")[2]
    ours = owner is not None and owner.__module__.startswith(f"{__package__}.")
    # An error may name another node than the one that the key belongs to.
    ours = ours and name in getattr(owner, "__dataclass_fields__", {})
    if not ours or key in SCHEMAS or key in ("trainer", "tracking", "sweep"):
        return UserError(f"{show_key(key)}: {show(text)}")
    value = re.match(r"Value '(.*)' of type", text)
    shown = value[1] if value else outer.splitlines()[0].rpartition("=")[2]
    assert owner is not None  # because elstm defines it
    return wrong_value(key, shown, owner, name)


def _set_by_a_file(key: str, arguments: Sequence[str]) -> UserError | None:
    """Returns the error for a key of an experiment's file that the chosen option does not have."""
    chosen = {a.lstrip("+").partition("=")[0]: a.lstrip("+") for a in arguments}
    group, files = key.partition(".")[0], [chosen[g] for g in NO_OPTION if g in chosen]
    if key in chosen or group not in chosen or not files or not options_with(key):
        return None
    kind, _, name = files[0].partition("=")
    option = show(chosen[group])
    return UserError(
        f"{show(' or '.join(files))} sets {show_key(key)}, which {option} does not have: leave "
        f"{option} out, or write DIR/{kind}/NAME.yaml as {kind}/{show(name)}.yaml, but without "
        f"this key, and give --config-dir DIR {kind}=NAME"
    )


def _known_keys(key: str, owner: Any) -> list[str]:
    """Returns the keys that exist at the place of an unknown key."""
    owners: dict[str, list[Any]] = {
        "trainer": [TrainerConfig], "tracking": [TrackingConfig], "sweep": [SweepConfig]
    }  # fmt: skip
    owners |= {group: list(schemas.values()) for group, schemas in SCHEMAS.items()}
    group = key.partition(".")[0]
    if group in owners and hasattr(owner, "__dataclass_fields__"):  # the option chosen alone
        inner = [each for each in owners[group] if any(o is owner for _, o, _ in leaves(each))]
        owners[group] = [owner] if owner in owners[group] else inner[:1] or [owner]
    names = [
        f"{name}.{field}"
        for name, schemas in owners.items()
        for schema in schemas
        for field, _, _ in leaves(schema)
    ]
    return [*dict.fromkeys(names), "seed", *NO_OPTION]
