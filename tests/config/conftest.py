"""Fixtures that the tests of configs share."""

import pytest

from elstm.config.compose import Composer


@pytest.fixture(scope="module")
def composer():
    return Composer()
