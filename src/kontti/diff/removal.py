"""Removes trees by path, without following anything and without recursion."""

from __future__ import annotations

import os
import stat


def lstat(path: bytes) -> os.stat_result | None:
    """As os.lstat, None where there is nothing."""
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def remove(path: bytes) -> None:
    """Remove what is at ``path``, all of it; nothing there is well."""
    status = lstat(path)
    if status is None:
        return
    if stat.S_ISDIR(status.st_mode):
        _remove_tree(path)
    else:
        os.unlink(path)


def empty(path: bytes) -> None:
    """Remove everything in a directory."""
    for directory in _empty_of_files(path):
        os.rmdir(directory)


def _remove_tree(path: bytes) -> None:
    empty(path)
    os.rmdir(path)


def _empty_of_files(path: bytes) -> list[bytes]:
    """Unlink all that is no directory; gives the directories, children first."""
    found: list[bytes] = []
    pending = [path]
    while pending:
        with os.scandir(pending.pop()) as children:
            for child in children:
                if child.is_dir(follow_symlinks=False):
                    pending.append(child.path)
                    found.append(child.path)
                else:
                    os.unlink(child.path)
    found.reverse()
    return found


def join(directory: bytes, name: bytes) -> bytes:
    """``name`` in ``directory``, which is b"" for the root."""
    return directory + b"/" + name if directory else name
