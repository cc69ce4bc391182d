"""Compiles a C source of this package with the user's compiler, once, and loads it.

The result is kept in a private folder ($XDG_CACHE_HOME/elstm or ~/.cache/elstm), under a name that
follows from the sources, the flags, the compiler and the CPU: a home shared between machines holds
one file for each kind of machine, and a new version of this package never meets an old file.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

_SOURCES = Path(__file__).parent
# No flag here lets the compiler reorder sums or assume that NaN does not occur.
_FLAGS = (
    "-std=gnu11",
    "-O2",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-strict-aliasing",  # vectors and their elements share memory
    "-fPIC",
    "-shared",
)
_TIMEOUT = 300  # seconds; it takes a few


class BuildError(Exception):
    """Why there is no library: one line."""


def load(source: str, defines: tuple[str, ...] = (), target: str | None = None) -> ctypes.CDLL:
    """The library built from `source`, a file of this folder.

    `target` replaces the flags for this CPU.

    Raises:
        BuildError: no compiler, or it failed, or its result cannot be loaded.
    """
    compiler = _compiler()
    flags = (*_FLAGS, *(_native() if target is None else target.split()), *defines)
    name = f"{Path(source).stem}-{_key(compiler, flags)}.so"
    folder = _private_folder()
    path = folder / name
    if _is_ours(path):
        try:
            return ctypes.CDLL(str(path))
        except OSError:
            pass  # damaged: build it again
    _compile(compiler, flags, _SOURCES / source, path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"the compiled library does not load: {error}") from None


def _compiler() -> list[str]:
    asked = shlex.split(os.environ.get("CC", ""))
    for command in [asked] if asked else [["cc"], ["gcc"], ["clang"]]:
        program = shutil.which(command[0])
        if program is not None:
            return [program, *command[1:]]
    tried = " ".join(asked) if asked else "cc, gcc and clang"
    raise BuildError(f"no C compiler was found (tried {tried}; the variable CC may name one)")


def _native() -> tuple[str, ...]:
    """Flags for all that this CPU can do."""
    return ("-march=native",) if platform.machine() in ("x86_64", "AMD64") else ("-mcpu=native",)


def _key(compiler: list[str], flags: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for path in sorted(_SOURCES.glob("*.[ch]")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    program = Path(compiler[0]).resolve()
    status = program.stat()
    parts = (*compiler, str(program), str(status.st_size), str(status.st_mtime_ns), *flags, *_cpu())
    digest.update("\0".join(parts).encode())
    return digest.hexdigest()[:24]


def _cpu() -> list[str]:
    """What tells kinds of CPU apart: the instructions they know, where the system lists them."""
    parts = [sys.platform, platform.machine(), platform.processor(), *platform.libc_ver()]
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return parts
    names = ("flags", "Features", "model name", "cpu family", "model", "CPU part", "isa")
    kept = {line for line in lines if line.split(":")[0].strip() in names}
    return parts + sorted(kept)


def _private_folder() -> Path:
    """A folder of ours that no one else can write to; a temporary one where there is none."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = (Path(base) if base.startswith("/") else Path.home() / ".cache") / "elstm"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _is_ours(folder) and os.access(folder, os.W_OK | os.X_OK):
            return folder
    except (OSError, RuntimeError):
        pass
    return Path(tempfile.mkdtemp(prefix="elstm-"))


def _is_ours(path: Path) -> bool:
    """There, no link, owned by this user, and writable by no one else: safe to load code from."""
    try:
        status = path.lstat()
    except OSError:
        return False
    kind = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
    return kind and status.st_uid == os.getuid() and not status.st_mode & 0o022


def _compile(compiler: list[str], flags: tuple[str, ...], source: Path, path: Path) -> None:
    """Builds beside `path` and renames, so that others see all of it or nothing."""
    handle, temporary = tempfile.mkstemp(prefix=".build-", suffix=".so", dir=path.parent)
    os.close(handle)
    command = [*compiler, *flags, "-o", temporary, str(source), "-lpthread"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr]
            raise BuildError(f"{compiler[0]} failed: {lines[0].strip()[:200]}")
        Path(temporary).chmod(0o700)
        Path(temporary).replace(path)
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{compiler[0]} could not be run: {error}") from None
    finally:
        Path(temporary).unlink(missing_ok=True)
