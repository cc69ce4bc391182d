"""Fixtures that write small files of own data."""

import numpy as np
import pytest


@pytest.fixture
def npz(tmp_path):
    def save(**arrays):
        path = tmp_path / "set.npz"
        np.savez(path, **arrays)
        return path

    return save


@pytest.fixture
def csv(tmp_path):
    def write(text, encoding="utf-8"):
        path = tmp_path / "set.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return write
