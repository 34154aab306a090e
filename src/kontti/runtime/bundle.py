"""A task's directory: what its shim and runtime are given, and how to find the shim again.

<state>/io.containerd.runtime.v2.task/<namespace>/<id>/
    config.json       the OCI spec
    rootfs/           where the root file system is mounted
    work              link to <root>/io.containerd.runtime.v2.task/<namespace>/<id>
    bootstrap.json    {"version", "address", "protocol"}, once a shim listens
    shim-binary-path  the shim that was started, "" for our own
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass

from kontti.errors import AlreadyExists, Error
from kontti.linux import fs, mounts
from kontti.values import check_identifier

TASK_DIR = "io.containerd.runtime.v2.task"
BUILTIN = ""


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

    def write_bootstrap(self, bootstrap: Bootstrap, binary: str) -> None:
        """Note the shim; a new daemon finds it by this."""
        plain = {
            "version": bootstrap.version,
            "address": bootstrap.address,
            "protocol": bootstrap.protocol,
        }
        self._write("shim-binary-path", binary.encode())
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
        except OSError:
            return BUILTIN

    def delete(self) -> None:
        """Unmount what is left on the root file system, and remove both directories."""
        mounts.unmount_all(os.path.join(self.path, "rootfs"))
        fs.remove_tree(self.path)
        fs.remove_tree(self.work)


class Bundles:
    """All bundles below ``state``, with work directories below ``root``."""

    def __init__(self, root: str, state: str) -> None:
        self._work = os.path.join(root, TASK_DIR)
        self._state = os.path.join(state, TASK_DIR)
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
        with _os_errors(f"bundle of {id}"):
            os.makedirs(os.path.dirname(bundle.path), mode=0o711, exist_ok=True)
            os.makedirs(os.path.dirname(bundle.work), mode=0o711, exist_ok=True)
            try:
                os.mkdir(bundle.path, 0o700)
            except FileExistsError:
                raise AlreadyExists(f"task {id}") from None
            try:
                self._fill(bundle, spec)
            except BaseException:
                bundle.delete()
                raise
        return bundle

    @staticmethod
    def _fill(bundle: Bundle, spec: bytes) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(bundle.work, 0o711)
        os.mkdir(os.path.join(bundle.path, "rootfs"), 0o711)
        os.symlink(bundle.work, os.path.join(bundle.path, "work"))
        with open(os.path.join(bundle.path, "config.json"), "wb") as file:
            file.write(spec)

    def all(self) -> Iterator[Bundle]:
        """Every bundle on disk."""
        for namespace in sorted(os.listdir(self._state)):
            folder = os.path.join(self._state, namespace)
            for id in sorted(os.listdir(folder)):
                with contextlib.suppress(Error):
                    yield self.of(namespace, id)


@contextlib.contextmanager
def _os_errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Error(f"{what}: {error}") from error
