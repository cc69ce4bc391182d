"""Makes the page of `elstm-train --help` from the groups and options in conf/, without Hydra."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from elstm.errors import UserError, show

CONFIG_DIR = "command-line"  # Hydra's name for the source of --config-dir
HEAD = """\
elstm-train trains an LSTM, plain or with batch normalisation, to classify
sequences, or images that are read as sequences.

usage: elstm-train [GROUP=OPTION ...] [KEY=VALUE ...]
       elstm-train -m GROUP=OPTION,OPTION,... KEY=VALUE,VALUE,...   a sweep
       elstm-train trainer.resume=RUN_DIR           resumes an interrupted run

examples:
  elstm-train
  elstm-train data=fashion_mnist model.hidden_size=256 trainer.max_epochs=20
  elstm-train -m experiment=fashion_rows model=lstm,bn_lstm,elstm_bn seed=0,1,2
  elstm-train -m hydra/launcher=joblib hydra.launcher.n_jobs=2 seed=0,1,2,3
  elstm-train -m hydra/sweeper=optuna 'optimizer.lr=interval(1e-3,1e-1)'

groups (* the default):
"""

TAIL = """
keys: seed, model.*, data.*, optimizer.*, scheduler.*, trainer.*, tracking.*,
      sweep.*; with hydra/sweeper=optuna, hydra.sweeper.* too
  elstm-train --cfg job           shows all keys with their values
  elstm-train --help KEY          describes a key; --help GROUP all of its keys

flags:
  -m, --multirun              trains all combinations; skips finished runs
                              hydra/launcher=joblib, slurm: several at once
                              hydra/sweeper=optuna: a search over ranges
                              These need: pip install 'elstm[sweeps]'
  --cfg job|hydra|all, -c     shows the config and trains nothing; with
                              --resolve, --package KEY
  --cfg job --help            the same, and what each key does, as comments
  --config-dir DIR, -cd       adds options of groups: DIR/experiment/mine.yaml
  --info [TOPIC], -i          shows how Hydra composes: defaults, searchpath...
  --shell-completion, -sc     completes groups and keys, after this command:
                              eval "$(elstm-train -sc install=bash)"
  --hydra-help, --version, --help

Runs go to outputs/DATA/MODEL/CHANGES/TIME-ID/, where CHANGES is what the
command line changes and the seed: .hydra/ (the config), train.log,
metrics.csv, status.json, checkpoints/ and TensorBoard's events. See these
with: tensorboard --logdir outputs"""

INDENT = 31  # column of the descriptions of options
GROUPS = ("model", "data", "optimizer", "scheduler", "trainer", "experiment", "debug")


def find_config_dir() -> Path:
    """Returns the path of conf/ in an installed wheel, or else in the repository."""
    package = Path(__file__).resolve().parents[1]
    return next((d for d in (package / "conf", package.parent / "conf") if d.is_dir()), package)


def find_extra_dir(given: str) -> Path:
    """Returns the absolute path of the folder in --config-dir.

    Raises:
        UserError: there is no such folder.
    """
    try:
        folder = Path(given).expanduser().absolute()
    except RuntimeError as error:  # ~somebody without a home
        raise UserError(f"--config-dir {show(given)}: {error}") from error
    if not folder.is_dir():
        raise UserError(f"--config-dir {show(given)}: there is no such folder")
    return folder


def text(config_dir: Path, extra_dir: Path | None = None) -> str:
    """Returns the page."""
    return f"{HEAD}{''.join(options(config_dir, extra_dir))}{TAIL}"


def options(
    config_dir: Path, extra_dir: Path | None = None, groups: Sequence[str] = GROUPS
) -> Iterator[str]:
    """Yields the lines that describe the options of some groups.

    Args:
        extra_dir: that of --config-dir, whose files take precedence.
    """
    main = (config_dir / "config.yaml").read_text(encoding="utf-8")
    for group in groups:
        folders = [folder / group for folder in (config_dir, extra_dir) if folder is not None]
        files = {path.stem: path for folder in folders for path in folder.glob("*.yaml")}
        for i, (_, path) in enumerate(sorted(files.items())):
            mark = "*" if f"- {group}: {path.stem}\n" in main else " "
            name = f"{group}=" if i == 0 else ""
            first, *rest = textwrap.wrap(describe(path), 80 - INDENT) or [""]
            start = f"  {name:<11}{mark} {path.stem:<15}"
            if len(start) >= INDENT:
                start, first, rest = f"{start}\n", "", [first, *rest]
            else:
                start, first = f"{start} ", f"{first}\n"
            yield start + first + "".join(f"{'':{INDENT}}{line}\n" for line in rest)


def describe(path: Path) -> str:
    """Returns the first comment of a YAML file that is not for Hydra.

    It ends with the first line that ends with a full stop.
    """
    found: list[str] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("# ") and not line.startswith("# @package"):
            found.append(line[2:])
            if line.endswith("."):
                break
        elif found:
            break
    return " ".join(found)
