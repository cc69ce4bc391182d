"""Checks that the optional packages that a config needs are installed."""

from __future__ import annotations

from dataclasses import fields
from importlib.util import find_spec

from elstm.config.schema import TrackingConfig
from elstm.errors import UserError


def require_extras(tracking: TrackingConfig) -> None:
    """Raises UserError where a tracker is requested whose package is missing."""
    for field in fields(tracking):
        name = field.name  # of the setting, the package and the extra alike
        if getattr(tracking, name) and not installed(name):
            raise UserError(f"tracking.{name}=true needs a package: pip install 'elstm[{name}]'")


def installed(package: str) -> bool:
    """Returns whether a package can be imported; a plain folder of its name does not count."""
    try:
        spec = find_spec(package)
    except ValueError:  # a module without a spec
        return True
    return spec is not None and spec.origin is not None
