"""Runs the tests that need a GPU, on several cores where pytest-xdist is installed.

python scripts/speed/gpu_tests.py [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def run(expression: str) -> tuple[int, list[dict[str, Any]]]:
    """Returns the exit status of pytest, and name, seconds and failure of each test that ran."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "tests", "-k", expression]
        command += ["--tb=short", f"--junitxml={report}", "-p", "no:cacheprovider"]
        command += ["-p", "no:benchmark"]  # pytest-benchmark warns about xdist, an error here
        options = f"-m 'not slow'{' -n 6' if find_spec('xdist') else ''}"
        command += ["-o", f"addopts={options}"]
        status = subprocess.run(command, check=False).returncode
        cases = list(ET.parse(report).iter("testcase")) if report.exists() else []
    rows = []
    for case in cases:
        failure = case.find("failure")
        if failure is None:
            failure = case.find("error")
        if case.find("skipped") is None:
            message = None if failure is None else failure.get("message", "")[:300]
            rows.append({
                "test": case.get("name"), "seconds": float(case.get("time", 0)), "failure": message,
            })  # fmt: skip
    return status, rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs the tests that need a GPU.")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("-k", default="gpu or cuda", metavar="EXPRESSION")
    args = parser.parse_args()
    status, rows = run(args.k)
    failed = [row for row in rows if row["failure"] is not None]
    print(f"{len(rows) - len(failed)} of {len(rows)} GPU tests passed")
    for row in failed:
        print(f"{row['test']}: {row['failure']}")
    if args.json:
        Path(args.json).write_text(json.dumps({"passed": len(rows) - len(failed), "tests": rows}))
    sys.exit(status)


if __name__ == "__main__":
    main()
