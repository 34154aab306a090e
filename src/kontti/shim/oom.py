"""Hears of a container that runs out of memory, while it goes on.

cgroup v1 tells an eventfd (memory.oom_control), before it kills; v2 changes memory.events.
"""

from __future__ import annotations

import os

from kontti.linux import libc
from kontti.shim import stats
from kontti.shim.loop import READ

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kontti.shim.loop import Loop


class OomWatch:
    """Calls ``tell`` at each running out of memory in the groups of cgroups.paths_of."""

    def __init__(self, loop: Loop, groups: Mapping[str, str], tell: Callable[[], None]) -> None:
        self._loop = loop
        self._groups = groups
        self._tell = tell
        # a group that several containers share may have seen it before
        self._told = stats.oom_kills(groups) if groups else 0
        try:
            self._fd = _unified(groups[""]) if "" in groups else _legacy(groups["memory"])
        except (OSError, KeyError):
            self._fd = -1  # what was killed for it is found out at the end
            return
        loop.watch(self._fd, READ, self._heard)

    def _heard(self) -> None:
        if not self._read():
            return
        kills = stats.oom_kills(self._groups)
        # v1 tells when it is about to kill, and once more when the group is removed
        if ("" in self._groups and kills <= self._told) or not self._there():
            return
        self._told = max(kills, self._told + 1)
        self._tell()

    def _read(self) -> bool:
        try:
            return bool(os.read(self._fd, 4096))
        except BlockingIOError:
            return False

    def _there(self) -> bool:
        return os.path.isdir(self._groups["" if "" in self._groups else "memory"])

    def finish(self) -> None:
        """The container has ended: tell what is not told yet, and stop."""
        if self._fd >= 0:
            self._heard()
        if self._groups and stats.oom_kills(self._groups) > self._told:
            self._tell()
        self.close()

    def close(self) -> None:
        """Stop."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._loop.forget(fd)
            os.close(fd)


def _legacy(folder: str) -> int:
    found = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        control = os.open(os.path.join(folder, "memory.oom_control"), os.O_RDONLY | os.O_CLOEXEC)
        try:
            with open(os.path.join(folder, "cgroup.event_control"), "w") as file:
                file.write(f"{found} {control}")
        finally:
            os.close(control)
    except OSError:
        os.close(found)
        raise
    return found


def _unified(folder: str) -> int:
    found = libc.inotify_init1(libc.IN_NONBLOCK | libc.IN_CLOEXEC)
    try:
        libc.inotify_add_watch(found, os.path.join(folder, "memory.events"), libc.IN_MODIFY)
    except OSError:
        os.close(found)
        raise
    return found
