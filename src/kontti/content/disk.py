"""Durability and disk errors: what every file operation of a store needs."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from kontti.errors import Error, Internal, NotFound, PermissionDenied, ResourceExhausted

_CLASSES: dict[int, type[Error]] = {
    errno.ENOSPC: ResourceExhausted,
    errno.EDQUOT: ResourceExhausted,
    errno.EFBIG: ResourceExhausted,
    errno.EMFILE: ResourceExhausted,
    errno.ENFILE: ResourceExhausted,
    errno.EACCES: PermissionDenied,
    errno.EPERM: PermissionDenied,
    errno.EROFS: PermissionDenied,
}


@contextlib.contextmanager
def disk_errors(doing: str, missing: str = "") -> Iterator[None]:
    """Turn an OSError into the error class that says what to do about it.

    ``missing`` names what is not found where a file is not there.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(missing or f"{doing}: {error.filename}") from error
    except OSError as error:
        cls = _CLASSES.get(error.errno or 0, Internal)
        raise cls(f"{doing}: {error.strerror or error}") from error


def sync_directory(path: str) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(path: str) -> None:
    """Make a directory and its parents, each durable in its own parent; present ones are fine."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    make_directory(parent)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return
    sync_directory(parent)
