"""A task's directory: what its shim and runtime are given, and how to find the shim again.

<state>/io.containerd.runtime.v2.task/<namespace>/<id>/
    config.json       the OCI spec
    rootfs/           where the root file system is mounted
    work              link to <root>/io.containerd.runtime.v2.task/<namespace>/<id>
    sandbox           the sandbox whose shim keeps it, if any
    bootstrap.json    {"version", "address", "protocol"}; our own shim's is there before the shim
    shim-binary-path  the shim that was started, "" for our own
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from kontti.errors import AlreadyExists, Error, ResourceExhausted
from kontti.linux import fs, libc, mounts
from kontti.values import check_identifier

log = logging.getLogger(__name__)
TASK_DIR = "io.containerd.runtime.v2.task"
SANDBOX_DIR = "io.containerd.sandbox.controller.v1.shim"
BUILTIN = ""
OCI_VERSION = "1.0.2"
"""What every runtime takes; a later 1.x adds fields, and a runtime skips those it does not know."""
_NEWER = re.compile(r"1\.[1-9][0-9]*\.[0-9]+(?:[-+].*)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """How to reach a shim. ``version`` of the Task service, 2 or 3."""

    address: str
    version: int = 2
    protocol: str = "ttrpc"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A task's directories: ``path`` is lost at reboot, ``work`` is not."""

    namespace: str
    id: str
    path: str
    work: str

    def write_binary(self, binary: str) -> None:
        """Note which shim is to be started, BUILTIN for our own. Raises Error."""
        with _os_errors(f"bundle of {self.id}"):
            self._write("shim-binary-path", binary.encode())

    def write_sandbox(self, sandbox: str) -> None:
        """Note whose shim the task is in. Raises Error."""
        with _os_errors(f"bundle of {self.id}"):
            self._write("sandbox", sandbox.encode())

    def write_bootstrap(self, bootstrap: Bootstrap) -> None:
        """Note how to reach the shim; a new daemon finds it by this. Raises Error."""
        plain = {
            "version": bootstrap.version,
            "address": bootstrap.address,
            "protocol": bootstrap.protocol,
        }
        with _os_errors(f"bundle of {self.id}"):
            self._write("bootstrap.json", json.dumps(plain).encode())

    def _write(self, name: str, data: bytes) -> None:
        # the state directory does not outlive a crash of the machine: nothing to sync
        fs.atomic_write(os.path.join(self.path, name), data, 0o600, sync=False)

    def bootstrap(self) -> Bootstrap | None:
        """The shim that was noted; None where there is none, or its note cannot be read."""
        try:
            with open(os.path.join(self.path, "bootstrap.json"), "rb") as file:
                plain = json.load(file)
            return Bootstrap(
                str(plain["address"]), int(plain["version"]), str(plain.get("protocol", "ttrpc"))
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def binary(self) -> str:
        """The shim that was started; BUILTIN for our own."""
        try:
            with open(os.path.join(self.path, "shim-binary-path")) as file:
                return file.read()
        except (OSError, ValueError):
            return BUILTIN

    def make(self, spec: bytes | None) -> None:
        """Make the directories; raises AlreadyExists, and leaves nothing where it fails."""
        with _os_errors(f"bundle of {self.id}"):
            os.makedirs(os.path.dirname(self.path), mode=0o711, exist_ok=True)
            os.makedirs(os.path.dirname(self.work), mode=0o711, exist_ok=True)
            try:
                os.mkdir(self.path, 0o700)
            except FileExistsError:
                raise AlreadyExists(f"task {self.id}") from None
            try:
                self._fill(spec)
            except BaseException:
                self.delete()
                raise

    def _fill(self, spec: bytes | None) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.work, 0o711)
        os.mkdir(os.path.join(self.path, "rootfs"), 0o711)
        os.symlink(self.work, os.path.join(self.path, "work"))
        if spec is None:
            return  # a sandbox need not have one
        with open(os.path.join(self.path, "config.json"), "wb") as file:
            file.write(for_runtime(spec))
        let_root_in(self.path, spec)

    def delete(self) -> None:
        """Unmount what is left on the root file system, and remove both directories.

        Raises Error where something stays mounted: what is below a mount is not ours to remove.
        """
        with _os_errors(f"bundle of {self.id}"):
            self._free_rootfs()
            fs.remove_tree(self.path)
            fs.remove_tree(self.work)

    def _free_rootfs(self) -> None:
        """Have nothing mounted there any more; the shim has most often seen to that."""
        rootfs = os.path.join(self.path, "rootfs")
        if _removed(rootfs):
            return
        mounts.unmount_all(rootfs)
        if _removed(rootfs):
            return
        for target in reversed(_mounts_below(self.path)):
            libc.umount2(target, libc.MNT_DETACH | libc.UMOUNT_NOFOLLOW)
        left = _mounts_below(self.path)
        if left:
            raise Error(f"bundle of {self.id}: {left[0]} stays mounted")


class Bundles:
    """All bundles of a kind below ``state``, with work directories below ``root``."""

    def __init__(self, root: str, state: str, folder: str = TASK_DIR) -> None:
        self._work = os.path.join(root, folder)
        self._state = os.path.join(state, folder)
        for path in (self._work, self._state):
            os.makedirs(path, mode=0o711, exist_ok=True)

    def of(self, namespace: str, id: str) -> Bundle:
        """The bundle of a task, there or not; raises InvalidArgument for a malformed name."""
        check_identifier(namespace, "namespace")
        check_identifier(id, "task id")
        return Bundle(
            namespace,
            id,
            os.path.join(self._state, namespace, id),
            os.path.join(self._work, namespace, id),
        )

    def create(self, namespace: str, id: str, spec: bytes) -> Bundle:
        """Make a bundle; raises AlreadyExists, and leaves nothing where it fails."""
        bundle = self.of(namespace, id)
        bundle.make(spec)
        return bundle

    def all(self) -> list[Bundle]:
        """Every bundle on disk; what is there and cannot be one is left alone."""
        found = []
        for namespace in _folders(self._state):
            for id in _folders(os.path.join(self._state, namespace)):
                try:
                    found.append(self.of(namespace, id))
                except Error as error:
                    log.warning("%s/%s is no task's: %s", namespace, id, error)
        return found


def for_runtime(spec: bytes) -> bytes:
    """``spec``, its ociVersion one that any runtime accepts where it is a later 1.x.

    crun up to 1.8.1 refuses all but 1.0.x. What is no 1.x is the runtime's to refuse.
    """
    if spec.startswith(b'{"ociVersion":"1.0.'):
        return spec  # as most clients write it
    try:
        plain = json.loads(spec)
    except (ValueError, RecursionError):
        return spec
    version = plain.get("ociVersion") if isinstance(plain, dict) else None
    if not isinstance(version, str) or not _NEWER.fullmatch(version):
        return spec
    return json.dumps({**plain, "ociVersion": OCI_VERSION}).encode()


def let_root_in(path: str, spec: bytes) -> None:
    """Have the root of the spec's user namespace, if any, reach what is in the bundle ``path``."""
    gid = root_gid(spec)
    if gid:
        os.chown(path, -1, gid)
        os.chmod(path, 0o710)


def root_gid(spec: bytes) -> int:
    """The host's number for group 0 of the spec's user namespace; 0 where it has none."""
    if b'"gidMappings"' not in spec:
        return 0
    try:
        linux = json.loads(spec)["linux"]
        inside = any(namespace["type"] == "user" for namespace in linux["namespaces"])
        found = [m["hostID"] for m in linux["gidMappings"] if m["containerID"] == 0]
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0  # the runtime will say what is wrong with it
    known = inside and found and isinstance(found[0], int) and 0 < found[0] < 1 << 32
    return found[0] if known else 0


def _removed(path: str) -> bool:
    """Remove a directory that is empty and not mounted on; whether it is gone."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY, errno.ENOTDIR):
            raise
        return False
    return True


def _folders(path: str) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))


def _mounts_below(path: str) -> list[str]:
    """Mount points below ``path``, in the order they were made (proc(5), mountinfo)."""
    root = os.path.realpath(path)
    found = []
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            target = os.fsdecode(line.split(b" ")[4].decode("unicode_escape").encode("latin-1"))
            if target.startswith(f"{root}/"):
                found.append(target)
    return found


@contextlib.contextmanager
def _os_errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        cls = ResourceExhausted if error.errno in (errno.ENOSPC, errno.EDQUOT) else Error
        path = f"{error.filename}: " if error.filename else ""
        raise cls(f"{what}: {path}{(error.strerror or str(error)).lower()}") from error
