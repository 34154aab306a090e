"""What a daemon has: pictures of it before and after, and what is in the second alone."""

from __future__ import annotations

import contextlib
import glob
import io
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kontti import Engine
from kontti.client.client import Client
from kontti.client.stores import RemoteStores
from kontti.errors import Error
from kontti.metadata.store import MetadataStore
from kontti.namespaces import Scope
from kontti.snapshots.base import Kind
from kontti.wire.messages.services.containers.v1.containers import (
    ListContainersRequest,
    ListContainersResponse,
)
from kontti.wire.messages.services.tasks.v1.tasks import ListTasksRequest, ListTasksResponse
from tests.support import daemons
from tests.support.daemons import Daemon
from tests.support.hostile import NAME
from tests.support.shims import short_folder

SETTLE_SECONDS = 8.0
SNAPSHOTTERS = ("overlayfs", "native")
CONTAINERS = "containerd.services.containers.v1.Containers/"
TASKS = "containerd.services.tasks.v1.Tasks/"
CGROUPS = Path("/sys/fs/cgroup")
RUNTIME_STATE = Path("/run/containerd/runc")
FIFOS = Path("/run/containerd/fifo")
# a collector takes these away; nothing else may be there after a failure
COLLECTED = frozenset(("blobs", "committed snapshots", "snapshot folders"))
Picture = Mapping[str, Counter[str]]


@dataclass(frozen=True)
class Place:
    """A daemon, a namespace of its own on it, and the client to use with it."""

    daemon: Daemon
    namespace: str
    client: str
    base: Path

    def ctr(
        self, *args: str, stdin: bytes | None = None, timeout: float = 20
    ) -> subprocess.CompletedProcess[bytes]:
        """One call of the client in the namespace."""
        words = ("--namespace", self.namespace, *args)
        return self.daemon.ctr(self.client, *words, stdin=stdin, timeout=timeout)

    def out(self, *args: str, stdin: bytes | None = None) -> str:
        """What a call prints that has to succeed."""
        done = self.ctr(*args, stdin=stdin)
        assert done.returncode == 0, done
        return done.stdout.decode()

    def fails(self, *args: str, stdin: bytes | None = None) -> str:
        """What a call complains of that has to fail."""
        done = self.ctr(*args, stdin=stdin)
        assert done.returncode not in (0, 124), done
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        return done.stderr.decode()

    def abort(self, ref: str) -> None:
        """Throw an ingest away."""
        with contextlib.closing(RemoteStores(self.daemon.address)) as stores:
            stores.content(Scope.of(self.namespace)).abort(ref)

    def import_bytes(self, archive: bytes, *flags: str) -> subprocess.CompletedProcess[bytes]:
        """``ctr images import`` of an archive."""
        path = self.base / "import.tar"
        path.write_bytes(archive)
        try:
            return self.ctr("images", "import", *flags, str(path))
        finally:
            path.unlink()

    def forget(self, name: str) -> None:
        """Remove an image's name, if it is there: Debian's client makes it before it unpacks."""
        self.ctr("images", "rm", name)

    def collect(self) -> None:
        """Have the daemon collect its garbage, now."""
        with contextlib.closing(RemoteStores(self.daemon.address)) as stores:
            leases = stores.leases(Scope.of(self.namespace))
            leases.create("collect-now")
            leases.delete("collect-now", sync=True)

    def picture(self) -> Picture:
        """Everything there is now."""
        scope = Scope.of(self.namespace)
        with contextlib.closing(RemoteStores(self.daemon.address)) as stores:
            seen = _records(stores, scope) | _made(stores.client(scope))
        return seen | of_host(self.base, self.daemon.pid, self.namespace)

    def import_error(self, archive: bytes) -> str:
        """What an import complains of; "" for one that works. The image's name is gone again."""
        done = self.import_bytes(archive)
        assert done.returncode != 124, done
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        self.forget(NAME)
        return done.stderr.decode() if done.returncode else ""

    def pull_error(self, name: str) -> str:
        """The same of a pull by plain HTTP."""
        done = self.ctr("images", "pull", "--plain-http", name)
        assert done.returncode != 124, done
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        self.forget(name)
        return done.stderr.decode() if done.returncode else ""


@dataclass(frozen=True)
class Embedded:
    """An engine in this process, to be used as a daemon is."""

    engine: Engine
    namespace: str
    base: Path

    def collect(self) -> None:
        """Collect garbage, now."""
        self.engine._stores.gc.collect_and_wait()

    def picture(self) -> Picture:
        """Everything there is now."""
        seen = _records(self.engine._stores.metadata, Scope.of(self.namespace))
        ids = [container.id for container in self.engine.containers()]
        seen |= {"containers": Counter(ids)}
        return seen | of_host(self.base, os.getpid(), self.namespace)

    def import_error(self, archive: bytes) -> str:
        """As a daemon's."""
        return self._error(lambda: self.engine.import_image(io.BytesIO(archive)), NAME)

    def pull_error(self, name: str) -> str:
        """As a daemon's."""
        return self._error(lambda: self.engine.pull(name, plain_http=True), name)

    def _error(self, act: Callable[[], object], name: str) -> str:
        before, tempfile.tempdir = tempfile.tempdir, str(self.base / "tmp")
        try:
            act()
        except Error as error:
            return error.message
        finally:
            tempfile.tempdir = before
        self.engine.remove_image(name)
        return ""


class Target(Protocol):
    """Where bad input is put."""

    @property
    def base(self) -> Path: ...
    def collect(self) -> None: ...
    def picture(self) -> Picture: ...
    def import_error(self, archive: bytes) -> str: ...
    def pull_error(self, name: str) -> str: ...


def _made(client: Client) -> dict[str, Counter[str]]:
    containers = client.unary(CONTAINERS + "List", ListContainersRequest(), ListContainersResponse)
    tasks = client.unary(TASKS + "List", ListTasksRequest(), ListTasksResponse)
    return {
        "containers": Counter(container.id for container in containers.containers),
        "tasks": Counter(task.id for task in tasks.tasks),
    }


def _records(stores: RemoteStores | MetadataStore, scope: Scope) -> dict[str, Counter[str]]:
    content = stores.content(scope)
    seen: dict[str, Counter[str]] = {
        "ingests": Counter(status.ref for status in content.list_statuses()),
        "blobs": Counter(info.digest for info in content.walk()),
        "leases": Counter(lease.id for lease in stores.leases(scope).list()),
        "images": Counter(image.name for image in stores.images(scope).list()),
        "committed snapshots": Counter(),
        "active snapshots": Counter(),
    }
    for snapshotter in SNAPSHOTTERS:
        for info in stores.snapshots(scope, snapshotter).walk():
            kind = "committed" if info.kind == Kind.COMMITTED else "active"
            seen[f"{kind} snapshots"][f"{snapshotter} {info.name}"] += 1
    return seen


def of_host(base: Path, daemon: int, namespace: str) -> dict[str, Counter[str]]:
    """What of a daemon below ``base`` is to be seen from the host."""
    pids = processes(base, daemon, namespace)
    return {
        "processes": Counter(_but_for_one_worker([f"{pid} {pids[pid]}" for pid in pids])),
        "mounts": mounts(base, {os.getpid(), *pids}),
        "cgroups": Counter(map(str, CGROUPS.glob(f"*/{namespace}/*/"))),
        "files": Counter(_files(base)),
        "runtime state": Counter(map(str, RUNTIME_STATE.glob(f"{namespace}/*"))),
        "fifos": Counter(fifos_of(namespace)),
        "snapshot folders": Counter(
            str(p.relative_to(base)) for p in base.glob("root/*/snapshots/*")
        ),
    }


def fifos_of(namespace: str) -> list[str]:
    """Those of a namespace's tasks, in folders that others make and remove meanwhile."""
    return glob.glob(f"{FIFOS}/*/{namespace}*")


def processes(base: Path, daemon: int, namespace: str) -> dict[int, str]:
    """Below the daemon, or naming its place or its cgroup: command lines by pid."""
    found: dict[int, str] = {}
    parents: dict[int, int] = {}
    marks = (os.fsencode(base) + b"/", f"/{namespace}/".encode())
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes()
            about = line + os.readlink(entry / "cwd").encode() + (entry / "cgroup").read_bytes()
            parents[int(entry.name)] = _parent(entry)
            ours = any(mark in about for mark in marks) or _below(int(entry.name), daemon, parents)
            if ours and not _is_spare(entry, line):
                found[int(entry.name)] = line.replace(b"\0", b" ").decode(errors="replace")[:200]
    return found


def _is_spare(entry: Path, line: bytes) -> bool:
    """Forked ahead of need, and by its name not a container's shim yet: there are always some."""
    return b"kontti.shim.zygote" in line and (entry / "comm").read_text() != "kontti-shim\n"


def _but_for_one_worker(lines: list[str]) -> list[str]:
    """Ours has up to one layer worker started ahead of need."""
    workers = [line for line in lines if "kontti.diff.worker" in line]
    return [line for line in lines if line not in workers[:1]]


def _parent(entry: Path) -> int:
    return int((entry / "stat").read_text().rpartition(")")[2].split()[1])


def _below(pid: int, daemon: int, parents: Mapping[int, int]) -> bool:
    while pid in parents and pid != daemon:
        pid = parents[pid]
    return pid == daemon


def mounts(base: Path, pids: set[int]) -> Counter[str]:
    """Mounts that name ``base``, in every mount namespace of ``pids``."""
    spaces: dict[str, list[str]] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            space = os.readlink(f"/proc/{pid}/ns/mnt")
            if space not in spaces:
                spaces[space] = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    return Counter(
        line.split()[4] for lines in spaces.values() for line in lines if f"{base}/" in line
    )


def _files(base: Path) -> Iterator[str]:
    """Every path that is no blob, no part of a database and not in a snapshot's folder."""
    for parent, folders, files in os.walk(base):
        here = os.path.relpath(parent, base)
        if here.endswith(("content/blobs", "/snapshots")):
            folders.clear()
            continue
        for name in (*folders, *files):
            if not name.startswith(("meta.db", "metadata.db", "daemon.log", "blobs")):
                yield os.path.join(here, name)


def left(before: Picture, after: Picture, ignored: frozenset[str]) -> dict[str, list[str]]:
    """What there is more of after than before."""
    more = {kind: sorted((seen - before[kind]).elements()) for kind, seen in after.items()}
    # one that was there may have become another program since
    known = {line.split()[0] for line in before["processes"]}
    more["processes"] = [line for line in more["processes"] if line.split()[0] not in known]
    return {kind: names for kind, names in more.items() if names and kind not in ignored}


@contextlib.contextmanager
def unchanged(place: Target, allowed: frozenset[str] = frozenset()) -> Iterator[None]:
    """Nothing is left of what the block did, and what may be garbage is collected at the end."""
    before = place.picture()
    yield
    _settle(place, before, COLLECTED | allowed)
    place.collect()
    _settle(place, before, allowed)


def _settle(place: Target, before: Picture, ignored: frozenset[str]) -> None:
    deadline = time.monotonic() + SETTLE_SECONDS
    while more := left(before, place.picture(), ignored):
        assert time.monotonic() < deadline, more
        time.sleep(0.05)


@contextlib.contextmanager
def place(kind: str, client: str) -> Iterator[Place]:
    """A daemon of ``kind`` for ``client``, its temporary files in a folder of their own."""
    with short_folder() as base, placed(kind, client, base) as made:
        yield made


@contextlib.contextmanager
def placed(kind: str, client: str, base: Path, more: str = "") -> Iterator[Place]:
    """The same in a folder that is there; ``more`` is put after the usual configuration."""
    namespace = new_namespace()
    with temporary_files(base / "tmp"), daemons.running(kind, base, more) as daemon:
        made = Place(daemon, namespace, client, base)
        try:
            yield made
        finally:
            end_tasks(made)
    remove_folders(namespace)


@contextlib.contextmanager
def embedded() -> Iterator[Embedded]:
    """An engine with a folder of its own."""
    with short_folder() as base, embedded_in(base) as made:
        yield made


@contextlib.contextmanager
def embedded_in(base: Path) -> Iterator[Embedded]:
    """The same in a folder that is there."""
    namespace = new_namespace()
    with temporary_files(base / "tmp"):
        with Engine(str(base / "root"), str(base / "state"), namespace) as engine:
            try:
                yield Embedded(engine, namespace, base)
            finally:
                for container in engine.containers():
                    engine.remove(container.id, force=True)
        daemons.clean(base)
    remove_folders(namespace)


@contextlib.contextmanager
def target(kind: str) -> Iterator[Target]:
    """``daemon/client``, or ``embedded``."""
    if kind == "embedded":
        with embedded() as engine:
            yield engine
        return
    daemon, _, client = kind.partition("/")
    with place(daemon, client) as made:
        yield made


def new_namespace() -> str:
    """One that nobody has."""
    return f"t{uuid.uuid4().hex[:12]}"


def remove_folders(namespace: str) -> None:
    """What OCI runtimes and clients keep of a namespace that is empty."""
    for fifo in fifos_of(namespace):
        shutil.rmtree(os.path.dirname(fifo), ignore_errors=True)
    for path in (RUNTIME_STATE / namespace, *CGROUPS.glob(f"*/{namespace}")):
        with contextlib.suppress(OSError):
            os.rmdir(path)


def end_tasks(place: Place) -> None:
    """Those that a failed test left."""
    for id in place.ctr("tasks", "ls", "-q").stdout.decode().split():
        place.ctr("tasks", "rm", "-f", id)


@contextlib.contextmanager
def temporary_files(folder: Path) -> Iterator[None]:
    """Have every process started within the block put its temporary files into ``folder``."""
    folder.mkdir()
    tempfile.gettempdir()  # of this process it stays where it is
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("TMPDIR")
        if before is not None:
            os.environ["TMPDIR"] = before
