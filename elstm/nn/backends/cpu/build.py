"""Compiles a C source of this package with the user's compiler, once, verifies it and loads it.

The library is stored in a private folder ($XDG_CACHE_HOME/elstm or ~/.cache/elstm), under a name
that follows from the sources, the flags, the compiler and the CPU. So a home shared between
machines holds one file for each kind of machine, and a new version of this package never loads an
old file. The file beside it (.sha256) holds the library's checksum, because loading a file that a
full disk or a power failure cut short would kill the process (SIGBUS).
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
# The user may put flags into CC. These come after them and undo what would make results wrong
# (-ffast-math, which also changes how the process that loads the library rounds) or make the
# library end the process that loads it (sanitizers). A compiler that does not know one of them is
# called again without them. The finished library is checked in any case.
_COUNTER_FLAGS = (
    "-fno-fast-math",
    "-fno-unsafe-math-optimizations",
    "-fno-associative-math",
    "-fno-reciprocal-math",
    "-fno-finite-math-only",
    "-fsigned-zeros",
    "-fno-sanitize=all",
    "-fno-lto",
)
_TIMEOUT = 300  # seconds; compiling takes a few

# Returns why the library in a file must not be loaded; None where it is sound.
Check = Callable[[Path], str | None]


class BuildError(Exception):
    """Reports in one line why there is no library."""


def load(
    source: str,
    defines: tuple[str, ...] = (),
    target: str | None = None,
    check: Check = lambda path: None,
) -> ctypes.CDLL:
    """Returns the library built from `source`, a file of this folder.

    Args:
        defines: further flags, -DNAME=VALUE.
        target: replaces the flags for this CPU.
        check: called once, with the file of a library that was just built.

    Raises:
        BuildError: there is no compiler or it failed, the result cannot be loaded, or `check`
            found it wrong. No other error leaves this function.
    """
    try:
        if not hasattr(os, "getuid"):
            raise BuildError("the C backend needs Linux, macOS or another POSIX system")
        compiler = _compiler()
        flags = (*(_native() if target is None else target.split()), *defines)
        name = f"{Path(source).stem}-{_key(compiler, flags)}.so"
        problem: BuildError | None = None
        for place in (_cache_folder, _temporary_folder):
            try:
                with place() as folder:
                    return _load_from(folder / name, compiler, flags, _SOURCES / source, check)
            except OSError as error:  # no home, full, read-only, mounted noexec: try the next
                problem = BuildError(f"the compiled library cannot be saved or loaded: {error}")
        raise problem or BuildError("there is no folder for the compiled library")
    except BuildError:
        raise
    except Exception as error:
        raise BuildError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def _load_from(
    path: Path, compiler: list[str], flags: tuple[str, ...], source: Path, check: Check
) -> ctypes.CDLL:
    """Loads `path` if it exists and is complete, else builds it there."""
    if _is_whole(path):
        with suppress(OSError):  # built for something else all the same: build it again
            return ctypes.CDLL(str(path))
    temporary = _compile(compiler, flags, source, path.parent)
    try:
        reason = check(temporary)
        if reason is not None:
            raise BuildError(
                f"the library that {' '.join(compiler)} built cannot be used ({reason}); if the "
                "variable CC "
                "holds flags, remove them"
            )
        library = ctypes.CDLL(str(temporary))
        _keep(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return ctypes.CDLL(str(path)) if _is_whole(path) else library


def _compiler() -> list[str]:
    given = os.environ.get("CC", "")
    try:
        requested = shlex.split(given)
    except ValueError as error:
        raise BuildError(f"the variable CC holds {given!r}: {error}") from None
    for command in [requested] if requested else [["cc"], ["gcc"], ["clang"]]:
        program = shutil.which(command[0])
        if program is not None:
            return [program, *command[1:]]
    tried = " ".join(requested) if requested else "cc, gcc and clang"
    raise BuildError(f"no C compiler was found (tried {tried}; the variable CC may name one)")


def _native() -> tuple[str, ...]:
    """Returns the flags for all that this CPU can do."""
    return ("-march=native",) if platform.machine() in ("x86_64", "AMD64") else ("-mcpu=native",)


def _key(compiler: list[str], flags: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for path in sorted(_SOURCES.glob("*.[ch]")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    program = Path(compiler[0]).resolve()
    status = program.stat()
    facts = (str(program), str(status.st_size), str(status.st_mtime_ns))
    parts = (*compiler, *facts, *_FLAGS, *_COUNTER_FLAGS, *flags, *_cpu())
    digest.update("\0".join(parts).encode(errors="surrogateescape"))
    return digest.hexdigest()[:24]


def _cpu() -> list[str]:
    """Returns a text that identifies the kind of CPU: the instructions that the system lists."""
    parts = [sys.platform, platform.machine(), platform.processor(), *platform.libc_ver()]
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return parts
    names = ("flags", "Features", "model name", "cpu family", "model", "CPU part", "isa")
    kept = {line for line in lines if line.split(":")[0].strip() in names}
    return parts + sorted(kept)


@contextmanager
def _cache_folder() -> Iterator[Path]:
    """Returns this user's folder that no one else can write to; raises OSError without one."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = (Path(base) if base.startswith("/") else Path.home() / ".cache") / "elstm"
    except RuntimeError as error:
        raise OSError(str(error)) from error
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_private(folder):
        raise OSError(f"{folder} can be written by others, or is a link")
    yield folder


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Yields a folder that is removed afterwards; a loaded library no longer needs its file."""
    with tempfile.TemporaryDirectory(prefix="elstm-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _is_private(path: Path) -> bool:
    """Returns whether code may be loaded from it: no link, and writable by this user alone."""
    try:
        status = path.lstat()
    except OSError:
        return False
    kind = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
    return kind and status.st_uid == os.getuid() and not status.st_mode & 0o022


def _checksum_file(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _is_whole(path: Path) -> bool:
    """Returns whether the library has the checksum that was written after its check."""
    checksum = _checksum_file(path)
    try:
        private = _is_private(path) and _is_private(checksum)
        return private and checksum.read_text(encoding="ascii") == _sha256(path)
    except (OSError, ValueError):
        return False


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _compile(compiler: list[str], flags: tuple[str, ...], source: Path, folder: Path) -> Path:
    """Returns the finished library under a temporary name in `folder`."""
    handle, name = tempfile.mkstemp(prefix=".build-", suffix=".so", dir=folder)
    os.close(handle)
    temporary = Path(name)
    failure = ""
    for counter in (_COUNTER_FLAGS, ()):
        command = [*compiler, *_FLAGS, *counter, *flags, "-o", name, str(source), "-lpthread"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace",
                timeout=_TIMEOUT, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            temporary.unlink(missing_ok=True)
            raise BuildError(f"{compiler[0]} could not be run: {error}") from None
        if not done.returncode:
            temporary.chmod(0o700)
            return temporary
        lines = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr]
        failure = failure or lines[0].strip()[:200]
    temporary.unlink(missing_ok=True)
    raise BuildError(f"{compiler[0]} failed: {failure}")


def _keep(temporary: Path, path: Path) -> None:
    """Moves the library to `path`, then writes its checksum; each is complete on the disk."""
    checksum = temporary.with_suffix(".sum")
    try:
        with checksum.open("x", encoding="ascii") as file:
            file.write(_sha256(temporary))
            file.flush()
            os.fsync(file.fileno())
        checksum.chmod(0o600)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        checksum.replace(_checksum_file(path))
    except OSError:  # a full disk: this process has its library, the next one builds again
        pass
    finally:
        checksum.unlink(missing_ok=True)
