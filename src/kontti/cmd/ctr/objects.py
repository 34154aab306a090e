"""``ctr content fetch-object``, ``fetch-blob`` and ``push-object``: single blobs at registries."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

from kontti.cmd.ctr.grammar import Call
from kontti.cmd.ctr.registries import session
from kontti.cmd.ctr.transfers import Remote
from kontti.content.base import Reader
from kontti.errors import FailedPrecondition
from kontti.images.manifest import read_document
from kontti.registry.pusher import Pusher
from kontti.registry.reference import Reference
from kontti.registry.resolver import Resolver
from kontti.registry.target import MANIFEST_TYPES
from kontti.values import Descriptor, Digest


def fetch_object(call: Call) -> None:
    """Write what a reference stands for to stdout."""
    reference = Reference.parse(call.arg(0, "please provide an image reference to fetch"))
    with session(call) as registries:
        resolver = Resolver(registries)
        _, found = resolver.resolve(reference)
        _write(resolver, reference, found)


def fetch_blob(call: Call) -> None:
    """Write blobs of a repository to stdout."""
    repository = Reference.parse(call.arg(0, "must specify remote")).locator
    call.arg(1, "must specify digest")
    with session(call) as registries:
        resolver = Resolver(registries)
        for text in call.args[1:]:
            reference = Reference(repository, f"@{Digest.parse(text)}")
            found = resolver.blob(reference)
            kind = call.str("media-type") or found.media_type
            _write(resolver, reference, replace(found, media_type=kind))


def _write(resolver: Resolver, reference: Reference, wanted: Descriptor) -> None:
    hashed = hashlib.new(wanted.digest.algorithm)
    with closing(resolver.fetcher(reference).fetch(wanted)) as chunks:
        for chunk in chunks:
            hashed.update(chunk)
            sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()
    found = f"{wanted.digest.algorithm}:{hashed.hexdigest()}"
    if found != wanted.digest:
        raise FailedPrecondition(f"unexpected digest {found}, expected {wanted.digest}")


def push_object(call: Call) -> None:
    """Upload a blob of the content store."""
    reference = Reference.parse(call.arg(0, "please provide a reference to push to"))
    digest = Digest.parse(call.arg(1, "please provide a digest to push"))
    kind = call.arg(2, "please provide a media type")
    with Remote(call) as remote, session(call) as registries:
        content = remote.stores.content(remote.scope)
        descriptor = Descriptor(kind, digest, content.info(digest).size)
        pusher = Pusher(registries, reference)
        if kind in MANIFEST_TYPES:
            pusher.push_manifest(descriptor, read_document(content, descriptor), reference.tag)
        else:
            pusher.push_blob(descriptor, lambda offset: _body(content.reader(digest), offset))
    print(f"Pushed {digest} {kind}")


class _Body:
    def __init__(self, reader: Reader, offset: int) -> None:
        self._reader, self._offset = reader, offset

    def read(self, size: int = -1, /) -> bytes:
        data = self._reader.read_at(self._offset, 256 << 10 if size < 0 else size)
        self._offset += len(data)
        return data


@contextmanager
def _body(reader: Reader, offset: int) -> Iterator[_Body]:
    with reader:
        yield _Body(reader, offset)
