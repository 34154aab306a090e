"""A blocking ttrpc client: one call on a connection of its own. Imports nothing slow."""

from __future__ import annotations

import select
import socket
import time

from kontti.errors import DeadlineExceeded, Internal, InvalidArgument, Unavailable
from kontti.wire.ttrpc import NAMESPACE_KEY, ClientStreams, Decoder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    from kontti.wire.protobuf import Message
    from kontti.wire.ttrpc import Response

    M = TypeVar("M", bound=Message)

READ_SIZE = 64 << 10
RETRY_SECONDS = 0.01
FOREVER = float("inf")
CLOSED = "ttrpc: closed"


def connect(address: str, timeout: float) -> socket.socket:
    """A connection to the unix socket at ``address``: a path, or one behind a NUL byte.

    Raises Unavailable where nobody listens, DeadlineExceeded where nobody accepts in ``timeout``
    seconds.
    """
    deadline, shown = time.monotonic() + timeout, address.replace("\0", "@")
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    found.setblocking(False)
    try:
        while not _connected(found, address):
            # its queue is full, and nothing was begun (connect(2), EAGAIN)
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"shim at {shown} did not accept in {timeout:g} s")
            time.sleep(RETRY_SECONDS)
    except BaseException:
        found.close()
        raise
    return found


def _connected(client: socket.socket, address: str) -> bool:
    try:
        client.connect(address)
    except BlockingIOError:
        return False
    except (OSError, ValueError) as error:
        raise Unavailable(f"shim at {address}: {error}") from None
    return True


def call(
    peer: socket.socket,
    namespace: str,
    method: str,
    request: Message,
    response: type[M],
    timeout: float,
) -> M:
    """Call ``package.Service/Method`` on a connection that has no other call.

    ``timeout`` in seconds, FOREVER for a call that waits for something by its nature. Raises what
    the peer answers, DeadlineExceeded, Unavailable where the connection breaks.
    """
    streams = ClientStreams()
    nanos = 0 if timeout == FOREVER else int(timeout * 1e9)
    _, frame = streams.call(method, request.encode(), {NAMESPACE_KEY: namespace}, nanos)
    poller, deadline = select.poll(), time.monotonic() + timeout
    try:
        _send(peer, poller, frame, deadline)
        payload = _receive(peer, poller, streams, deadline).result()
    except TimeoutError:
        raise DeadlineExceeded(f"{method} was not answered in {timeout:g} s") from None
    except OSError as error:
        raise Unavailable(f"ttrpc: {error}") from None
    try:
        return response.decode(payload)
    except InvalidArgument as error:
        # the caller's argument was right; it is the answer that is not
        raise Internal(f"{method} was answered with garbage: {error.message}") from None


def _send(peer: socket.socket, poller: select.poll, data: bytes, deadline: float) -> None:
    while data:
        _wait(peer, poller, select.POLLOUT, deadline)
        data = data[peer.send(data) :]


def _receive(
    peer: socket.socket, poller: select.poll, streams: ClientStreams, deadline: float
) -> Response:
    decoder = Decoder()
    while True:
        _wait(peer, poller, select.POLLIN, deadline)
        data = peer.recv(READ_SIZE)
        if not data:
            raise Unavailable(CLOSED)
        try:
            answers = [streams.answer(frame) for frame in decoder.feed(data)]
        except InvalidArgument as error:
            raise Internal(f"ttrpc: {error.message}") from None
        for answer in answers:
            if answer is not None:
                return answer


def _wait(peer: socket.socket, poller: select.poll, event: int, deadline: float) -> None:
    poller.register(peer, event)
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    if not poller.poll(None if deadline == FOREVER else max(1, int(left * 1000))):
        raise TimeoutError
