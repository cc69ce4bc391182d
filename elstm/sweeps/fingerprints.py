"""Reads checksums of own data, which are part of what makes a run of a sweep finished."""

from __future__ import annotations

from dataclasses import fields

from elstm.config.data_options import OwnDataConfig
from elstm.config.schema import Config

# Settings of own data on which their reading depends; the others are applied to what was read.
_NOT_READ = {each.name for each in fields(OwnDataConfig)} - {"source", "path"}


class Fingerprints:
    """Reads the files of each data set once, whatever else the runs of a sweep vary."""

    def __init__(self) -> None:
        self._known: dict[str, str | None] = {}

    def of(self, config: Config) -> str | None:
        """Returns the checksum of a config's data; None for a published set.

        Raises:
            UserError: the data cannot be read.
        """
        data = config.data
        if not isinstance(data, OwnDataConfig):
            return None
        from elstm.data.load import data_fingerprint  # torch: only where data have to be read

        key = repr(sorted((k, v) for k, v in vars(data).items() if k not in _NOT_READ))
        if key not in self._known:
            self._known[key] = data_fingerprint(data)
        return self._known[key]
