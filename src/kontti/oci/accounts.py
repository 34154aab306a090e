"""Users and groups of an image, read from its own /etc/passwd and /etc/group (passwd(5), group(5)).

An image may hold anything there: a link to the host's file, a FIFO, a line that is no record.
Names are resolved inside the root, only regular files are read, and bad lines are passed over.
"""

from __future__ import annotations

import os
import stat

from kontti.errors import InvalidArgument, NotFound
from kontti.linux import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from kontti.oci.spec import User

MAX_ID = (1 << 31) - 1
MAX_FILE = 8 << 20


class PasswdEntry:
    """A line of /etc/passwd, as far as it matters here."""

    __slots__ = ("gid", "home", "name", "uid")

    def __init__(self, name: str, uid: int, gid: int, home: str) -> None:
        self.name = name
        self.uid = uid
        self.gid = gid
        self.home = home


class GroupEntry:
    """A line of /etc/group."""

    __slots__ = ("gid", "members", "name")

    def __init__(self, name: str, gid: int, members: tuple[str, ...]) -> None:
        self.name = name
        self.gid = gid
        self.members = members


class Accounts:
    """The users and groups of one image."""

    __slots__ = ("groups", "users")

    def __init__(self, users: tuple[PasswdEntry, ...], groups: tuple[GroupEntry, ...]) -> None:
        self.users = users
        self.groups = groups

    def user(self, name: str) -> PasswdEntry:
        """By name; raises NotFound."""
        entry = next((u for u in self.users if u.name == name), None)
        if entry is None:
            raise NotFound("no users found")
        return entry

    def user_by_id(self, uid: int) -> PasswdEntry | None:
        """By number, if there is one."""
        return next((u for u in self.users if u.uid == uid), None)

    def gid(self, name: str) -> int:
        """A group's number by its name; raises NotFound."""
        entry = next((g for g in self.groups if g.name == name), None)
        if entry is None:
            raise NotFound("no groups found")
        return entry.gid

    def supplementary(self, name: str) -> tuple[int, ...]:
        """The groups that list user ``name`` as a member, its own group aside."""
        return tuple(g.gid for g in self.groups if g.name != name and name in g.members)


class AccountSource:
    """Reads the accounts of a root that may have to be mounted first; once, and only if asked."""

    __slots__ = ("_accounts", "_rootfs")

    def __init__(self, rootfs: Callable[[], AbstractContextManager[str]] | None) -> None:
        self._rootfs = rootfs
        self._accounts: Accounts | None = None

    def get(self) -> Accounts:
        """The accounts; InvalidArgument where nobody said where the root is."""
        if self._accounts is None:
            if self._rootfs is None:
                raise InvalidArgument("rootfs absolute path is required")
            with self._rootfs() as path:
                self._accounts = read_accounts(path)
        return self._accounts


def resolve_user(text: str, accounts: AccountSource) -> User:
    """The user that ``text`` (``user``, ``uid``, ``user:group``, ``uid:gid``) names in the image.

    Numbers need not be known there; without a group it is the user's own, 0 for an unknown one.
    Raises NotFound for a name that is not known, InvalidArgument for text of another form.
    """
    name, _, group = text.partition(":")
    if ":" in group or not (name or group):
        raise InvalidArgument(f"invalid USER value {text!r:.120}")
    uid = number(name) if name else 0
    gid = number(group)
    if uid is not None and gid is not None:
        return {"uid": uid, "gid": gid}
    if group and gid is None:
        gid = accounts.get().gid(group)
    if uid is None:
        entry = accounts.get().user(name)
    else:
        entry = accounts.get().user_by_id(uid) or PasswdEntry("", uid, 0, "")
    return {"uid": entry.uid, "gid": entry.gid if gid is None else gid}


def supplementary_groups(text: str, accounts: AccountSource) -> tuple[int, ...]:
    """Further groups of the user that ``text`` (a name or a uid) is in the image."""
    name = text.partition(":")[0]
    uid = number(name)
    found = accounts.get()
    if uid is None:
        return found.supplementary(name)
    entry = found.user_by_id(uid)
    return found.supplementary(entry.name) if entry is not None else ()


def number(text: str) -> int | None:
    """``text`` as a uid or gid; None where it is no number, or too large for one."""
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        return None
    value = int(text)
    return value if value <= MAX_ID else None


def read_accounts(rootfs: str) -> Accounts:
    """The accounts of the tree at ``rootfs``; a file that is not there has no entries."""
    root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        users = tuple(parse_passwd(_read(root, "etc/passwd")))
        groups = tuple(parse_group(_read(root, "etc/group")))
    finally:
        os.close(root)
    return Accounts(users, groups)


def parse_passwd(data: bytes) -> Iterator[PasswdEntry]:
    """The entries of ``data``; lines that are none are passed over."""
    for fields in _lines(data):
        if len(fields) < 4:
            continue
        uid, gid = number(fields[2]), number(fields[3])
        if fields[0] and uid is not None and gid is not None:
            yield PasswdEntry(fields[0], uid, gid, fields[5] if len(fields) > 5 else "")


def parse_group(data: bytes) -> Iterator[GroupEntry]:
    """The entries of ``data``; lines that are none are passed over."""
    for fields in _lines(data):
        if len(fields) < 3:
            continue
        gid = number(fields[2])
        if fields[0] and gid is not None:
            members = fields[3].split(",") if len(fields) > 3 else []
            yield GroupEntry(fields[0], gid, tuple(m.strip() for m in members if m.strip()))


def _lines(data: bytes) -> Iterator[list[str]]:
    for line in data.decode("utf-8", "surrogateescape").split("\n"):
        text = line.strip()
        if text and not text.startswith("#"):
            yield text.split(":")


def _read(root: int, path: str) -> bytes:
    # O_PATH first: opening a FIFO would wait, opening a device may do anything
    resolve = libc.RESOLVE_IN_ROOT | libc.RESOLVE_NO_MAGICLINKS
    try:
        fd = libc.openat2(root, path, os.O_PATH, resolve=resolve)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise InvalidArgument(f"/{path} of the image: {error.strerror}") from error
    try:
        _check_file(os.fstat(fd), path)
        with open(f"/proc/self/fd/{fd}", "rb") as file:
            return file.read(MAX_FILE)
    finally:
        os.close(fd)


def _check_file(status: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise InvalidArgument(f"/{path} of the image is not a regular file")
    if status.st_size > MAX_FILE:
        raise InvalidArgument(f"/{path} of the image is larger than {MAX_FILE} bytes")
