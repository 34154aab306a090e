"""The ends of a transfer as messages, to ends that can be used. For threads: it may wait."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from kontti.errors import Canceled, InvalidArgument
from kontti.namespaces import Scope
from kontti.registry.auth import Credentials, CredentialSource, no_credentials
from kontti.registry.hosts import HOSTS_DIRECTORIES, HostOptions, configured
from kontti.registry.http import Tls, Transport
from kontti.registry.session import Session
from kontti.registry.trace import Tell, Traced
from kontti.streaming.base import Stream, Streams
from kontti.streaming.blocking import BlockingReader, BlockingWriter, Waits
from kontti.streaming.bytes import pack
from kontti.transfer.ends import (
    Archive,
    ArchiveWriter,
    End,
    ImageReference,
    ImageStore,
    NoSuchTransfer,
    Registry,
    UnpackWish,
)
from kontti.values import AnyValue, Platform
from kontti.wire.messages.types import platform as wire
from kontti.wire.messages.types.transfer import imagestore, importexport, registry
from kontti.wire.messages.types.transfer.registry import AuthType, HTTPDebug
from kontti.wire.typeurl import name_of

log = logging.getLogger(__name__)
AUTH_SECONDS = 120.0
"""How long a client may take to ask its user for a password."""
SCHEMES = {"": (False, True), "http": (True, True), "https": (False, False)}


class Cancel:
    """Ends a transfer from outside: whatever it waits for is to be ended by what is added."""

    def __init__(self) -> None:
        self._event, self._lock = threading.Event(), threading.Lock()
        self._actions: list[Callable[[], object]] = []

    def add(self, action: Callable[[], object]) -> None:
        """Have ``action`` called when it is cancelled; now, if it is."""
        with self._lock:
            if not self._event.is_set():
                self._actions.append(action)
                return
        action()

    def set(self) -> None:
        """Cancel."""
        with self._lock:
            self._event.set()
            actions, self._actions = self._actions, []
        for action in actions:
            action()

    def check(self) -> None:
        """Raises Canceled where it was."""
        if self._event.is_set():
            raise Canceled("transfer")

    def sleep(self, seconds: float) -> None:
        """Wait; raises Canceled."""
        self._event.wait(seconds)
        self.check()


@dataclass(frozen=True, slots=True)
class Ends:
    """Makes the ends of one call's transfer. ``tell`` takes what is told of HTTP exchanges.

    ``closing`` is what is to be closed after the transfer, whatever came of it.
    """

    streams: Streams
    scope: Scope
    loop: asyncio.AbstractEventLoop
    cancel: Cancel
    directories: tuple[str, ...] = ()
    tell: Tell = log.info
    closing: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def of(self, value: AnyValue) -> End:
        """The end in ``value``; raises InvalidArgument, NoSuchTransfer, NotFound for a stream."""
        match name_of(value.type_url):
            case imagestore.ImageStore.NAME:
                return image_store(imagestore.ImageStore.decode(value.value))
            case registry.OCIRegistry.NAME:
                return self._registry(registry.OCIRegistry.decode(value.value))
            case importexport.ImageImportStream.NAME:
                return self._archive(importexport.ImageImportStream.decode(value.value))
            case importexport.ImageExportStream.NAME:
                return self._writer(importexport.ImageExportStream.decode(value.value))
            case name:
                raise NoSuchTransfer(f"{name:.200}")

    def _archive(self, message: importexport.ImageImportStream) -> Archive:
        reader = BlockingReader(self.loop, self.streams.get(self.scope, message.stream))
        self.cancel.add(reader.abort)
        self.closing.callback(reader.close)
        return Archive(reader.read, message.force_compress)

    def _writer(self, message: importexport.ImageExportStream) -> ArchiveWriter:
        writer = BlockingWriter(self.loop, self.streams.get(self.scope, message.stream))
        self.cancel.add(writer.abort)
        self.closing.callback(writer.close)
        return ArchiveWriter(
            writer.write,
            writer.close,
            tuple(map(platform_from_wire, message.platforms)),
            message.all_platforms,
            message.skip_compatibility_manifest,
            message.skip_non_distributable,
        )

    def _registry(self, message: registry.OCIRegistry) -> Registry:
        resolver = message.resolver or registry.RegistryResolver()
        options = host_options(resolver, self.directories)
        source: CredentialSource = no_credentials
        if resolver.auth_stream:
            stream = self.streams.get(self.scope, resolver.auth_stream)
            self.closing.callback(self.loop.call_soon_threadsafe, stream.close)
            source = self._credentials(stream, message.reference)

        def connect() -> Session:
            return Session(
                configured(options),
                source,
                sleep=self.cancel.sleep,
                transports=lambda tls, seconds: self._transport(resolver.http_debug, tls, seconds),
            )

        return Registry(message.reference, connect)

    def _transport(self, debug: int, tls: Tls, seconds: float) -> Transport:
        from kontti.registry.pool import Pool

        pool = Pool(tls, seconds)
        self.cancel.add(pool.cut)
        if debug == HTTPDebug.DISABLED:
            return pool
        return Traced(pool, self.tell, headers=debug != HTTPDebug.TRACE)

    def _credentials(self, stream: Stream, reference: str) -> CredentialSource:
        """Asks the client, one question at a time."""
        lock, waits = threading.Lock(), Waits(self.loop, AUTH_SECONDS)
        self.cancel.add(waits.abort)

        def source(host: str) -> Credentials | None:
            request = registry.AuthRequest(host=host, reference=reference)
            with lock:
                answer = waits.wait(_ask(stream, pack(request)))
            return credentials(answer)

        return source


async def _ask(stream: Stream, question: AnyValue) -> AnyValue:
    await stream.send(question)
    answer = await stream.recv()
    if answer is None:
        raise Canceled("the client answers no more for credentials")
    return answer


def credentials(answer: AnyValue) -> Credentials | None:
    """Who we are, as a client says; raises InvalidArgument."""
    if name_of(answer.type_url) != registry.AuthResponse.NAME:
        raise InvalidArgument(f"{answer.type_url:.200} where credentials are wanted")
    said = registry.AuthResponse.decode(answer.value)
    if not said.secret:
        return None
    if said.authType == AuthType.CREDENTIALS:
        return Credentials(said.username, said.secret)
    if said.authType == AuthType.REFRESH:
        return Credentials("", said.secret)
    return _of_header(said.secret) if said.authType == AuthType.HEADER else None


def _of_header(header: str) -> Credentials:
    """Those in an Authorization header's value."""
    scheme, _, rest = header.partition(" ")
    if scheme.lower() == "bearer":
        return Credentials(token=rest.strip())
    try:
        user, colon, secret = base64.b64decode(rest, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        colon = user = secret = ""
    if scheme.lower() != "basic" or not colon:
        raise InvalidArgument("credentials: no authorization header that is known")
    return Credentials(user, secret)


def host_options(
    resolver: registry.RegistryResolver, directories: tuple[str, ...] = ()
) -> HostOptions:
    """How hosts are found and spoken to; raises InvalidArgument."""
    if resolver.default_scheme not in SCHEMES:
        raise InvalidArgument(f"default scheme {resolver.default_scheme!r:.80}")
    plain, loopback = SCHEMES[resolver.default_scheme]
    given = (resolver.host_dir,) if resolver.host_dir else directories or HOSTS_DIRECTORIES
    return HostOptions(
        plain_http=plain,
        loopback_http=loopback,
        directories=given,
        headers=tuple(resolver.headers.items()),
    )


def image_store(message: imagestore.ImageStore) -> ImageStore:
    """The images that a message names."""
    return ImageStore(
        message.name,
        dict(message.labels),
        tuple(map(platform_from_wire, message.platforms)),
        message.all_metadata,
        message.manifest_limit,
        tuple(
            ImageReference(
                r.name, r.is_prefix, r.allow_overwrite, r.add_digest, r.skip_named_digest
            )
            for r in message.extra_references
        ),
        tuple(UnpackWish(platform_from_wire(u.platform), u.snapshotter) for u in message.unpacks),
    )


def platform_from_wire(message: wire.Platform | None) -> Platform:
    """A message as a platform."""
    found = message or wire.Platform()
    return Platform(
        found.os,
        found.architecture,
        found.variant,
        found.os_version,
        tuple(found.os_features),
    )
