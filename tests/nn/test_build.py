"""Building and caching the C library: whatever goes wrong, layers fall back on the reference."""

import ctypes
import errno
import math
import os
import shutil
import tempfile

import pytest
import torch

from elstm.nn import ELSTMBN
from elstm.nn.backends.cpu import build, library
from elstm.nn.backends.cpu import check as cpu_check

pytestmark = pytest.mark.skipif(
    not (hasattr(os, "getuid") and shutil.which("cc")), reason="needs a POSIX C compiler"
)
SOURCE = "double answer(double x) { return x != x ? 7 : x; }\n"
# As much of cpu.c as cpu_check asks for; BODY stands in elstm_forward.
FAKE = """
#include <stdint.h>
int64_t elstm_lanes(void) { return 8; }
int64_t elstm_call_size(void) { return 0; }
int64_t elstm_workspace(void *call, int64_t backward) { return 128; }
void elstm_forward(void *call) { BODY; }
void elstm_backward(void *call) { BODY; }
"""


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache, and a small source in the place of cpu.c."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "small.c").write_text(SOURCE)
    monkeypatch.setattr(build, "_SOURCES", tmp_path / "src")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    return tmp_path / "cache" / "elstm"


def answer(library):
    library.answer.argtypes, library.answer.restype = [ctypes.c_double], ctypes.c_double
    return library.answer(math.nan)


def the_library(cache):
    (path,) = cache.glob("*.so")
    return path


def fail(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_library_is_built_once(cache, monkeypatch):
    checked = []
    assert answer(build.load("small.c", check=checked.append)) == 7
    assert len(checked) == 1
    monkeypatch.setattr(build, "_compile", fail)
    assert answer(build.load("small.c", check=checked.append)) == 7
    assert len(checked) == 1


@pytest.mark.parametrize("damage", ["cut", "zeroed", "empty", "no checksum"])
def test_a_damaged_library_is_built_again(cache, damage):
    """Mapping a file that is too short ends the process by SIGBUS."""
    build.load("small.c")
    path = the_library(cache)
    whole = path.read_bytes()
    if damage == "no checksum":
        path.with_suffix(".sha256").unlink()
    else:
        path.unlink()  # not in place: this process has it mapped
        kept = {"cut": whole[: len(whole) // 2], "zeroed": bytes(len(whole)), "empty": b""}
        path.write_bytes(kept[damage])
        path.chmod(0o700)
    assert answer(build.load("small.c")) == 7
    assert build._is_whole(path)


def test_a_library_that_is_wrong_is_not_kept(cache):
    with pytest.raises(build.BuildError, match=r"off by 0\.17.*CC"):
        build.load("small.c", check=lambda path: "off by 0.17")
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("flags", ["-ffast-math", "-Ofast", "-ffinite-math-only -flto"])
def test_flags_that_change_results_are_undone(cache, monkeypatch, flags):
    """Checks flags such as -ffinite-math-only, by which the compiler assumes x != x to be false."""
    monkeypatch.setenv("CC", f"cc {flags}")
    assert answer(build.load("small.c")) == 7


@pytest.mark.parametrize("compiler", ['cc "', "no-such-compiler", "false", "true", "cat"])
def test_a_compiler_that_does_not_compile(cache, monkeypatch, compiler):
    monkeypatch.setenv("CC", compiler)
    with pytest.raises(build.BuildError):
        build.load("small.c")


def test_folders_that_cannot_be_used(cache, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert answer(build.load("small.c")) == 7  # in a temporary folder
    monkeypatch.setattr(tempfile, "mkdtemp", fail)
    with pytest.raises(build.BuildError, match="No space left"):
        build.load("small.c")


def test_no_inode_for_a_temporary_file(cache, monkeypatch):
    monkeypatch.setattr(tempfile, "mkstemp", fail)
    with pytest.raises(build.BuildError, match="No space left"):
        build.load("small.c")


def test_no_home(cache, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(build.Path, "home", no_home)
    assert answer(build.load("small.c")) == 7


def test_a_cache_that_cannot_be_loaded_from(cache, monkeypatch):
    """A file system that is mounted noexec refuses to map a library."""
    real = ctypes.CDLL

    def noexec(name, *rest):
        if name.startswith(str(cache)):
            raise OSError("failed to map segment from shared object")
        return real(name, *rest)

    monkeypatch.setattr(build.ctypes, "CDLL", noexec)
    assert answer(build.load("small.c")) == 7


def test_layers_run_without_getuid(monkeypatch):
    """Windows has none."""
    library.library.cache_clear()
    library.unavailable.cache_clear()
    try:
        monkeypatch.delattr(os, "getuid")
        layer = ELSTMBN(2, 3)
        layer(torch.randn(3, 4, 2))
        assert layer.last_backend == "reference"
    finally:
        library.library.cache_clear()
        library.unavailable.cache_clear()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("(void)call", r"none: output is off by"),
        ("__builtin_trap()", r"ended the process by SIG(ILL|TRAP)"),
    ],
)
def test_the_check_finds_wrong_libraries(cache, body, reason):
    source = build._SOURCES / "small.c"
    source.write_text(FAKE.replace("BODY", body))
    with pytest.raises(build.BuildError, match=reason):
        build.load("small.c", check=lambda path: cpu_check.in_own_process(path, 32))


@pytest.mark.parametrize("bits", [32, 64])
def test_the_check_passes_the_library(bits):
    assert cpu_check.in_own_process(library.library(bits)._name, bits) is None
