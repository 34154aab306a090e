"""Making what is mounted below a directory seen, and its end, where shims live by themselves.

A shim may have a mount namespace of its own; what is mounted in ours after it was made is seen
there only below a shared mount, and what is unmounted in ours stays mounted there without one.
"""

from __future__ import annotations

import os

from kontti.linux import libc


def share(path: str) -> None:
    """Have mounts below ``path`` propagate, by a bind of it on itself where they would not."""
    if not _is_shared(path):
        libc.mount(path, path, None, libc.MS_BIND, None)
        libc.mount(None, path, None, libc.MS_SHARED, None)


def unshare(path: str) -> None:
    """Take the bind away, where there is one and nothing is mounted below."""
    if _mounts().get(os.path.realpath(path)) is not None:
        try:
            libc.umount2(path, libc.UMOUNT_NOFOLLOW)
        except OSError:
            return  # in use: the next daemon takes it over


def _is_shared(path: str) -> bool:
    """Whether the mount that ``path`` is on is shared (proc(5), mountinfo)."""
    mounts = _mounts()
    here = os.path.realpath(path)
    while here not in mounts and here != "/":
        here = os.path.dirname(here)
    return mounts.get(here, False)


def _mounts() -> dict[str, bool]:
    """Mount points, the topmost of each, and whether they are shared."""
    found = {}
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            fields = line.split(b" ")
            target = os.fsdecode(fields[4].decode("unicode_escape").encode("latin-1"))
            options = fields[6 : fields.index(b"-", 6)]
            found[target] = any(option.startswith(b"shared:") for option in options)
    return found
