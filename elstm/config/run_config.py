"""Reads the config of a run folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elstm.config.check import config_from, resolve
from elstm.config.data_options import DATA_NAME, DATA_ROOT
from elstm.config.hints import keys_of, unknown_key
from elstm.config.schema import Config
from elstm.errors import UserError, in_full
from elstm.files.bounded import Damaged, read_config


def load_run_config(run_dir: str | Path, changed: Mapping[str, Any] | None = None) -> Config:
    """Reads the config of a run from RUN_DIR/.hydra/config.yaml, and executes nothing in it.

    If the folder in data.root does not exist here, ELSTM_DATA takes its place.

    Args:
        changed: settings that replace those of the run, by key.

    Raises:
        UserError: the folder is no run folder, the file is damaged or holds wrong values, or
            `changed` does.
    """
    run_dir = Path(run_dir)
    folder = in_full(str(run_dir))
    if run_dir.is_file():
        raise UserError(f"{folder} is a file, not a run folder{_run_of(run_dir)}")
    if not run_dir.is_dir():
        raise UserError(f"{folder}: there is no such folder; give a run folder, outputs/...")
    if (run_dir / ".hydra").is_symlink() or not (run_dir / ".hydra").is_dir():
        raise UserError(
            f"{folder} is not a run folder: it has no .hydra/config.yaml; "
            "give one like outputs/DATA/MODEL/CHANGES/TIME-ID"
        )
    try:
        stored = _with_data_name(read_config(run_dir / ".hydra" / "config.yaml"))
        config = config_from(_with_data_here(stored), stored=True)
    except Damaged as error:
        raise UserError(f"{folder}: .hydra cannot be read: {error}") from error
    except UserError as error:
        raise UserError(f"{folder}/.hydra/config.yaml: {error}") from error
    if not changed:
        return config
    known = keys_of(config)
    for key in changed:
        if key not in known:
            raise unknown_key(key, known)
    return config_from(_with_data_here({**stored, **changed}), stored=True)


def _with_data_name(flat: dict[str, Any]) -> dict[str, Any]:
    """Sets the name of user data to that of their first path, wherever they are read from now."""
    if flat.get("data.name") != DATA_NAME:
        return flat
    return {**flat, "data.name": resolve(flat)["data.name"]}


def _with_data_here(flat: dict[str, Any]) -> dict[str, Any]:
    """Replaces data.root if the run was started on another machine."""
    root = flat.get("data.root")
    if not os.environ.get("ELSTM_DATA") or not isinstance(root, str) or "${" in root:
        return flat
    try:
        here = Path(root).is_dir()
    except (OSError, ValueError):
        here = False
    return flat if here else {**flat, "data.root": DATA_ROOT}


def _run_of(path: Path) -> str:
    """Returns a hint with the run folder that contains a checkpoint or record."""
    near = [folder for folder in path.parents[:2] if (folder / ".hydra").is_dir()]
    if not near:
        return "; give one like outputs/DATA/MODEL/CHANGES/TIME-ID"
    return f"; did you mean its run, {in_full(str(near[0]))}?"
