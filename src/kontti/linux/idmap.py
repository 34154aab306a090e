"""Id-mapped mounts: files show other owners than those on disk (mount_setattr(2)).

A mapping is written as in mount options and labels: ``inside:outside:length``s with commas between.
A file of user ``inside`` on disk is one of ``outside`` in the mount.
"""

from __future__ import annotations

import errno
import os
import signal
import socket

from kontti.errors import InvalidArgument
from kontti.linux import libc, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

MAX_ID = (1 << 32) - 2
MAX_RANGES = 340
"""What the kernel takes for one namespace."""
SECONDS = 10.0
KERNEL_DETACHED = (6, 15)
"""The first whose overlays take layers that are mounted nowhere."""
# says the errno it failed with, and stays until its input ends
_CHILD = """
import os
from kontti.linux import libc
try:
    libc.unshare(libc.CLONE_NEWUSER)
    os.write(1, b"0")
except OSError as error:
    os.write(1, str(error.errno).encode())
os.read(0, 1)
"""


def parse(mapping: str) -> list[tuple[int, int, int]]:
    """The ranges ``(inside, outside, length)``; raises InvalidArgument."""
    ranges = [_range(text) for text in mapping.split(",")]
    if len(ranges) > MAX_RANGES:
        raise InvalidArgument(f"id mappings of {len(ranges)} ranges, the most are {MAX_RANGES}")
    return ranges


def _range(text: str) -> tuple[int, int, int]:
    parts = text.split(":")
    if len(parts) != 3 or not all(p.isascii() and p.isdigit() and len(p) < 11 for p in parts):
        raise InvalidArgument(f"malformed id mapping {text!r:.80}")
    inside, outside, length = map(int, parts)
    if not length or max(inside, outside) + length - 1 > MAX_ID:
        raise InvalidArgument(f"id mapping {text!r:.80} is out of range")
    return inside, outside, length


def take(options: Sequence[str]) -> tuple[list[str], str, str]:
    """The options without ``uidmap=`` and ``gidmap=``, and these, "" where there are none.

    Raises InvalidArgument for one without the other.
    """
    found = {"uidmap": "", "gidmap": ""}
    rest = []
    for option in options:
        key, equals, value = option.partition("=")
        if key in found and equals:
            found[key] = value
        else:
            rest.append(option)
    if bool(found["uidmap"]) != bool(found["gidmap"]):
        raise InvalidArgument("mount options: uidmap and gidmap go together")
    return rest, found["uidmap"], found["gidmap"]


class user_namespace:  # noqa: N801 used as a function
    """``with user_namespace(uidmap, gidmap) as fd``: one with these mappings, and nobody in it."""

    __slots__ = ("_fd", "_maps")

    def __init__(self, uidmap: str, gidmap: str) -> None:
        self._maps = {"uid_map": parse(uidmap), "gid_map": parse(gidmap)}
        self._fd = -1

    def __enter__(self) -> int:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                end = theirs.fileno()
                pid = process.spawn(process.interpreter(_CHILD), stdin=end, stdout=end)
            try:
                ours.settimeout(SECONDS)
                _check(ours.recv(8))
                self._fd = self._mapped(pid)
            finally:
                ours.close()
                _end(pid)
        finally:
            ours.close()
        return self._fd

    def _mapped(self, pid: int) -> int:
        for name, ranges in self._maps.items():
            text = "".join(f"{inside} {outside} {n}\n" for inside, outside, n in ranges)
            # in one write, as the kernel wants it
            fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, text.encode())
            finally:
                os.close(fd)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._fd)


def _check(said: bytes) -> None:
    number = int(said) if said.isdigit() else errno.ECHILD
    if number:
        raise OSError(number, f"user namespace: {os.strerror(number)}")


def _end(pid: int) -> None:
    """Its input has ended, and so does it."""
    try:
        process.wait(pid, SECONDS)
    except TimeoutError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def mapped_tree(
    source: str, namespace: int, *, recursive: bool = False, attributes: int = 0
) -> int:
    """The descriptor of a mount of ``source`` that is mapped, and attached nowhere yet."""
    deep = libc.AT_RECURSIVE if recursive else 0
    tree = libc.open_tree(libc.AT_FDCWD, source, libc.OPEN_TREE_CLONE | deep)
    try:
        wanted = libc.MOUNT_ATTR_IDMAP | attributes
        libc.mount_setattr(tree, deep, attr_set=wanted, userns_fd=namespace)
    except BaseException:
        os.close(tree)
        raise
    return tree


class mapped_lowers:  # noqa: N801 used as a function
    """``with mapped_lowers(lowers, namespace, detached) as layers``: mapped mounts of directories.

    Each is a descriptor where they are ``detached``, else a path, gone when this ends.
    """

    __slots__ = ("_detached", "_fds", "_folder", "_lowers", "_namespace")

    def __init__(self, lowers: Sequence[str], namespace: int, *, detached: bool) -> None:
        self._lowers = lowers
        self._namespace = namespace
        self._detached = detached
        self._fds: list[int] = []
        self._folder = ""

    def __enter__(self) -> list[int | str]:
        try:
            for lower in self._lowers:
                self._fds.append(mapped_tree(lower, self._namespace))
            return [*self._fds] if self._detached else [*self._attach()]
        except BaseException:
            self._undo()
            raise

    def _attach(self) -> list[str]:
        import tempfile

        self._folder = tempfile.mkdtemp(prefix="kontti-mapped-")
        places = []
        for number, fd in enumerate(self._fds):
            places.append(os.path.join(self._folder, str(number)))
            os.mkdir(places[-1], 0o700)
            libc.move_mount(fd, places[-1])
        return places

    def _undo(self) -> None:
        for fd in self._fds:
            os.close(fd)
        for name in os.listdir(self._folder) if self._folder else ():
            place = os.path.join(self._folder, name)
            try:
                libc.umount2(place, libc.MNT_DETACH | libc.UMOUNT_NOFOLLOW)
            except OSError as error:
                if error.errno != errno.EINVAL:  # it was not mounted yet
                    raise
            os.rmdir(place)
        if self._folder:
            os.rmdir(self._folder)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._undo()
