"""Makes blobs of streams, and leaves no ingest behind where that fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from kontti.content.base import Store, Writer
from kontti.errors import AlreadyExists, NotFound
from kontti.values import Descriptor, Digest


def ingest(
    store: Store, ref: str, chunks: Iterator[bytes], size: int, expected: str = ""
) -> Descriptor:
    """A blob of what ``chunks`` give; its media type is left open. No ingest stays after a failure.

    ``size`` 0 and ``expected`` "" are not known before. Raises as content.base.Writer does.
    """
    try:
        writer = store.writer(ref, size, expected)
    except AlreadyExists:
        return Descriptor("", Digest.parse(expected), size)
    try:
        with writer:
            return _write(writer, chunks, size, expected)
    except BaseException:
        with suppress(NotFound):
            store.abort(ref)
        raise


def _write(writer: Writer, chunks: Iterator[bytes], size: int, expected: str) -> Descriptor:
    written = 0
    for chunk in chunks:
        writer.write(chunk)
        written += len(chunk)
    digest = writer.digest()
    try:
        writer.commit(size, expected)
    except AlreadyExists:
        pass
    return Descriptor("", digest, written)


def put(store: Store, ref: str, data: bytes, media_type: str) -> Descriptor:
    """A small document as a blob."""
    made = ingest(store, ref, iter((data,)), len(data))
    return Descriptor(media_type, made.digest, len(data))
