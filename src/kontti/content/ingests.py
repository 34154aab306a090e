"""Ingests on disk: ``ingest/<hex of sha256(ref)>/`` with ``data`` and what is known of it.

    data       the bytes so far
    ref        the ref, as text
    startedat  RFC 3339
    updatedat  RFC 3339
    total      the size announced, in decimal

Nothing here is synced: what a crash tears is an ingest that is begun again.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from kontti.content.base import Status
from kontti.content.disk import disk_errors, make_directory

_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z")


class Ingest:
    """One ingest's directory, which may not be there."""

    def __init__(self, root: str, ref: str) -> None:
        self.ref = ref
        name = hashlib.sha256(ref.encode("utf-8", "surrogateescape")).hexdigest()
        self.path = os.path.join(root, name)

    @property
    def data(self) -> str:
        """The file of the bytes so far."""
        return os.path.join(self.path, "data")

    def create(self, total: int) -> None:
        """Make it, empty; one that is there stays as it is."""
        with disk_errors(f"ingest {self.ref!r}"):
            try:
                os.mkdir(self.path, 0o700)
                self._describe(total)
            except FileExistsError:
                return
            except OSError:
                self.remove()
                raise

    def _describe(self, total: int) -> None:
        now = format_time(time.time_ns())
        self._put("ref", self.ref)
        self._put("startedat", now)
        self._put("updatedat", now)
        if total > 0:
            self._put("total", str(total))
        self._put("data", "")

    def touch(self) -> None:
        """Note that it changed now."""
        self._put("updatedat", format_time(time.time_ns()))

    def status(self) -> Status | None:
        """What is there, or None; damaged notes count as absent."""
        try:
            stat = os.stat(self.data)
        except FileNotFoundError:
            return None
        total = self._get("total")
        return Status(
            ref=self.ref,
            offset=stat.st_size,
            total=int(total) if total.isascii() and total.isdigit() else 0,
            expected="",
            started_at=parse_time(self._get("startedat")) or stat.st_mtime_ns,
            updated_at=parse_time(self._get("updatedat")) or stat.st_mtime_ns,
        )

    def remove(self) -> None:
        """Take it away; absent is fine."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _put(self, name: str, text: str) -> None:
        with open(os.path.join(self.path, name), "wb") as file:
            file.write(text.encode("utf-8", "surrogateescape"))

    def _get(self, name: str) -> str:
        return _read(os.path.join(self.path, name))


def list_ingests(root: str) -> Iterator[Ingest]:
    """Every ingest whose ref can be read."""
    for name in sorted(os.listdir(root)):
        ref = _read(os.path.join(root, name, "ref"))
        ingest = Ingest(root, ref)
        if ref and os.path.basename(ingest.path) == name:
            yield ingest


def open_root(root: str) -> None:
    """Make the directory of ingests, and clear what is in it and cannot be resumed."""
    make_directory(root)
    # without its data it was just made, or committed: nobody would see it, nor take it away
    resumable = {i.path for i in list_ingests(root) if i.status() is not None}
    for name in os.listdir(root):
        path = os.path.join(root, name)
        if path not in resumable:
            shutil.rmtree(path, ignore_errors=True)


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(64 * 1024).decode("utf-8", "surrogateescape")
    except (FileNotFoundError, NotADirectoryError):
        return ""


def format_time(stamp: int) -> str:
    """Nanoseconds since the epoch as RFC 3339 text, in UTC."""
    seconds, nanos = divmod(stamp, 10**9)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{nanos:09d}Z"


def parse_time(text: str) -> int:
    """The reverse, or 0."""
    found = _STAMP.fullmatch(text)
    if found is None:
        return 0
    try:
        moment = datetime.fromisoformat(found.group(1)).replace(tzinfo=UTC)
    except ValueError:
        return 0
    return int(moment.timestamp()) * 10**9 + int((found.group(2) or "0").ljust(9, "0"))
