"""The Python API: containers in this process, with no daemon."""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import BinaryIO, Self

from kontti.engine import containers
from kontti.engine.core import Core
from kontti.engine.stdio import Streams
from kontti.engine.values import ContainerInfo, ImageInfo, Options, Result, Sink
from kontti.errors import Error, FailedPrecondition, NotFound
from kontti.images.graph import platforms
from kontti.images.image_check import size
from kontti.images.platforms import default, format_platform, only
from kontti.linux.process import signal_number
from kontti.metadata.base import Container, Image
from kontti.namespaces import DEFAULT, Scope
from kontti.registry.hosts import HostOptions, configured
from kontti.registry.reference import docker_normalize
from kontti.registry.resolver import Resolver
from kontti.registry.session import Session
from kontti.tasks.base import CreateOptions, ExecOptions, Process, Status, Stdio
from kontti.transfer.import_ import ImportOptions, import_archive
from kontti.transfer.progress import OnProgress, silent
from kontti.transfer.pull import pull
from kontti.values import AnyValue
from kontti.wire.typeurl import PROCESS_URL

ROOT, STATE = "/var/lib/kontti", "/run/kontti"
FOLLOW_SECONDS = 0.1


class Engine:
    """Images and containers below ``root``; ``state`` holds what a reboot may lose.

    One process owns a root at a time: FailedPrecondition names the one that has it. Containers in
    the background go on when the engine is closed, and are there when it is opened again.
    """

    def __init__(self, root: str = ROOT, state: str = STATE, namespace: str = DEFAULT) -> None:
        self._scope = Scope.of(namespace)
        self._root = root
        self._fifos = os.path.join(state, "fifo")
        self._core = Core(root, state, f"an embedded engine in {os.path.basename(sys.argv[0])}")
        self._stores = self._core.stores
        self._tasks = self._core.tasks

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
        self, name: str, *, plain_http: bool = False, progress: OnProgress = silent
    ) -> ImageInfo:
        """Pull ``name`` (docker's short names too) and unpack it."""
        hosts = configured(HostOptions(plain_http=plain_http, loopback_http=True))
        with Session(hosts) as session:
            pulled = pull(
                self._stores.transfer_parts(),
                self._scope,
                Resolver(session),
                docker_normalize(name),
                progress=progress,
            )
        return self._image_info(pulled.image)

    def import_image(self, source: str | BinaryIO) -> list[ImageInfo]:
        """Store the images of an archive (OCI layout or ``docker save``), a path or open file."""
        if isinstance(source, str):
            with open(source, "rb") as file:
                return self.import_image(file)
        parts = self._stores.transfer_parts()
        options = ImportOptions(prefix="import")
        found = import_archive(parts, self._scope, source.read, options)
        return [self._image_info(image) for image in found.images]

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
        record, mounts = containers.make(
            self._stores, self._scope, self._image(image), command, options or Options()
        )
        out, err = bytearray(), bytearray()
        log = None if remove else open(self._make_log(record.id), "ab", buffering=0)  # noqa: SIM115
        to_out, to_err = (
            _tee(sink or kept.extend, log) for sink, kept in ((stdout, out), (stderr, err))
        )
        try:
            with Streams(self._fifos, to_out, to_err, input) as streams:
                create = CreateOptions(rootfs=mounts, stdio=streams.stdio)
                code = self._run(record.id, create, streams, keep=not remove)
        except BaseException:
            self.remove(record.id, force=True)
            raise
        finally:
            if log is not None:
                log.close()
        if remove:
            self.remove(record.id)
        return Result(record.id, code, bytes(out), bytes(err))

    def _run(self, id: str, create: CreateOptions, streams: Streams, *, keep: bool) -> int:
        wait = self._core.wait_for
        wait(self._tasks.create(self._scope, id, create))
        streams.on_input_end = lambda _: wait(self._tasks.close_io(self._scope, id, "", True))
        wait(self._tasks.start(self._scope, id))
        ended = wait(self._tasks.wait(self._scope, id), None)
        streams.finish()
        if not keep:
            wait(self._tasks.delete(self._scope, id))
        return ended.status

    def start(
        self, image: str, command: Sequence[str] = (), options: Options | None = None
    ) -> ContainerInfo:
        """Run ``command`` in a new container in the background; its output is kept for ``logs``."""
        record, mounts = containers.make(
            self._stores, self._scope, self._image(image), command, options or Options()
        )
        uri = f"file://{self._make_log(record.id)}"
        create = CreateOptions(rootfs=mounts, stdio=Stdio(stdout=uri, stderr=uri))
        try:
            self._core.wait_for(self._tasks.create(self._scope, record.id, create))
            self._core.wait_for(self._tasks.start(self._scope, record.id))
        except BaseException:
            self.remove(record.id, force=True)
            raise
        return self.container(record.id)

    def exec(self, id: str, command: Sequence[str], *, input: bytes | None = None) -> Result:
        """Run ``command`` in a running container, to its end."""
        record = self._record(id)
        spec = json.loads(record.spec.value)["process"] if record.spec else {}
        process = {**spec, "args": list(command), "terminal": False}
        exec_id = secrets.token_hex(6)
        out, err = bytearray(), bytearray()
        wait, tasks, scope = self._core.wait_for, self._tasks, self._scope
        with Streams(self._fifos, out.extend, err.extend, input) as streams:
            asked = ExecOptions(
                exec_id, AnyValue(PROCESS_URL, json.dumps(process).encode()), streams.stdio
            )
            wait(tasks.exec(scope, id, asked))
            try:
                streams.on_input_end = lambda _: wait(tasks.close_io(scope, id, exec_id, True))
                wait(tasks.start(scope, id, exec_id))
                ended = wait(tasks.wait(scope, id, exec_id), None)
                streams.finish()
            finally:
                wait(tasks.delete_process(scope, id, exec_id))
        return Result(id, ended.status, bytes(out), bytes(err))

    def _record(self, id: str) -> Container:
        return self._stores.metadata.containers(self._scope).get(id)

    def containers(self, *, all: bool = True) -> list[ContainerInfo]:
        """Every container, or those that run."""
        records = self._stores.metadata.containers(self._scope).list()
        tasks = {t.container_id: t for t in self._core.wait_for(self._tasks.list(self._scope))}
        found = [_info(record, tasks.get(record.id)) for record in records]
        return [c for c in found if all or c.status in ("running", "paused")]

    def container(self, id: str) -> ContainerInfo:
        """One container; raises NotFound."""
        record = self._record(id)
        try:
            task = self._core.wait_for(self._tasks.get(self._scope, id))
        except NotFound:
            return _info(record, None)
        return _info(record, task)

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
            "spec": json.loads(record.spec.value) if record.spec else None,
        }

    def wait(self, id: str) -> int:
        """Wait for a container's end; its exit code."""
        return self._core.wait_for(self._tasks.wait(self._scope, id), None).status

    def kill(self, id: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a container's first process."""
        self._core.wait_for(self._tasks.kill(self._scope, id, number))

    def stop(self, id: str, timeout: float = 10.0) -> int:
        """Ask a container to end, make it after ``timeout`` seconds; its exit code."""
        record = self._record(id)
        wanted = record.labels.get(containers.STOP_SIGNAL_LABEL, "SIGTERM")
        try:
            self.kill(id, signal_number(wanted))
            return self._core.wait_for(self._tasks.wait(self._scope, id), timeout).status
        except Error as error:
            if not isinstance(error, NotFound):
                self.kill(id)
            return self.wait(id)

    def remove(self, id: str, *, force: bool = False) -> None:
        """Remove a container with its files and output; one that runs only with ``force``."""
        record = self._record(id)
        info = self.container(id)
        if info.status in ("running", "paused") and not force:
            raise FailedPrecondition(f"container {id} is {info.status}: stop it, or force this")
        if info.status in ("running", "paused", "created"):
            self.kill(id)
            self.wait(id)
        if info.status != "none":
            self._core.wait_for(self._tasks.delete(self._scope, id))
        containers.unmake(self._stores, self._scope, record)
        if os.path.exists(self._log(id)):
            os.unlink(self._log(id))

    def logs(self, id: str, *, follow: bool = False, tail: int | None = None) -> Iterator[bytes]:
        """What a kept container wrote, stdout and stderr in one; ``follow`` goes on to its end."""
        self._record(id)
        if not os.path.exists(self._log(id)):
            raise NotFound(f"output of container {id}")
        with open(self._log(id), "rb") as file:
            if tail is not None:
                lines = file.read().splitlines(keepends=True)
                yield b"".join(lines[-tail:] if tail else [])
            while True:
                over = not follow or self.container(id).status not in ("running", "paused")
                while data := file.read(1 << 16):
                    yield data
                if over:
                    return
                time.sleep(FOLLOW_SECONDS)

    def _log(self, id: str) -> str:
        return os.path.join(self._root, "logs", self._scope.namespace, f"{id}.log")

    def _make_log(self, id: str) -> str:
        path = self._log(id)
        os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
        return path


def _tee(sink: Sink, log: BinaryIO | None) -> Sink:
    if log is None:
        return sink

    def both(data: bytes) -> None:
        log.write(data)
        sink(data)

    return both


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
    return info if status in ("running", "paused", "created") else replace(info, pid=0)
