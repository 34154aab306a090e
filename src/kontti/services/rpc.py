"""From descriptors and plain objects to gRPC methods: scopes, and the bridge to threads.

An adapter is a class with one method per rpc, named in snake_case: a plain one where it answers
at once, a coroutine where it waits for something, an async generator where it streams. A plain one
of an rpc that streams gives its only answer, or an async generator of all. Methods it lacks answer
Unimplemented with their name, so that every service is there from the start.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, ParamSpec, Protocol, TypeVar, cast

from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from kontti.errors import Unimplemented
from kontti.namespaces import Scope

P = ParamSpec("P")
T = TypeVar("T")

NAMESPACE_HEADER = "containerd-namespace"
LEASE_HEADER = "containerd-lease"


class Context(Protocol):
    """What an adapter knows of a call beside its request."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """The caller's headers, by name."""

    def start(self) -> None:
        """Send the headers of the answer, before there is any."""


@dataclass(frozen=True, slots=True)
class Method:
    """An rpc. ``function`` takes the request, or an iterator of them, and a context.

    A ``quick`` one gives its answer at once, or what gives it later; others are to be awaited or
    iterated over.
    """

    name: str
    client_streaming: bool
    server_streaming: bool
    quick: bool
    parse: Callable[[bytes], Any]
    serialize: Callable[[Any], bytes]
    function: Callable[[Any, Context], Any]


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
    metadata = context.metadata
    return Scope.of(metadata.get(NAMESPACE_HEADER, ""), metadata.get(LEASE_HEADER, ""))


def methods(service: ServiceDescriptor, adapter: object) -> Iterator[tuple[str, Method]]:
    """One service of the API: its methods by path."""
    for method in service.methods:
        name = f"{service.full_name}/{method.name}"
        yield f"/{name}", _method(name, method, adapter)


def _method(name: str, method: MethodDescriptor, adapter: object) -> Method:
    function = getattr(adapter, snake_case(method.name), None) or _missing(name)
    waits = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    response = message_factory.GetMessageClass(method.output_type)
    return Method(
        name=name,
        client_streaming=bool(method.client_streaming),
        server_streaming=bool(method.server_streaming),
        quick=not waits,
        parse=message_factory.GetMessageClass(method.input_type).FromString,
        serialize=cast(Any, response).SerializeToString,
        function=function,
    )


def snake_case(name: str) -> str:
    """``ListStream`` to ``list_stream``, ``CloseIO`` to ``close_io``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _missing(name: str) -> Callable[[Any, Context], Any]:
    def refuse(_request: Any, _context: Context) -> Any:
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
