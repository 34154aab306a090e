"""Reads image archives into a content store: OCI layouts and what ``docker save`` writes.

Blobs go into ingests as they arrive, so an archive is read once, whatever its order. Names in it
are only names: nothing is written where they say.
"""

from __future__ import annotations

import posixpath
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from kontti.content.base import Store
from kontti.diff.compression import decompressed
from kontti.diff.tar import HARDLINK, REGULAR, SYMLINK, Entry, TarReader
from kontti.errors import InvalidArgument
from kontti.images import documents as json
from kontti.images.archive_docker import convert
from kontti.images.archive_names import image_name
from kontti.images.ingest import ingest, put
from kontti.images.manifest import MAX_DOCUMENT, parse_index
from kontti.images.media_types import OCI_INDEX
from kontti.values import Descriptor, Digest

LAYOUT, INDEX, DOCKER = "oci-layout", "index.json", "manifest.json"

_BLOBS = "blobs/"
_LINK_STEPS = 10

Read = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Imported:
    """What an archive brought: its index, a blob by now, and its images ("" for unnamed)."""

    index: Descriptor
    images: tuple[tuple[str, Descriptor], ...]


@dataclass(slots=True)
class _Found:
    """What was seen of an archive so far: blobs and links by path, small documents by name."""

    blobs: dict[str, Descriptor] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    documents: dict[str, bytes] = field(default_factory=dict)

    def blob(self, path: str) -> Descriptor:
        """The blob at a path; raises InvalidArgument where the archive has none."""
        target = posixpath.normpath(path)
        for _ in range(_LINK_STEPS):
            if target in self.blobs:
                return self.blobs[target]
            if target not in self.links:
                break
            target = self.links[target]
        raise InvalidArgument(f"image archive has no file {path[:200]!r}")


def import_index(read: Read, store: Store, *, compress: bool = False) -> Imported:
    """Read an archive (plain, gzip or zstd) from ``read(count)`` into ``store``.

    ``compress`` gzips the plain layers of a docker archive. Raises InvalidArgument for what is no
    image archive or a damaged one, FailedPrecondition where a blob is not what its name says. No
    ingest is left behind; blobs already committed are the caller's lease's.
    """
    found = _Found()
    prefix = f"import-{secrets.token_hex(8)}"
    for number, (path, entry, reader) in enumerate(_files(read, found)):
        if path in (LAYOUT, INDEX, DOCKER):
            found.documents[path] = _small(entry, reader)
        else:
            chunks = (bytes(view) for view in reader.data())
            ref = f"{prefix}-{number}"
            found.blobs[path] = ingest(store, ref, chunks, entry.size, _expected(path))
    index = _index(found, store, compress)
    return _imported(put(store, f"{prefix}-index", index, OCI_INDEX), index)


def _files(read: Read, found: _Found) -> Iterator[tuple[str, Entry, TarReader]]:
    reader = TarReader(decompressed(read))
    for entry in reader:
        path = posixpath.normpath("/" + _text(entry.name)).lstrip("/")
        if entry.kind == SYMLINK:
            target = posixpath.join(posixpath.dirname(path), _text(entry.link))
            found.links[path] = posixpath.normpath("/" + target).lstrip("/")
        elif entry.kind == HARDLINK:
            found.links[path] = posixpath.normpath("/" + _text(entry.link)).lstrip("/")
        elif entry.kind == REGULAR:
            yield path, entry, reader
    reader.drain()


def _text(name: bytes) -> str:
    return name.decode(errors="replace")


def _small(entry: Entry, reader: TarReader) -> bytes:
    if entry.size > MAX_DOCUMENT:
        raise InvalidArgument(f"{_text(entry.name)!r:.200} is too large: {entry.size} bytes")
    return b"".join(reader.data())


def _expected(path: str) -> str:
    """The digest in a layout's blob path, "" elsewhere."""
    if not path.startswith(_BLOBS):
        return ""
    algorithm, _, encoded = path.removeprefix(_BLOBS).partition("/")
    return Digest.parse(f"{algorithm}:{encoded}")


def _index(found: _Found, store: Store, compress: bool) -> bytes:
    if LAYOUT in found.documents:
        layout = json.loads(found.documents[LAYOUT], LAYOUT)
        version = json.text(layout, "imageLayoutVersion")
        if version != "1.0.0":
            raise InvalidArgument(f"unsupported OCI version {version[:40]}")
        if INDEX not in found.documents:
            raise InvalidArgument("missing index.json in OCI layout")
        return found.documents[INDEX]
    if DOCKER in found.documents:
        return convert(found.documents[DOCKER], found.blob, store, compress)
    raise InvalidArgument("unrecognized image format")


def _imported(index: Descriptor, data: bytes) -> Imported:
    manifests = parse_index(data, OCI_INDEX).manifests
    return Imported(index, tuple((image_name(d.annotations), d) for d in manifests))
