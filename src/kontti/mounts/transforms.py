"""What is done to a mount before it is made: ``format/``, ``mkdir/`` and ``mkfs/``."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kontti.errors import Error, InvalidArgument, Unimplemented
from kontti.linux import libc, process
from kontti.mounts.base import ActiveMount
from kontti.values import Mount

MKDIR, MKFS = "X-containerd.mkdir.", "X-containerd.mkfs."
_CALL = re.compile(r"\{\{-?\s*([a-z]+)\s+(-?\d{1,6})(?:\s+(-?\d{1,6}))?\s*-?\}\}")
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([kmgtp]?)i?b?", re.IGNORECASE)
_UUID = re.compile(r"[0-9a-fA-F-]{1,36}")
_EXTENDED = ("ext2", "ext3", "ext4")
MKFS_SECONDS = 300.0
MAX_IMAGE = 1 << 50


def format_mount(mount: Mount, active: Sequence[ActiveMount]) -> Mount:
    """Fill ``{{ mount 0 }}`` and the like in, from what was mounted before."""
    return replace(
        mount,
        source=fill(mount.source, active),
        target=fill(mount.target, active),
        options=tuple(fill(option, active) for option in mount.options),
    )


def fill(text: str, active: Sequence[ActiveMount]) -> str:
    """``source N``, ``target N``, ``mount N`` and ``overlay FIRST LAST`` in double braces.

    Raises InvalidArgument for anything else there.
    """
    if "{{" not in text:
        return text
    pieces, end = [], 0
    for call in _CALL.finditer(text):
        pieces += [text[end : call.start()], _value(call, active)]
        end = call.end()
    pieces.append(text[end:])
    if any("{{" in piece for piece in pieces[::2]):
        raise InvalidArgument(f"mount format {text:.200}")
    return "".join(pieces)


def _value(call: re.Match[str], active: Sequence[ActiveMount]) -> str:
    name, first, last = call.groups()
    if name == "overlay" and last is not None:
        return ":".join(_range(int(first), int(last), active))
    one = {
        "source": lambda m: m.mount.source,
        "target": lambda m: m.mount.target,
        "mount": lambda m: m.mount_point,
    }.get(name)
    if one is None or last is not None:
        raise InvalidArgument(f"mount format {call.group():.200}")
    index = int(first)
    if not 0 <= index < len(active):
        raise InvalidArgument(f"index out of bounds: {index}, has {len(active)} active mounts")
    return str(one(active[index]))


def _range(first: int, last: int, active: Sequence[ActiveMount]) -> list[str]:
    if min(first, last) < 0 or max(first, last) >= len(active):
        raise InvalidArgument(f"invalid range: {first}-{last}, has {len(active)} active mounts")
    step = 1 if first <= last else -1
    return [active[index].mount_point for index in range(first, last + step, step)]


@dataclass(frozen=True, slots=True)
class Roots:
    """The directories below which directories and images may be made."""

    paths: tuple[str, ...]

    def open(self, path: str, flags: int, what: str) -> tuple[int, str]:
        """The parent directory of ``path``, and its name there; raises Unimplemented."""
        inside = os.path.normpath(path)
        for root in self.paths:
            if os.path.isabs(path) and inside.startswith(f"{root.rstrip('/')}/"):
                below = os.path.relpath(os.path.dirname(inside), root)
                top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    resolve = libc.RESOLVE_BENEATH | libc.RESOLVE_NO_MAGICLINKS
                    parent = libc.openat2(top, below, os.O_DIRECTORY | flags, resolve=resolve)
                finally:
                    os.close(top)
                return parent, os.path.basename(inside)
        raise Unimplemented(f'no root "{path:.200}" configured for {what}')


@dataclass(frozen=True, slots=True)
class MakeDirectories:
    """``X-containerd.mkdir.path=PATH[:MODE[:UID:GID]]``; one that is there stays as it is."""

    roots: Roots

    def __call__(self, mount: Mount, _active: Sequence[ActiveMount]) -> Mount:
        kept = []
        for option in mount.options:
            if option.startswith(MKDIR):
                self._make(option)
            else:
                kept.append(option)
        return replace(mount, options=tuple(kept))

    def _make(self, option: str) -> None:
        key, _, value = option.removeprefix(MKDIR).partition("=")
        path, *rest = value.split(":")
        if key != "path" or len(rest) not in (0, 1, 3) or not path:
            raise InvalidArgument(f'invalid mkdir option "{option:.200}"')
        mode = _number(rest[0], 8, 0o777, "mode") if rest else 0o700
        uid, gid = os.getuid(), os.getgid()
        if len(rest) == 3:
            uid, gid = (_number(text, 10, 1 << 32, "id") for text in rest[1:])
        parent, name = self.roots.open(path, os.O_RDONLY, "mkdir")
        try:
            os.mkdir(name, mode, dir_fd=parent)
            # umask(2) has taken some of the mode away
            os.chmod(name, mode, dir_fd=parent)
            os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)
        except FileExistsError:
            return
        finally:
            os.close(parent)


def _number(text: str, base: int, most: int, what: str) -> int:
    try:
        number = int(text, base)
    except ValueError:
        number = -1
    if not 0 <= number <= most or not text.isalnum():
        raise InvalidArgument(f"invalid {what} {text[:40]}")
    return number


@dataclass(frozen=True, slots=True)
class MakeImage:
    """``X-containerd.mkfs.size=SIZE``, ``.fs=ext4``, ``.uuid=``: an image, if there is none."""

    roots: Roots

    def __call__(self, mount: Mount, _active: Sequence[ActiveMount]) -> Mount:
        found = {"fs": "ext4", "uuid": "", "size": ""}
        kept = []
        for option in mount.options:
            if not option.startswith(MKFS):
                kept.append(option)
                continue
            key, _, value = option.removeprefix(MKFS).partition("=")
            if key not in found:
                raise InvalidArgument(f"unknown mount option {key:.80}")
            found[key] = value
        command = mkfs(found["fs"], found["uuid"])
        size = parse_size(found["size"])
        parent, name = self.roots.open(mount.source, os.O_RDONLY, "mkfs")
        try:
            self._make(parent, name, size, command)
        finally:
            os.close(parent)
        return replace(mount, options=tuple(kept))

    @staticmethod
    def _make(parent: int, name: str, size: int, command: list[str]) -> None:
        if _there(parent, name):
            return
        temporary = f".{name[:200]}.{os.urandom(6).hex()}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(temporary, flags, 0o640, dir_fd=parent)
        try:
            os.truncate(fd, size)
            _run([*command, os.readlink(f"/proc/self/fd/{fd}")])
            # whole or not at all, and never in place of another's
            os.link(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except FileExistsError:
            return
        finally:
            os.close(fd)
            os.unlink(temporary, dir_fd=parent)


def _there(parent: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=parent)
    except FileNotFoundError:
        return False
    return True


def _run(command: list[str]) -> None:
    done = process.run(["/usr/bin/env", *command], timeout=MKFS_SECONDS)
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise Error(f"{command[0]} failed: {said:.500}")


def mkfs(kind: str, uuid: str) -> list[str]:
    """The command line, without the image, that makes a file system; raises InvalidArgument."""
    if uuid and not _UUID.fullmatch(uuid):
        raise InvalidArgument(f"invalid uuid {uuid:.80}")
    if kind in _EXTENDED:
        return [f"mkfs.{kind}", "-q", *(["-U", uuid] if uuid else [])]
    if kind == "xfs":
        return ["mkfs.xfs", "-q", *(["-m", f"uuid={uuid}"] if uuid else [])]
    raise InvalidArgument(f'unsupported filesystem "{kind:.80}"')


def parse_size(text: str) -> int:
    """``10M``, ``16MiB``, ``1g`` in bytes, powers of 1024; raises InvalidArgument."""
    if not text:
        raise InvalidArgument("mkfs requires mkfs.size option")
    found = _SIZE.fullmatch(text)
    size = int(float(found[1]) * 1024 ** " kmgtp".index(found[2].lower() or " ")) if found else 0
    if not 0 < size <= MAX_IMAGE:
        raise InvalidArgument(f"bad option size: {text:.80}")
    return size
