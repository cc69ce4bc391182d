"""Fixtures that several test files share."""

import signal
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_training import FakeTraining


def pytest_configure() -> None:
    """Restores the signals that a shell ignores in the background, or nohup anywhere.

    Child processes inherit ignored signals, and several tests send these.
    """
    for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture
def training(monkeypatch, tmp_path):
    """A fake in the place of elstm.training.run, in an empty current folder."""
    fake = FakeTraining()
    module = types.ModuleType("elstm.training.run")
    module.run = fake.run
    monkeypatch.setitem(sys.modules, "elstm.training.run", module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ELSTM_DATA", raising=False)
    return fake


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Path]:
    """Makes a folder for each run."""

    def make() -> Iterator[Path]:
        for number in range(100):
            folder = tmp_path / f"run{number}"
            folder.mkdir()
            yield folder

    return make()  # type: ignore[return-value]


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disables the pictures of runs."""
    from training_runs import without_pictures  # and with it torch: not for every test

    without_pictures(monkeypatch)
