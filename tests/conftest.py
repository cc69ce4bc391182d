"""Fixtures that several test files share."""

import sys
import types

import pytest
from fake_training import FakeTraining


@pytest.fixture
def training(monkeypatch, tmp_path):
    """A fake in the place of elstm.training, in an empty current folder."""
    fake = FakeTraining()
    module = types.ModuleType("elstm.training")
    module.run = fake.run
    monkeypatch.setitem(sys.modules, "elstm.training", module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ELSTM_DATA", raising=False)
    return fake
