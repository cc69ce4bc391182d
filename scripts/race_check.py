"""Runs the CPU backend's C code under ThreadSanitizer, AddressSanitizer and UBSan.

    python scripts/race_check.py          # a minute; ends non-zero where anything is found

race_check.c drives training, recompute, eval and layer normalisation by 1, 2 and 4 threads at odd
shapes, in float and double. It runs without Python and without OpenMP, whose barriers a sanitizer
does not know. First the barrier is removed, because the check is useful only if that race is found.
The script needs gcc or clang with sanitizers.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from elstm.nn.backends.cpu import build

HERE = Path(__file__).parent
SOURCES = Path(build.__file__).parent
SANITIZERS = {
    "threads": ("-fsanitize=thread",),
    "addresses": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
}


def check(name: str, bits: int, *defines: str) -> tuple[int, str]:
    """Returns exit code and output of the driver under one of SANITIZERS."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "race_check"
        flags = [flag for flag in build._FLAGS if flag not in ("-shared", "-O2")]
        command = [
            *build._compiler(), *flags, "-O1", "-g", *build._native(), *SANITIZERS[name],
            f"-DREAL_BITS={bits}", *defines, f"-I{SOURCES}", str(HERE / "race_check.c"),
            *("-o", str(program), "-lm", "-lpthread"),
        ]  # fmt: skip
        subprocess.run(command, check=True)
        stop = {"TSAN_OPTIONS": "halt_on_error=1"}  # one race is enough
        done = subprocess.run([program], capture_output=True, text=True, env={**os.environ, **stop})
        return done.returncode, done.stdout + done.stderr


def main() -> int:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    code, output = check("threads", 32, "-DPLANTED_RACE")
    found = bool(code) and "data race" in output
    print(f"a race that was planted: {'found' if found else 'NOT FOUND'}", flush=True)
    clean = found
    for name in SANITIZERS:
        for bits in (32, 64):
            code, output = check(name, bits)
            result = output.strip() if not code else f"FAILED ({code})\n{output}"
            print(f"{name}, {'float' if bits == 32 else 'double'}: {result}", flush=True)
            clean = clean and not code
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
