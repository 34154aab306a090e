"""The Python API: containers in this process, with no daemon."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import BinaryIO, Self

from kontti.doctor.base import Finding
from kontti.doctor.checkup import Tell as TellFinding
from kontti.engine import containers
from kontti.engine.checkup import examine
from kontti.engine.core import Core
from kontti.engine.logs import Logs, query, tee
from kontti.engine.migration import migrate
from kontti.engine.processes import Processes
from kontti.engine.registries import open_session
from kontti.engine.stdio import Streams
from kontti.engine.values import ContainerInfo, ExecOptions, ImageInfo, Options, Result, Sink
from kontti.errors import DeadlineExceeded, FailedPrecondition, NotFound
from kontti.images.graph import platforms
from kontti.images.image_check import size
from kontti.images.platforms import default, format_platform, only
from kontti.linux.process import signal_number
from kontti.logs.output import Shown
from kontti.logs.reader import read
from kontti.metadata.base import Container, Image
from kontti.migrate.adopt import Outcome, Tell
from kontti.namespaces import DEFAULT, Scope
from kontti.registry.reference import docker_normalize
from kontti.registry.resolver import Resolver
from kontti.shim.log_writer import LogWriter
from kontti.tasks.base import Process, Status, Stdio
from kontti.transfer.import_ import ImportOptions, import_archive
from kontti.transfer.progress import OnProgress, silent
from kontti.transfer.pull import pull
from kontti.transfer.push import push
from kontti.values import Mount
from kontti.wire.log_record import STREAMS
from kontti.wire.log_uri import LABEL, is_log

ROOT, STATE = "/var/lib/kontti", "/run/kontti"
LIVE = ("created", "running", "paused")


class Engine:
    """Images and containers below ``root``; ``state`` holds what a reboot may lose.

    One process owns a root at a time: FailedPrecondition names the one that has it. Containers in
    the background go on when the engine is closed, and are there when it is opened again.
    ``processes`` has the steps that ``run`` and ``exec`` are made of.
    """

    def __init__(self, root: str = ROOT, state: str = STATE, namespace: str = DEFAULT) -> None:
        self._scope = Scope.of(namespace)
        self._fifos = os.path.join(state, "fifo")
        self._logs = Logs(root, self._scope)
        self._core = Core(root, state, f"an embedded engine in {os.path.basename(sys.argv[0])}")
        self._stores = self._core.stores
        self.processes = Processes(self._core, self._scope)

    def close(self) -> None:
        """Give the root back."""
        self._core.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def pull(
        self,
        name: str,
        *,
        plain_http: bool = False,
        user: str = "",
        password: str = "",
        progress: OnProgress = silent,
    ) -> ImageInfo:
        """Pull ``name`` (docker's short names too) and unpack it. Plain HTTP only if asked for."""
        name, parts = docker_normalize(name), self._stores.transfer_parts()
        with open_session(name, plain_http=plain_http, user=user, password=password) as session:
            pulled = pull(parts, self._scope, Resolver(session), name, progress=progress)
        return self._image_info(pulled.image)

    def push(
        self,
        name: str,
        source: str = "",
        *,
        plain_http: bool = False,
        user: str = "",
        password: str = "",
        progress: OnProgress = silent,
    ) -> None:
        """Push image ``source`` (default: the one of that name) to its registry as ``name``."""
        image, name = self._image(source or name), docker_normalize(name)
        with open_session(name, plain_http=plain_http, user=user, password=password) as session:
            stores = self._stores.metadata
            push(stores, self._scope, session, name, image.target, progress=progress)

    def import_image(
        self, source: str | BinaryIO, *, progress: OnProgress = silent
    ) -> list[ImageInfo]:
        """Store the images of an archive (OCI layout or ``docker save``), a path or open file."""
        if isinstance(source, str):
            with open(source, "rb") as file:
                return self.import_image(file, progress=progress)
        parts = self._stores.transfer_parts()
        options = ImportOptions(prefix="import")
        found = import_archive(parts, self._scope, source.read, options, progress=progress)
        return [self._image_info(image) for image in found.images]

    def migrate(self, root: str, *, copy: bool = False, tell: Tell) -> tuple[Outcome, ...]:
        """Take over a containerd root's images and stopped containers, of all namespaces."""
        return migrate(self._stores, root, copy=copy, tell=tell)

    def doctor(
        self,
        *,
        repair: bool = False,
        deep: bool = True,
        rate: int = 0,
        plain_http: bool = False,
        tell: TellFinding = lambda _: None,
    ) -> tuple[Finding, ...]:
        """Check every blob, snapshot and record, in all namespaces; what is not as it should be.

        ``deep`` reads every byte, at most ``rate`` of them a second (0: as fast as it can).
        ``repair`` puts damaged blobs aside and fetches them again, unpacks damaged layers again
        and removes what nothing names.
        """
        with open_session(plain_http=plain_http) as session:
            resolver = Resolver(session) if repair else None
            return examine(self._stores, resolver, deep=deep, rate=rate, tell=tell)

    def images(self) -> list[ImageInfo]:
        """Every stored image, by name."""
        found = self._stores.metadata.images(self._scope).list()
        return [self._image_info(image) for image in found]

    def _image_info(self, image: Image) -> ImageInfo:
        content = self._stores.metadata.content(self._scope)
        try:
            names = {format_platform(p) for p in platforms(content, image.target)}
            bytes_ = size(content, image.target, only(default()))
        except NotFound:
            names, bytes_ = set(), 0
        shown = tuple(sorted(names))
        return ImageInfo(image.name, image.target.digest, bytes_, shown, image.created_at)

    def _image(self, name: str) -> Image:
        images = self._stores.metadata.images(self._scope)
        try:
            return images.get(name)
        except NotFound:
            return images.get(docker_normalize(name))

    def remove_image(self, name: str) -> None:
        """Remove an image's name; what nothing else needs is collected before this returns."""
        self._stores.metadata.images(self._scope).delete(self._image(name).name)
        self._stores.gc.collect_and_wait()

    def run(
        self,
        image: str,
        command: Sequence[str] = (),
        options: Options | None = None,
        *,
        input: bytes | None = None,
        stdout: Sink | None = None,
        stderr: Sink | None = None,
        remove: bool = True,
    ) -> Result:
        """Run ``command`` (or the image's own) in a new container, to its end.

        Output is in the result, or goes to the sinks as it comes. With ``remove`` False the
        container is kept, and its output for ``logs``.
        """
        record, mounts = self._make(image, command, options)
        id, out, err = record.id, bytearray(), bytearray()
        sinks = [stdout or out.extend, stderr or err.extend]
        with contextlib.ExitStack() as undo:
            undo.callback(self.remove, id, force=True)
            with contextlib.ExitStack() as stack:
                if log := None if remove else self._logs.writer(record):
                    stack.callback(log.close, wait=True)
                    sinks = [tee(s, log, name) for s, name in zip(sinks, STREAMS, strict=True)]
                streams = stack.enter_context(Streams(self._fifos, sinks[0], sinks[1], input))
                self.processes.create(id, mounts, streams.stdio)
                code = self.processes.attend(id, streams)
            if not remove:
                undo.pop_all()
        return Result(id, code, bytes(out), bytes(err))

    def start(
        self,
        image: str,
        command: Sequence[str] = (),
        options: Options | None = None,
        *,
        stdio: Stdio | None = None,
    ) -> ContainerInfo:
        """Run ``command`` in a new container in the background.

        Its output is kept for ``logs``, or goes to the FIFOs or URIs of ``stdio``.
        """
        record, mounts = self._make(image, command, options)
        uri = record.labels[LABEL]
        log = uri if is_log(uri) else ""
        try:
            self.processes.create(record.id, mounts, stdio or Stdio(stdout=log, stderr=log))
            self.processes.start(record.id)
        except BaseException:
            self.remove(record.id, force=True)
            raise
        return self.container(record.id)

    def _make(
        self, image: str, command: Sequence[str], options: Options | None
    ) -> tuple[Container, list[Mount]]:
        chosen = options or Options()
        chosen = replace(chosen, name=chosen.name or containers.new_id())
        labels = {LABEL: self._logs.uri(chosen.name, chosen)}
        found = self._image(image)
        return containers.make(self._stores, self._scope, found, command, chosen, labels=labels)

    def exec(
        self,
        id: str,
        command: Sequence[str],
        options: ExecOptions | None = None,
        *,
        input: bytes | None = None,
        stdout: Sink | None = None,
        stderr: Sink | None = None,
    ) -> Result:
        """Run ``command`` in a running container, to its end."""
        out, err = bytearray(), bytearray()
        to_out, to_err = stdout or out.extend, stderr or err.extend
        with Streams(self._fifos, to_out, to_err, input) as streams:
            exec_id = self.begin_exec(id, command, options, stdio=streams.stdio)
            try:
                code = self.processes.attend(id, streams, exec_id)
            except BaseException:
                self.processes.end(id, exec_id)
                raise
            finally:
                self.processes.delete(id, exec_id)
        return Result(id, code, bytes(out), bytes(err))

    def begin_exec(
        self, id: str, command: Sequence[str], options: ExecOptions | None = None, *, stdio: Stdio
    ) -> str:
        """Make a process of a running container for ``processes.start``; its exec id."""
        return self.processes.add(self._record(id), command, options or ExecOptions(), stdio)

    def _record(self, id: str) -> Container:
        return self._stores.metadata.containers(self._scope).get(id)

    def containers(self, *, all: bool = True) -> list[ContainerInfo]:
        """Every container, or those that run."""
        records = self._stores.metadata.containers(self._scope).list()
        tasks = self.processes.list()
        found = [_info(record, tasks.get(record.id)) for record in records]
        return [c for c in found if all or c.status in ("running", "paused")]

    def container(self, id: str) -> ContainerInfo:
        """One container; raises NotFound."""
        record = self._record(id)
        try:
            return _info(record, self.processes.get(id))
        except NotFound:
            return _info(record, None)

    def inspect(self, id: str) -> dict[str, object]:
        """All that is recorded of a container, its OCI spec included."""
        record, info = self._record(id), self.container(id)
        return {
            "id": record.id,
            "image": record.image,
            "status": info.status,
            "pid": info.pid,
            "exit_code": info.exit_code,
            "runtime": record.runtime,
            "snapshotter": record.snapshotter,
            "snapshot_key": record.snapshot_key,
            "labels": dict(record.labels),
            "created_at": record.created_at,
            "log": record.labels.get(LABEL, ""),
            "spec": json.loads(record.spec.value) if record.spec else None,
        }

    def wait(self, id: str, timeout: float | None = None) -> int:
        """Wait for a container's end; its exit code. Raises DeadlineExceeded."""
        return self.processes.wait(id, timeout=timeout)

    def kill(self, id: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a container's first process."""
        self.processes.kill(id, number)

    def ask_to_stop(self, id: str) -> bool:
        """Send a container its image's stop signal; False where it has ended by itself."""
        wanted = self._record(id).labels.get(containers.STOP_SIGNAL_LABEL, "SIGTERM")
        try:
            self.kill(id, signal_number(wanted))
        except NotFound:
            return False
        return True

    def stop(self, id: str, timeout: float = 10.0) -> int:
        """Ask a container to end, make it after ``timeout`` seconds; its exit code."""
        if self.ask_to_stop(id):
            try:
                return self.wait(id, timeout)
            except DeadlineExceeded:
                with contextlib.suppress(NotFound):  # it has ended by itself
                    self.kill(id)
        return self.wait(id)

    def remove(self, id: str, *, force: bool = False) -> None:
        """Remove a container with its files and output; one that runs only with ``force``."""
        record = self._record(id)
        info = self.container(id)
        if info.status in ("running", "paused") and not force:
            raise FailedPrecondition(f"container {id} is {info.status}: stop it, or force this")
        if info.status in LIVE:
            with contextlib.suppress(NotFound):  # it has ended by itself
                self.kill(id)
            self.wait(id)
        if info.status != "none":
            self.processes.delete(id)
        containers.unmake(self._stores, self._scope, record)
        self._logs.remove(id)

    def logs(
        self,
        id: str,
        *,
        follow: bool = False,
        tail: int | None = None,
        since: str = "",
        until: str = "",
        timestamps: bool = False,
        stream: str = "",
    ) -> Iterator[bytes]:
        """What a kept container wrote, both streams or one (``stdout``, ``stderr``), in pieces.

        ``follow`` goes on to its end; ``tail`` gives the last lines; ``since`` and ``until`` are
        times (``2006-01-02T15:04:05Z``) or how long ago (``10m``). Raises NotFound,
        FailedPrecondition where nothing is kept, DataLoss.
        """
        wanted = query(
            follow=follow,
            tail=tail,
            since=since,
            until=until,
            stream=stream,
            ended=lambda: self.container(id).status not in LIVE,
        )
        shown = Shown(timestamps=timestamps)
        return map(shown.text, read(self.log_folder(id), wanted))

    def log_folder(self, id: str) -> str:
        """The folder that ``logs`` reads; raises NotFound, FailedPrecondition."""
        return self._logs.folder(self._record(id))

    def log_writer(self, id: str) -> LogWriter | None:
        """To keep what a container writes to FIFOs of the caller's; None to keep nothing."""
        return self._logs.writer(self._record(id))


def _info(record: Container, task: Process | None) -> ContainerInfo:
    status = Status(task.status).name.lower() if task else "none"
    info = ContainerInfo(
        record.id,
        record.image,
        status,
        task.pid if task else 0,
        task.exit_status if task else 0,
        record.created_at,
        record.labels.get(containers.COMMAND_LABEL, ""),
    )
    return info if status in LIVE else replace(info, pid=0)
