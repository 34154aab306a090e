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


class Backup:
    """Keeps ``path``, the copy, from being more than about an hour behind."""

    def __init__(self, metadata: MetadataStore, path: str) -> None:
        self._metadata = metadata
        self._path = path
        self._lock = threading.Lock()

    def keep(self) -> None:
        """Make a copy, if the last one is old and something has changed; a failure is logged."""
        with self._lock:
            try:
                if self._is_due():
                    self._metadata.back_up()
            except (Error, OSError) as error:
                log.warning("the metadata database was not copied: %s", error)

    def _is_due(self) -> bool:
        if not self._metadata.changed:
            return False
        try:
            return time.time() - os.stat(self._path).st_mtime > HOUR
        except FileNotFoundError:
            return True
