"""What containers wrote, kept in one file each."""

from __future__ import annotations

import os
from typing import BinaryIO

from kontti.namespaces import Scope

CHUNK = 64 << 10


class Logs:
    """Where the output of containers is kept: one file each."""

    def __init__(self, root: str, scope: Scope) -> None:
        self._folder = os.path.join(root, "logs", scope.namespace)

    def path(self, id: str) -> str:
        """The file of a container."""
        return os.path.join(self._folder, f"{id}.log")

    def make(self, id: str) -> str:
        """The file of a new container, empty."""
        os.makedirs(self._folder, mode=0o711, exist_ok=True)
        path = self.path(id)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640))
        return path

    def remove(self, id: str) -> None:
        """Remove a container's file, if there is one."""
        if os.path.exists(self.path(id)):
            os.unlink(self.path(id))


def tail_offset(file: BinaryIO, lines: int) -> int:
    """Where the last ``lines`` lines of a file begin."""
    end = file.seek(0, os.SEEK_END)
    if lines <= 0 or not end:
        return end
    file.seek(end - 1)
    # a newline at the file's end ends its last line
    wanted = lines + (file.read(1) == b"\n")
    for start in range((end - 1) // CHUNK * CHUNK, -1, -CHUNK):
        file.seek(start)
        data = file.read(min(CHUNK, end - start))
        count = data.count(b"\n")
        if count >= wanted:
            pieces = data.split(b"\n")
            return start + len(b"\n".join(pieces[: count - wanted + 1])) + 1
        wanted -= count
    return 0
