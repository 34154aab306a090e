"""What containers wrote: where it is kept, and how it goes with them."""

from __future__ import annotations

import os
from collections.abc import Callable, Set

from kontti.engine.values import Options, Sink
from kontti.errors import FailedPrecondition, InvalidArgument, NotFound
from kontti.events.base import Envelope, Exchange
from kontti.logs import times
from kontti.logs.reader import Query
from kontti.metadata.base import Container, Containers
from kontti.namespaces import Scope
from kontti.shim import log_files
from kontti.shim.log_writer import LogWriter
from kontti.values import check_identifier
from kontti.wire import log_uri
from kontti.wire.log_record import STREAMS
from kontti.wire.log_uri import Limits
from kontti.wire.messages.events.container import ContainerDelete


class Logs:
    """The logs of one namespace's containers below ``root``: a folder each."""

    def __init__(self, root: str, scope: Scope) -> None:
        self._folder = os.path.join(root, log_uri.FOLDER, scope.namespace)

    def path(self, id: str) -> str:
        """The folder of a container."""
        check_identifier(id, "container id")
        return os.path.join(self._folder, id)

    def uri(self, id: str, chosen: Options) -> str:
        """Where the output of a new container is to go, "none" for nowhere.

        Raises InvalidArgument.
        """
        if chosen.log_driver not in log_uri.DRIVERS:
            known = " and ".join(log_uri.DRIVERS)
            raise InvalidArgument(f"log driver {chosen.log_driver!r:.40}: {known} are known")
        limits = Limits().changed(chosen.log_options)
        if chosen.log_driver == log_uri.NONE:
            return log_uri.NONE
        return log_uri.make(self.path(id), limits.options())

    def writer(self, record: Container) -> LogWriter | None:
        """To keep the output of a container that we are the console of; None to keep none."""
        uri = record.labels.get(log_uri.LABEL, "")
        return LogWriter(*log_uri.parse(uri)) if log_uri.is_log(uri) else None

    def folder(self, record: Container) -> str:
        """Where a container's output is to be read; raises FailedPrecondition, NotFound."""
        uri = record.labels.get(log_uri.LABEL, "")
        if uri == log_uri.NONE:
            raise FailedPrecondition(
                f"container {record.id} was made with the log driver none: its output is not kept"
            )
        folder = (log_uri.folder_of(uri) if uri else "") or self.path(record.id)
        if not os.path.isdir(folder):
            raise NotFound(f"output of container {record.id}")
        return folder

    def remove(self, id: str) -> None:
        """Remove what a container wrote, if there is anything."""
        log_files.remove_all(self.path(id))


def query(
    *,
    follow: bool = False,
    tail: int | None = None,
    since: str = "",
    until: str = "",
    stream: str = "",
    ended: Callable[[], bool] = lambda: False,
) -> Query:
    """What is wanted of a log, as users say it; raises InvalidArgument."""
    if stream and stream.encode() not in STREAMS:
        raise InvalidArgument(f"stream {stream!r:.20} is neither stdout nor stderr")
    return Query(
        follow=follow,
        tail=max(0, tail) if tail is not None else None,
        since=times.stamp(since),
        until=times.stamp(until),
        streams=(stream.encode(),) if stream else STREAMS,
        ended=ended,
    )


def tee(sink: Sink, log: LogWriter, stream: bytes) -> Sink:
    """A sink that keeps what it gets as well."""

    def both(data: bytes) -> None:
        log.write(stream, data)
        sink(data)

    return both


class LogKeeper:
    """Has the log of every container that is deleted go with it, whoever deletes it."""

    def __init__(
        self, root: str, containers: Callable[[Scope], Containers], exchange: Exchange
    ) -> None:
        self._root, self._containers = root, containers
        self._subscription = exchange.subscribe(["topic==/containers/delete"], self._deleted)

    def _deleted(self, envelope: Envelope) -> None:
        id = ContainerDelete.decode(envelope.event.value).id
        Logs(self._root, Scope.of(envelope.namespace)).remove(id)

    def sweep(self) -> None:
        """Remove the logs of containers that are no more: a crash may have left them.

        A namespace without any container is left alone: the records may be what is lost.
        """
        for namespace in _names(os.path.join(self._root, log_uri.FOLDER)):
            try:
                scope = Scope.of(namespace)
            except InvalidArgument:
                continue  # somebody else's folder
            known = {container.id for container in self._containers(scope).list()}
            if known:
                self._sweep(scope, known)

    def _sweep(self, scope: Scope, known: Set[str]) -> None:
        top = os.path.join(self._root, log_uri.FOLDER, scope.namespace)
        for id in _names(top):
            folder = os.path.join(top, id)
            if id not in known and os.path.isdir(folder) and not log_files.written_to(folder):
                log_files.remove_all(folder)

    def close(self) -> None:
        """Hear no more."""
        self._subscription.close()


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
