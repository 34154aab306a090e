"""A client of the Transfer service: one transfer, and the streams that it names.

Each stream is served by a thread of its own, as the daemon asks and tells while the call waits.
"""

from __future__ import annotations

import secrets
import threading

from kontti.client.client import FOREVER, Client, Duplex
from kontti.errors import Canceled, DeadlineExceeded, Error, InvalidArgument, Unavailable
from kontti.wire.messages.google import Any, Empty
from kontti.wire.messages.services.streaming.v1.streaming import StreamInit
from kontti.wire.messages.services.transfer.v1.transfer import TransferOptions, TransferRequest
from kontti.wire.messages.types.transfer.progress import Progress
from kontti.wire.messages.types.transfer.registry import AuthRequest, AuthResponse
from kontti.wire.messages.types.transfer.streaming import Data, WindowUpdate
from kontti.wire.typeurl import name_of, pack, unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kontti.wire.protobuf import Message

STREAM = "containerd.services.streaming.v1.Streaming/Stream"
TRANSFER = "containerd.services.transfer.v1.Transfer/Transfer"
CHUNK = 32 << 10
WINDOW = 2 * CHUNK
OPEN_SECONDS = 30.0
LAST_SECONDS = 60.0


class Transfer:
    """One transfer over ``client``, which hangs up after it."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._awaited: list[_Pump] = []
        self._pumps: list[_Pump] = []

    def progress(self, tell: Callable[[Progress], object]) -> str:
        """A stream that progress comes on. Raises Unimplemented where there is no such service."""

        def serve(stream: Duplex) -> None:
            while (message := stream.receive(Any, timeout=FOREVER)) is not None:
                tell(unpack(message, Progress))

        return self._serve("progress", serve, awaited=True)

    def credentials(self, answer: Callable[[str], AuthResponse]) -> str:
        """A stream that asks who the user is to a host."""

        def serve(stream: Duplex) -> None:
            while (message := stream.receive(Any, timeout=FOREVER)) is not None:
                stream.send(pack(answer(unpack(message, AuthRequest).host)))

        return self._serve("creds", serve)

    def source(self, read: Callable[[int], bytes]) -> str:
        """A stream that the daemon reads what ``read(count)`` gives from."""

        def serve(stream: Duplex) -> None:
            window = 0
            while data := read(CHUNK):
                while data:
                    while window <= 0:
                        window += _update(stream)
                    piece, data = data[:window], data[window:]
                    stream.send(pack(Data(data=piece)))
                    window -= len(piece)
            stream.end()
            # hanging up before the daemon has read it all would take the rest away
            while stream.receive(Any, timeout=FOREVER) is not None:
                pass

        return self._serve("import", serve)

    def sink(self, write: Callable[[bytes], object], kind: str = "export") -> str:
        """A stream whose bytes ``write`` is called with."""

        def serve(stream: Duplex) -> None:
            window = 0
            while True:
                if window < WINDOW:
                    stream.send(pack(WindowUpdate(update=WINDOW)))
                    window += WINDOW
                message = stream.receive(Any, timeout=FOREVER)
                if message is None:
                    return
                data = unpack(message, Data).data
                write(data)
                window -= len(data)

        return self._serve(kind, serve, awaited=True)

    def run(self, source: Message, destination: Message, progress: str = "") -> None:
        """Have it done; raises what made it fail, on this side or on the other."""
        request = TransferRequest(
            source=pack(source),
            destination=pack(destination),
            options=TransferOptions(progress_stream=progress),
        )
        try:
            self._client.unary(TRANSFER, request, Empty, timeout=FOREVER)
        except Error:
            self._raise_ours()
            raise
        for pump in self._awaited:
            pump.join(LAST_SECONDS)
            if pump.is_alive():
                raise DeadlineExceeded("the daemon has not ended its streams")
        self._raise_ours()

    def _raise_ours(self) -> None:
        """What failed here comes first: the daemon has only seen a stream break off."""
        for pump in self._pumps:
            if pump.failure is not None:
                raise pump.failure

    def _serve(self, kind: str, serve: Callable[[Duplex], None], *, awaited: bool = False) -> str:
        id = f"{kind}-{secrets.token_urlsafe(12)}"
        stream = self._client.duplex(STREAM)
        stream.send(pack(StreamInit(id=id)))
        first = stream.receive(Any, timeout=OPEN_SECONDS)
        if first is None or name_of(first.type_url) != Empty.NAME:
            raise InvalidArgument("the daemon has not registered a stream")
        pump = _Pump(stream, serve)
        self._pumps.append(pump)
        if awaited:
            self._awaited.append(pump)
        pump.start()
        return id


def _update(stream: Duplex) -> int:
    message = stream.receive(Any, timeout=FOREVER)
    if message is None:
        raise Canceled("the daemon reads no more")
    return unpack(message, WindowUpdate).update


class _Pump(threading.Thread):
    """Serves a stream to its end. ``failure`` is what went wrong on this side."""

    def __init__(self, stream: Duplex, serve: Callable[[Duplex], None]) -> None:
        super().__init__(name="stream", daemon=True)
        self.failure: Exception | None = None
        self._stream, self._serve = stream, serve

    def run(self) -> None:
        """Thread.run."""
        try:
            self._serve(self._stream)
        except (Canceled, Unavailable):
            return  # the call itself tells why
        except Exception as error:  # noqa: BLE001 told by who waits for the transfer
            self.failure = error
        try:
            self._stream.close()
        except Error:
            return
