"""A blocking gRPC client over a unix socket, on the sans-IO codec: quick to start, small.

One connection serves many calls, from many threads. Whoever waits reads the socket for everybody;
so a ``Tasks.Wait`` in one thread does not hold up another thread's calls.
"""

from __future__ import annotations

import select
import socket
import threading
import time

from kontti.errors import Canceled, DeadlineExceeded, Error, Unavailable
from kontti.wire.grpc import CallEnded, ClientConnection, MessageReceived

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self, TypeVar

    from kontti.wire.protobuf import Message

    M = TypeVar("M", bound=Message)

CALL_SECONDS = 300.0
"""The deadline of a call that names none, and does not wait for something by its nature."""
READ_SIZE = 256 << 10
RETRY_SECONDS = 0.01
NAMESPACE_HEADER = "containerd-namespace"
LEASE_HEADER = "containerd-lease"
FOREVER = float("inf")
FORGET_SECONDS = 1.0
LATE = "the daemon did not answer in time"
HINT = "; is containerd running?"


class _Call:
    """What has arrived for one call."""

    __slots__ = ("ended", "error", "messages")

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.ended = False
        self.error: Error | None = None


class Client:
    """A connection to the daemon at ``address``; ``namespace`` and ``lease`` go with each call.

    Times in seconds; ``timeout`` is for all calls together, ``late`` what to say of one that was
    not answered in its time.
    Raises Unavailable where nobody listens.
    """

    def __init__(
        self,
        address: str,
        *,
        namespace: str = "default",
        lease: str = "",
        connect_timeout: float = 10.0,
        timeout: float | None = None,
        late: str = LATE,
    ) -> None:
        self.address = address
        self.namespace = namespace
        self.lease = lease
        self._late = late
        self._until = FOREVER if timeout is None else time.monotonic() + timeout
        self._socket = _connect(address, connect_timeout)
        self._connection = ClientConnection()
        self._calls: dict[int, _Call] = {}
        # guards connection and calls; the reader lets go of it while it waits for the socket
        self._state = threading.Condition()
        self._reading = False
        self._failure: Error | None = None
        self._send_lock = threading.Lock()

    def unary(
        self,
        method: str,
        request: Message,
        response: type[M],
        *,
        timeout: float | None = None,
        namespace: str | None = None,
    ) -> M:
        """One call with one answer; raises the error that the daemon answers.

        ``timeout`` in seconds; FOREVER for a call that waits for something by its nature.
        """
        deadline = self._deadline(timeout)
        stream = self._start(method, namespace)
        try:
            self._send(stream, request.encode(), deadline, end=True)
            data = self._receive(stream, deadline)
            if data is None:
                raise Unavailable(f"{method} answered nothing")
            message = response.decode(data)
            # the status comes after the message, and it is the status that counts
            self._receive(stream, deadline)
        finally:
            self._forget(stream)
        return message

    def stream(
        self, method: str, request: Message, response: type[M], *, timeout: float = FOREVER
    ) -> Iterator[M]:
        """One call with many answers, as they come."""
        deadline = self._deadline(timeout)
        stream = self._start(method, None)
        try:
            self._send(stream, request.encode(), deadline, end=True)
            while (data := self._receive(stream, deadline)) is not None:
                yield response.decode(data)
        finally:
            self._forget(stream)

    def duplex(self, method: str) -> Duplex:
        """A call with many requests and many answers."""
        return Duplex(self, self._start(method, None))

    def with_lease(self, lease: str) -> _Leased:
        """``with client.with_lease(id):`` calls inside name that lease."""
        return _Leased(self, lease)

    @property
    def lost(self) -> bool:
        """Whether the daemon hung up, as far as can be told without asking it anything."""
        with self._state:
            if self._failure is not None:
                return True
        poller = select.poll()
        try:
            poller.register(self._socket, select.POLLHUP | select.POLLRDHUP)
        except ValueError:
            return True
        return bool(poller.poll(0))

    def close(self) -> None:
        """Hang up; calls under way end with Unavailable."""
        with self._state:
            self._failure = self._failure or Canceled("client is closed")
            self._state.notify_all()
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def _left(self, deadline: float) -> float | None:
        """Seconds to the deadline, None for never; raises DeadlineExceeded."""
        if deadline == FOREVER:
            return None
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(self._late)
        return left

    def _deadline(self, timeout: float | None) -> float:
        seconds = CALL_SECONDS if timeout is None else timeout
        return min(time.monotonic() + seconds, self._until)

    def _start(self, method: str, namespace: str | None) -> int:
        headers = [(NAMESPACE_HEADER, self.namespace if namespace is None else namespace)]
        if self.lease:
            headers.append((LEASE_HEADER, self.lease))
        with self._state:
            self._check()
            stream = self._connection.start_call("/" + method, headers)
            self._calls[stream] = _Call()
        return stream

    def _send(self, stream: int, data: bytes, deadline: float, *, end: bool) -> None:
        with self._state:
            self._check()
            self._connection.send_message(stream, data, end=end)
        self._flush(deadline)

    def _end(self, stream: int) -> None:
        with self._state:
            self._check()
            self._connection.end(stream)
        self._flush(self._deadline(None))

    def _flush(self, deadline: float) -> None:
        """Write what the connection wants written; one thread at a time, in order."""
        with self._send_lock:
            with self._state:
                data = self._connection.data_to_send()
            try:
                self._write(memoryview(data), deadline)
            except OSError as error:
                # what the daemon said before it hung up can still be read
                raise Unavailable(f"connection to {self.address}: {error}") from error
            except Error as error:
                # what was written in part only cannot be gone on with
                failure = Unavailable(f"connection to {self.address}: {error}")
                with self._state:
                    self._failure = self._failure or failure
                    self._state.notify_all()
                raise failure from error

    def _write(self, data: memoryview, deadline: float) -> None:
        while data:
            try:
                data = data[self._socket.send(data) :]
            except BlockingIOError:
                self._wait_for(select.POLLOUT, deadline)

    def _wait_for(self, event: int, deadline: float) -> None:
        """Until the socket can be read or written; raises DeadlineExceeded."""
        left = self._left(deadline)
        poller = select.poll()
        try:
            poller.register(self._socket, event)
        except ValueError:
            raise Unavailable("client is closed") from None
        if not poller.poll(None if left is None else max(1, int(left * 1000))):
            raise DeadlineExceeded(self._late)

    def _drain(self, stream: int, deadline: float) -> None:
        """Until the peer's window has let all of a call's messages go, or the call has ended."""
        call = self._calls[stream]
        self._read_until(lambda: call.ended or not self._connection.pending(stream), deadline)

    def _receive(self, stream: int, deadline: float) -> bytes | None:
        """The next message of a call, None at its end; raises its error, DeadlineExceeded."""
        call = self._calls[stream]
        self._read_until(lambda: bool(call.messages) or call.ended, deadline)
        with self._state:
            if call.messages:
                return call.messages.pop(0)
        if call.error is not None:
            raise call.error
        return None

    def _read_until(self, done: Callable[[], bool], deadline: float) -> None:
        """Have the socket read, by us or by who reads it already, until ``done``."""
        while True:
            with self._state:
                if done():
                    return
                self._check()
                if self._reading:
                    self._state.wait(self._left(deadline))
                    continue
                self._reading = True
            self._read(deadline)

    def _read(self, deadline: float) -> None:
        """Read the socket once for everybody, and hand out what came."""
        data = b""
        failure: Error | None = None
        try:
            self._wait_for(select.POLLIN, deadline)
            data = self._socket.recv(READ_SIZE)
            if not data:
                failure = Unavailable(f"connection to {self.address} is closed")
        except OSError as error:
            failure = Unavailable(f"connection to {self.address}: {error}")
        finally:
            with self._state:
                self._reading = False
                failure = failure or self._dispatch(data)
                self._failure = self._failure or failure
                self._state.notify_all()
        try:
            self._flush(deadline)
        except Unavailable:
            return  # reading on will tell

    def _dispatch(self, data: bytes) -> Error | None:
        """Hand out what ``data`` brings; the error where the peer breaks the protocol."""
        try:
            events = self._connection.receive(data)
        except Error as error:
            return error
        for event in events:
            call = self._calls.get(event.stream_id)
            if call is None:
                continue
            if isinstance(event, MessageReceived):
                call.messages.append(event.data)
            elif isinstance(event, CallEnded):
                call.ended, call.error = True, event.error
        return None

    def _forget(self, stream: int) -> None:
        with self._state:
            call = self._calls.pop(stream, None)
            if call is None or call.ended or self._failure is not None:
                return
            self._connection.cancel(stream)
        try:
            self._flush(time.monotonic() + FORGET_SECONDS)
        except Unavailable:
            return

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure


class Duplex:
    """Both sides send. One thread at a time."""

    def __init__(self, client: Client, stream: int) -> None:
        self._client = client
        self._stream = stream

    def send(self, request: Message, *, end: bool = False) -> None:
        """Send a message; waits where the daemon's window is full."""
        deadline = self._client._deadline(None)  # noqa: SLF001 its other half
        self._client._send(self._stream, request.encode(), deadline, end=end)  # noqa: SLF001
        self._client._drain(self._stream, deadline)  # noqa: SLF001

    def end(self) -> None:
        """Send no more messages."""
        self._client._end(self._stream)  # noqa: SLF001

    def receive(self, response: type[M], *, timeout: float = CALL_SECONDS) -> M | None:
        """The next answer, or None at the end; raises the error that ended the call."""
        deadline = self._client._deadline(timeout)  # noqa: SLF001
        data = self._client._receive(self._stream, deadline)  # noqa: SLF001
        return None if data is None else response.decode(data)

    def close(self) -> None:
        """End the call."""
        self._client._forget(self._stream)  # noqa: SLF001


class _Leased:
    def __init__(self, client: Client, lease: str) -> None:
        self._client = client
        self._lease = lease
        self._before = client.lease

    def __enter__(self) -> None:
        self._client.lease = self._lease

    def __exit__(self, *_: object) -> None:
        self._client.lease = self._before


def _connect(address: str, timeout: float) -> socket.socket:
    path = address.removeprefix("unix://")
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        _dial(found, path, time.monotonic() + timeout)
    except OSError as error:
        found.close()
        problem = f'failed to dial "{path}": {error.strerror or error}{HINT}'
        raise Unavailable(problem) from error
    found.setblocking(False)
    return found


def _dial(client: socket.socket, path: str, deadline: float) -> None:
    client.setblocking(False)
    while True:
        try:
            return client.connect(path)
        except BlockingIOError:
            # more clients wait to be accepted than the daemon lets wait (connect(2), EAGAIN)
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY_SECONDS)
