"""Describes a run for TensorBoard and other trackers: its settings, and texts in Markdown."""

from __future__ import annotations

import shlex
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from torch import nn

from elstm.config.fields import leaf, leaf_values
from elstm.config.help import CONFIG_DIR
from elstm.config.schema import Config, settings_without_effect
from elstm.files.bounded import Damaged, read_yaml, to_yaml


def hparams(config: Config) -> dict[str, int | float | str]:
    """Returns the config as TensorBoard's HPARAMS: {"model": "lstm", "model.hidden_size": 128}.

    Settings that are null or do not change the result are left out, and nested ones that have
    their defaults.
    """
    left_out = settings_without_effect()
    flat: dict[str, Any] = {"seed": config.seed}
    for group, options in vars(config).items():
        if is_dataclass(options):
            for name, value in leaf_values(options).items():
                found = leaf(type(options), name)
                if "." not in name or (found is not None and value != found[1].default):
                    flat[group if name == "name" else f"{group}.{name}"] = value
    kept = {
        k: v
        for k, v in flat.items()
        if v is not None and k not in left_out and k.partition(".")[0] not in left_out
    }
    # The table shows a bool as the number 0.0000, so bools become texts.
    return {k: str(v).lower() if isinstance(v, bool) else v for k, v in kept.items()}


def describe_run(config: Config, run_dir: Path, model: nn.Module) -> dict[str, str]:
    """Returns texts by tag; the command is missing where the folder does not have it."""
    tree = to_yaml(asdict(config))
    texts = {"run/config": _code(tree), "run/model": model_table(model)}
    with suppress(TypeError):
        words = ["elstm-train", *_config_dir(run_dir), *_overrides(run_dir)]
        texts["run/command"] = _code(shlex.join(words))
    return texts


def changed_keys(run_dir: Path) -> list[str]:
    """Returns the keys that the run's command sets."""
    return [str(each).lstrip("+").partition("=")[0] for each in _overrides(run_dir) or ()]


def _overrides(run_dir: Path) -> Any:
    """Returns the list in .hydra/overrides.yaml; None where the folder does not have it."""
    with suppress(Damaged):
        found = read_yaml(run_dir / ".hydra" / "overrides.yaml")
        return found if isinstance(found, list) else None
    return None


def _config_dir(run_dir: Path) -> list[str]:
    """Returns the flag --config-dir of the run's command, with an absolute path, if it has one."""
    with suppress(Damaged, KeyError, TypeError):
        stored = read_yaml(run_dir / ".hydra" / "hydra.yaml")
        for source in stored["hydra"]["runtime"]["config_sources"]:
            if source["provider"] == CONFIG_DIR:
                return ["--config-dir", str(source["path"])]
    return []


def model_table(model: nn.Module) -> str:
    """Returns a table of the modules that have direct parameters."""
    rows = ["module | class | parameters | shapes", "--- | --- | ---: | ---"]
    total = 0
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if not own:
            continue
        count = sum(p.numel() for p in own.values())
        total += count
        shapes = ", ".join(f"{key} {' x '.join(map(str, p.shape))}" for key, p in own.items())
        rows.append(f"{name or '(model)'} | {type(module).__name__} | {count:,} | {shapes}")
    return "\n".join([*rows, f"all | | {total:,} | "])


def _code(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
