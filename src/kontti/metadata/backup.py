"""A copy of the database, from time to time: what a rebuild cannot find elsewhere is in it."""

from __future__ import annotations

import logging
import os
import threading
import time

from kontti.errors import Error
from kontti.metadata.store import MetadataStore

log = logging.getLogger(__name__)
HOUR = 3600.0
SMALL = 4 << 20
"""Bytes that are copied in a few milliseconds."""


class Backup:
    """Keeps ``path``, the copy, from being more than about an hour behind.

    ``source`` is the database's own file.
    """

    def __init__(self, metadata: MetadataStore, source: str) -> None:
        self._metadata = metadata
        self._source = source
        self._path = f"{source}.backup"
        self._lock = threading.Lock()

    def keep(self, *, closing: bool = False) -> None:
        """Make a copy, if something has changed and the last one is old; a failure is logged.

        ``closing``: there may be no later time, so a small database is copied however old that is.
        """
        with self._lock:
            try:
                if self._metadata.changed and ((closing and self._is_small()) or self._is_old()):
                    self._metadata.back_up()
            except (Error, OSError) as error:
                log.warning("the metadata database was not copied: %s", error)

    def _is_small(self) -> bool:
        return os.stat(self._source).st_size <= SMALL

    def _is_old(self) -> bool:
        try:
            return time.time() - os.stat(self._path).st_mtime > HOUR
        except FileNotFoundError:
            return True
