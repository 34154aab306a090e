"""From descriptors and plain objects to gRPC handlers: errors, scopes, and the bridge to threads.

An adapter is a class with one method per rpc, named in snake_case. Methods it lacks answer
Unimplemented with their name, so that every service of the API is registered from the start.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import Executor
from typing import Any, ParamSpec, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError

from kontti.errors import CLASSES, Error, Internal, Unimplemented
from kontti.namespaces import Scope

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]

NAMESPACE_HEADER = "containerd-namespace"
LEASE_HEADER = "containerd-lease"

_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}
STATUS_OF: dict[type[Error], grpc.StatusCode] = {c: _BY_NUMBER[c.code] for c in CLASSES}


class Bridge:
    """Runs the synchronous engine's calls in threads, so that the loop never waits for a disk."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    @staticmethod
    def quick(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """``function(*args, **kwargs)`` here and now: for one look-up in the database.

        Readers of a WAL wait for nobody, and the look-up costs less than going to a thread.
        """
        return function(*args, **kwargs)

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """``function(*args, **kwargs)`` in a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: function(*args, **kwargs))

    async def finish(self, function: Callable[[], object]) -> None:
        """``function()`` in a thread, even where the caller is cancelled: to give back what it has.

        A cancelled call that no thread has begun yet would never be made.
        """
        loop = asyncio.get_running_loop()
        await asyncio.shield(loop.run_in_executor(self._executor, function))


def scope_of(context: Context) -> Scope:
    """The namespace and lease in the caller's headers; FailedPrecondition without a namespace."""
    namespace = lease = ""
    for key, value in context.invocation_metadata() or ():
        if key == NAMESPACE_HEADER:
            namespace = str(value)
        elif key == LEASE_HEADER:
            lease = str(value)
    return Scope.of(namespace, lease)


def handlers(service: ServiceDescriptor, adapter: object) -> grpc.GenericRpcHandler:
    """gRPC's table for one service of the API."""
    table = {m.name: _handler(service, m, adapter) for m in service.methods}
    return grpc.method_handlers_generic_handler(service.full_name, table)


def _handler(service: ServiceDescriptor, method: MethodDescriptor, adapter: object) -> Any:
    name = f"{service.full_name}/{method.name}"
    function = getattr(adapter, snake_case(method.name), None)
    if method.server_streaming:
        behaviour: Any = _streaming(name, function or _missing_stream(name))
    else:
        behaviour = _unary(name, function or _missing(name))
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[method.client_streaming, method.server_streaming]
    request = message_factory.GetMessageClass(method.input_type).FromString
    response = message_factory.GetMessageClass(method.output_type)
    return make(
        behaviour,
        request_deserializer=request if method.client_streaming else _lenient(request),
        response_serializer=cast(Any, response).SerializeToString,
    )


def _lenient(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """What does not parse comes as it is, and the call is answered Internal, as containerd does."""

    def read(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return data

    return read


def snake_case(name: str) -> str:
    """``ListStream`` to ``list_stream``, ``CloseIO`` to ``close_io``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _unary(name: str, function: Callable[[Any, Context], Awaitable[T]]) -> Any:
    async def behaviour(request: Any, context: Context) -> T:
        try:
            _check_parsed(request)
            return await function(request, context)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            await _abort(name, context, error)
            raise

    return behaviour


def _streaming(name: str, function: Callable[[Any, Context], AsyncIterator[T]]) -> Any:
    async def behaviour(request: Any, context: Context) -> AsyncIterator[T]:
        try:
            _check_parsed(request)
            async for item in function(request, context):
                yield item
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except Exception as error:  # noqa: BLE001 every failure becomes a status, never a dropped call
            await _abort(name, context, error)

    return behaviour


def _check_parsed(request: object) -> None:
    if isinstance(request, bytes):
        raise Internal("grpc: error unmarshalling request")


async def _abort(name: str, context: Context, error: Exception) -> None:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if isinstance(error, Error):
        await context.abort(status_of(error), error.message)
    log.error("%s failed", name, exc_info=error)
    await context.abort(grpc.StatusCode.UNKNOWN, str(error) or type(error).__name__)


def status_of(error: Error) -> grpc.StatusCode:
    """The gRPC status of an error, by the one table."""
    return STATUS_OF.get(type(error), _BY_NUMBER[error.code])


def _missing(name: str) -> Callable[[Any, Context], Awaitable[Any]]:
    async def refuse(_request: Any, _context: Context) -> Any:
        raise Unimplemented(f"method {name}")

    return refuse


def _missing_stream(name: str) -> Callable[[Any, Context], AsyncIterator[Any]]:
    async def refuse(_request: Any, _context: Context) -> AsyncIterator[Any]:
        nothing: tuple[Any, ...] = ()
        for item in nothing:
            yield item  # makes this a generator
        raise Unimplemented(f"method {name}")

    return refuse


def batches(items: Iterable[T], size: int) -> Iterable[list[T]]:
    """``items`` in lists of up to ``size``: streamed lists answer in pages."""
    page: list[T] = []
    for item in items:
        page.append(item)
        if len(page) >= size:
            yield page
            page = []
    if page:
        yield page
