"""containerd.services.transfer.v1.Transfer."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from google.protobuf.any_pb2 import Any as ProtoAny
from google.protobuf.empty_pb2 import Empty

from kontti.api.services.transfer.v1 import transfer_pb2 as pb
from kontti.client.convert import descriptor_to_wire
from kontti.errors import Error, Unimplemented
from kontti.namespaces import Scope
from kontti.services.outbox import Outbox
from kontti.services.rpc import Bridge, Context, scope_of
from kontti.services.transfer_ends import Cancel, Ends
from kontti.streaming.base import Stream, Streams
from kontti.streaming.bytes import ByteWriter, pack
from kontti.transfer.ends import NoSuchTransfer
from kontti.transfer.local import LocalTransfers
from kontti.transfer.progress import OnProgress, Progress, silent
from kontti.values import AnyValue
from kontti.wire.messages.types.transfer import progress as wire
from kontti.wire.messages.types.transfer.registry import OCIRegistry
from kontti.wire.typeurl import name_of

log = logging.getLogger(__name__)
DRAIN_SECONDS = 10.0
GRACE_SECONDS = 0.02
"""Go's clients leave as soon as they are answered: a moment for what they are still writing."""


@dataclass(frozen=True, slots=True)
class Transfers:
    """What does transfers, and where registries are configured."""

    local: LocalTransfers
    directories: tuple[str, ...] = ()


class TransferService:
    """Adapts ``transfers``; ``bridge`` has threads for them alone, as each takes its time."""

    def __init__(self, transfers: Transfers, streams: Streams, bridge: Bridge) -> None:
        self._transfers, self._streams, self._bridge = transfers, streams, bridge

    async def transfer(self, request: pb.TransferRequest, context: Context) -> Empty:
        scope = scope_of(context)
        async with contextlib.AsyncExitStack() as stack:
            progress: OnProgress = silent
            if name := request.options.progress_stream:
                stream = self._streams.get(scope, name)
                progress = await stack.enter_async_context(telling(stream))
            ends = await stack.enter_async_context(self._ends(request, scope))
            await self._run(ends, request, progress)
        return Empty()

    async def _run(self, ends: Ends, request: pb.TransferRequest, progress: OnProgress) -> None:
        """In a thread; it is over when this is, unless it was cancelled: then it ends soon."""
        cancel = ends.cancel

        def tell(found: Progress) -> None:
            cancel.check()
            progress(found)

        def work() -> None:
            with ends.closing:
                cancel.check()
                source, destination = ends.of(_value(request.source)), _value(request.destination)
                self._transfers.local.run(ends.scope, source, ends.of(destination), tell)

        try:
            await self._bridge.call(work)
        except NoSuchTransfer as error:
            names = f"{request.source.type_url:.200} to {request.destination.type_url:.200}"
            raise Unimplemented(f"method Transfer not implemented for {names}") from error
        finally:
            cancel.set()

    @contextlib.asynccontextmanager
    async def _ends(self, request: pb.TransferRequest, scope: Scope) -> AsyncIterator[Ends]:
        """What makes the ends; streams that it took are at their end after the block."""
        taken = _Taken(self._streams)
        async with contextlib.AsyncExitStack() as stack:
            tell: Callable[[str], None] = log.info
            if name := _logs_stream(request):
                tell = await stack.enter_async_context(writing(taken.get(scope, name)))
            loop = asyncio.get_running_loop()
            yield Ends(taken, scope, loop, Cancel(), self._transfers.directories, tell)
            await taken.drained()


class _Taken:
    """Streams, remembered."""

    def __init__(self, streams: Streams) -> None:
        self._streams, self._taken = streams, list[Stream]()

    def register(self, scope: Scope, id: str, stream: Stream) -> None:
        """Streams.register."""
        self._streams.register(scope, id, stream)

    def get(self, scope: Scope, id: str) -> Stream:
        """Streams.get."""
        stream = self._streams.get(scope, id)
        self._taken.append(stream)
        return stream

    async def drained(self) -> None:
        """What was written is on its way before the call is answered."""
        if not self._taken:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                for stream in self._taken:
                    await stream.drained()
                await asyncio.sleep(GRACE_SECONDS)


@contextlib.asynccontextmanager
async def telling(stream: Stream) -> AsyncIterator[OnProgress]:
    """Sends progress: the newest of each step of each object, none while the client reads none."""

    def post(progress: Progress) -> None:
        outbox.post(f"{progress.event} {progress.name}", message_of(progress))

    outbox = Outbox(stream.send)
    try:
        async with outbox.sending():
            yield post
    finally:
        stream.close()
        await _soon(stream)


@contextlib.asynccontextmanager
async def writing(stream: Stream) -> AsyncIterator[Callable[[str], None]]:
    """Sends lines of text as bytes; the oldest are dropped where the client reads none."""
    writer, numbers = ByteWriter(stream), itertools.count()
    outbox = Outbox(writer.write, pause=0)
    try:
        async with outbox.sending():
            yield lambda text: outbox.post(str(next(numbers)), f"{text}\n".encode())
    finally:
        await writer.close()


async def _soon(stream: Stream) -> None:
    with contextlib.suppress(TimeoutError, Error):
        async with asyncio.timeout(1.0):
            await stream.drained()


def message_of(progress: Progress) -> AnyValue:
    """Progress as clients read it."""
    target = progress.descriptor
    return pack(
        wire.Progress(
            event=progress.event,
            name=progress.name,
            parents=progress.parents,
            progress=progress.progress,
            total=progress.total,
            desc=None if target is None else descriptor_to_wire(target),
        )
    )


def _logs_stream(request: pb.TransferRequest) -> str:
    for packed in (request.source, request.destination):
        if name_of(packed.type_url) == OCIRegistry.NAME:
            resolver = OCIRegistry.decode(packed.value).resolver
            if resolver is not None and resolver.http_debug:
                return resolver.logs_stream
    return ""


def _value(message: ProtoAny) -> AnyValue:
    return AnyValue(message.type_url, message.value)
