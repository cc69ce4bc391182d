"""Reads checksums of user data and of initial weights, which are part of a run's identity."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any

from elstm.config.data_options import ImageSetConfig, UserDataConfig
from elstm.config.schema import Config
from elstm.errors import UserError
from elstm.records.source import checksum, source_checkpoint

# Settings of user data that affect how files are read; the others apply to the data afterwards.
_NOT_READ = {"augment", *(each.name for each in fields(UserDataConfig))} - {"source", "path"}


class Fingerprints:
    """Reads the files of each data set and checkpoint once, whatever the runs of a sweep vary."""

    def __init__(self) -> None:
        self._known: dict[str, str | None] = {}

    def of(self, config: Config) -> str | None:
        """Returns the checksum of a config's data; None for a published set.

        Raises:
            UserError: the data cannot be read.
        """
        data = config.data
        if not isinstance(data, UserDataConfig):
            return None
        from elstm.data.load import data_fingerprint  # torch: only where data have to be read

        key = repr(sorted((k, v) for k, v in vars(data).items() if k not in _NOT_READ))
        if key not in self._known:
            self._known[key] = data_fingerprint(data)
        return self._known[key]

    def of_images(self, config: Config) -> str | None:
        """Returns the checksum of a published set's images; None where it cannot be known here.

        Nothing is downloaded, and damaged files are left to the run, which names them.
        """
        data = config.data
        if not isinstance(data, ImageSetConfig):
            return None
        from elstm.data.load import images_checksum  # torch: only where images have to be read

        key = f"images {data.name} {data.root} {data.train_size}"
        if key not in self._known:
            self._known[key] = None
            with suppress(UserError):
                self._known[key] = images_checksum(data)
        return self._known[key]

    def of_source(self, config: Config) -> str | None:
        """Returns the checksum of the checkpoint in trainer.init_from; None where it is null.

        Raises:
            UserError: there is no such checkpoint.
        """
        given = config.trainer.init_from
        if given is None:
            return None
        key = f"init_from {given}"
        if key not in self._known:
            self._known[key] = checksum(source_checkpoint(given))
        return self._known[key]


def source_in(status: Mapping[str, Any]) -> str | None:
    """Returns the checksum of a run's initial weights by its status.json."""
    source = status.get("init_from")
    found = source.get("sha256") if isinstance(source, dict) else None
    return found if isinstance(found, str) else None
