"""What stands beside a snapshot's directory when a layer was applied to it as an image.

<snapshot>/.erofslayer     its owner unpacks layers, and may get an image
<snapshot>/applied.erofs   the layer, whole; the directory is empty
<snapshot>/copying.erofs   the same, while its files are copied to the directory
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator

from kontti.errors import FailedPrecondition
from kontti.linux import fs, mounts
from kontti.values import Mount

MARK = ".erofslayer"
APPLIED = "applied.erofs"
COPYING = "copying.erofs"
KEY_PREFIX = "extract"
_NO_NAMELESS = (errno.EOPNOTSUPP, errno.EISDIR)


def is_unpackers(key: str) -> bool:
    """Whether the key is one that unpackers give, with a namespace and a number before it or not.

    Nobody looks at such a snapshot before it is committed.
    """
    return key.split("/", 2)[-1].startswith(KEY_PREFIX)


class Draft:
    """An image in the making: a file that has no name until ``keep``, and is gone without it."""

    def __init__(self, folder: str, fd: int) -> None:
        self._folder = folder
        self._fd = fd

    @property
    def path(self) -> str:
        """By which another process opens it."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    def keep(self) -> None:
        """It is whole: the snapshot has it. Raises FailedPrecondition where it has another."""
        target = os.path.join(self._folder, APPLIED)
        try:
            # a directory given makes it linkat(2), which follows the name to the file
            os.link(f"/proc/self/fd/{self._fd}", target, src_dir_fd=self._fd, follow_symlinks=True)
        except FileExistsError:
            raise FailedPrecondition(f"{self._folder} has a layer already") from None


class Folder:
    """A snapshot's folder, with its files in ``fs``."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._files = os.path.join(path, "fs")
        self.applied = os.path.join(path, APPLIED)
        self._copying = os.path.join(path, COPYING)

    def mark(self) -> None:
        """Its owner unpacks layers."""
        os.close(os.open(os.path.join(self.path, MARK), os.O_CREAT | os.O_CLOEXEC, 0o600))

    def takes_image(self) -> bool:
        """Whether a layer may come as an image."""
        return os.path.exists(os.path.join(self.path, MARK)) and not os.listdir(self._files)

    @contextlib.contextmanager
    def draft(self) -> Iterator[Draft | None]:
        """A new image; None where the file system has no nameless files."""
        try:
            fd = os.open(self.path, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno not in _NO_NAMELESS:
                raise
            yield None
            return
        try:
            yield Draft(self.path, fd)
        finally:
            os.close(fd)

    def has_image(self) -> bool:
        """Whether a layer came as an image; raises FailedPrecondition for files beside it."""
        if not os.path.exists(self.applied):
            return False
        self._check_empty()
        return True

    def _check_empty(self) -> None:
        if os.listdir(self._files):
            raise FailedPrecondition(f"{self._files} has files beside the layer applied to it")

    def to_files(self) -> None:
        """Have a layer that came as an image in the directory, as if it had been extracted.

        Raises FailedPrecondition where there are files already; one that was cut short goes on.
        """
        if not (os.path.exists(self.applied) or os.path.exists(self._copying)):
            return
        with self._locked():
            if os.path.exists(self.applied):
                self._check_empty()
                os.rename(self.applied, self._copying)
            if os.path.exists(self._copying):
                self._copy()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _copy(self) -> None:
        for name in os.listdir(self._files):
            fs.remove_tree(os.path.join(self._files, name))
        with mounts.mounted([Mount("erofs", self._copying, ("ro",))]) as shown:
            fs.copy_tree(shown, self._files)
        os.unlink(self._copying)

    def forget(self) -> None:
        """Its layer is committed, under another name."""
        for name in (APPLIED, MARK):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.path, name))
