"""elstm-train in a process of its own, and what it leaves in the current folder."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
NAME = r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{6}-[0-9a-f]{6}"


def run_dirs():
    return sorted(path for path in Path("outputs").glob("*/*/*/*") if path.is_dir())


def here():
    return sorted(path.name for path in Path().iterdir())


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file())


def command(*words, cwd, module="elstm.train", **options):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, "-m", module, *words],
        cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        **options,
    )  # fmt: skip
