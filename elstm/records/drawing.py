"""Imports matplotlib with this project's defaults, whatever settings the user has.

matplotlib reads a `matplotlibrc` from the current folder, the user's folder or MATPLOTLIBRC, and it
reads MPLBACKEND. Such a setting may start TeX, need a screen, or end the import with an error. All
code of this project that draws imports matplotlib through this module (elstm.reporting does so in
its `__init__`), and draws within `isolated_settings`.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Variables from which matplotlib takes settings; the user's cache folder (MPLCONFIGDIR) stays.
ENVIRONMENT = {"MATPLOTLIBRC": os.devnull, "MPLBACKEND": "agg"}
OF_PROCESS = ("backend", "backend_fallback", "interactive")  # settings that draw nothing


@contextmanager
def _no_settings() -> Iterator[None]:
    """Hides all settings but the defaults from an import of matplotlib.

    The file in the current folder takes precedence over MATPLOTLIBRC. Where there is one, the
    import happens in another folder.
    """
    if "matplotlib" in sys.modules:
        yield
        return
    logger = logging.getLogger("matplotlib")
    level = logger.level
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    # An absolute path, or None where the current folder is gone.
    folder = str(Path.cwd()) if os.path.lexists("matplotlibrc") else None
    logger.setLevel(logging.ERROR)  # a cache folder that is read-only only costs time
    os.environ.update(ENVIRONMENT)
    try:
        if folder is not None:
            os.chdir(Path(__file__).parent)
        yield
    finally:
        if folder is not None:
            os.chdir(folder)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        logger.setLevel(level)


with _no_settings():
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

__all__ = ["Figure", "FigureCanvasAgg", "isolated_settings", "png"]


@contextmanager
def isolated_settings(settings: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Draws with matplotlib's defaults and `settings`, and restores the process's afterwards.

    Both the making of a figure and its rendering belong inside, because both read settings.
    """
    with warnings.catch_warnings():
        # Settings that matplotlib is about to drop, and labels in a script that the font lacks.
        warnings.filterwarnings("ignore", category=matplotlib.MatplotlibDeprecationWarning)
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        defaults = {k: v for k, v in matplotlib.rcParamsDefault.items() if k not in OF_PROCESS}
        with matplotlib.rc_context({**defaults, **(settings or {})}):
            yield


def png(figure: Figure) -> bytes:
    """Renders a figure within `isolated_settings`."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
