"""Writes images as an OCI layout tar that ``docker load`` reads too, the same every time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from kontti.content.base import Provider
from kontti.diff.media_types import is_nondistributable
from kontti.diff.tar import DIRECTORY, REGULAR, Entry
from kontti.diff.tar_writer import ARCHIVE_END, header, padding
from kontti.errors import DataLoss, NotFound
from kontti.images import documents as json
from kontti.images.archive_import import DOCKER, INDEX, LAYOUT
from kontti.images.archive_names import IMAGE_NAME, REF_NAME, familiar, reference_name
from kontti.images.graph import find_manifest, walk
from kontti.images.image_check import is_present
from kontti.images.media_types import OCI_INDEX, kind_of
from kontti.images.platforms import Everything, Matcher
from kontti.values import Descriptor

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Which platforms, and what to leave out.

    ``present_only`` leaves out manifests of an index that are not all here, instead of failing.
    """

    platforms: Matcher | None = None
    skip_manifest_json: bool = False
    skip_nondistributable: bool = False
    present_only: bool = False


def export(
    provider: Provider,
    images: Sequence[tuple[str, Descriptor]],
    write: Callable[[bytes], object],
    options: ExportOptions | None = None,
) -> None:
    """Write ``images`` (name, target) to ``write``; raises NotFound for a blob that is not here.

    What is missing is found before the first byte is written.
    """
    chosen = options or ExportOptions()
    matcher = chosen.platforms or Everything()
    blobs: dict[str, Descriptor] = {}
    for _, target in images:
        for blob in _blobs(provider, target, matcher, chosen):
            blobs[blob.digest] = blob
    documents = _documents(provider, images, matcher, chosen)
    for chunk in _archive(provider, blobs, documents):
        write(chunk)


def _blobs(
    provider: Provider, target: Descriptor, matcher: Matcher, options: ExportOptions
) -> Iterator[Descriptor]:
    left_out: set[str] = set()
    for node in walk(provider, target, matcher):
        if node.descriptor.digest in left_out:
            continue
        if options.skip_nondistributable and is_nondistributable(node.descriptor.media_type):
            continue
        if kind_of(node.descriptor.media_type) == "index" and options.present_only:
            left_out |= {d.digest for d in node.children if not _is_whole(provider, d)}
        if node.missing or not is_present(provider, node.descriptor.digest):
            raise NotFound(f"content {node.descriptor.digest}")
        yield node.descriptor


def _is_whole(provider: Provider, manifest: Descriptor) -> bool:
    return all(is_present(provider, n.descriptor.digest) for n in walk(provider, manifest))


def _documents(
    provider: Provider,
    images: Sequence[tuple[str, Descriptor]],
    matcher: Matcher,
    options: ExportOptions,
) -> dict[str, bytes]:
    index = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [json.dump_descriptor(_named(name, target)) for name, target in images],
    }
    documents = {
        LAYOUT: json.dumps({"imageLayoutVersion": "1.0.0"}),
        INDEX: json.dumps(index),
    }
    if not options.skip_manifest_json:
        documents[DOCKER] = _docker(provider, images, matcher, options)
    return documents


def _named(name: str, target: Descriptor) -> Descriptor:
    if not name:
        return target
    names = {IMAGE_NAME: name, REF_NAME: reference_name(name)}
    return replace(target, annotations={**target.annotations, **names})


def _docker(
    provider: Provider,
    images: Sequence[tuple[str, Descriptor]],
    matcher: Matcher,
    options: ExportOptions,
) -> bytes:
    entries: dict[str, dict[str, object]] = {}
    tags: dict[str, list[str]] = {}
    for name, target in images:
        try:
            found, manifest = find_manifest(provider, target, matcher)
        except NotFound:
            # of none of the platforms asked for: docker has nothing to load
            continue
        layers = [
            _path(layer)
            for layer in manifest.layers
            if not (options.skip_nondistributable and is_nondistributable(layer.media_type))
        ]
        entries[found.digest] = {"Config": _path(manifest.config), "Layers": layers}
        tags.setdefault(found.digest, []).extend(filter(None, [familiar(name) if name else ""]))
    return json.dump_list(
        {"Config": e["Config"], "RepoTags": tags[digest], "Layers": e["Layers"]}
        for digest, e in entries.items()
    )


def _path(blob: Descriptor) -> str:
    return f"blobs/{blob.digest.algorithm}/{blob.digest.encoded}"


def _archive(
    provider: Provider, blobs: dict[str, Descriptor], documents: dict[str, bytes]
) -> Iterator[bytes]:
    algorithms = sorted({blob.digest.algorithm for blob in blobs.values()})
    for name in ("blobs/", *(f"blobs/{algorithm}/" for algorithm in algorithms)):
        yield header(_entry(DIRECTORY, name, 0o755, 0))
    for blob in sorted(blobs.values(), key=_path):
        yield from _blob(provider, blob)
    for name, data in sorted(documents.items()):
        yield header(_entry(REGULAR, name, 0o444, len(data))) + data + padding(len(data))
    yield ARCHIVE_END


def _entry(kind: bytes, name: str, mode: int, size: int) -> Entry:
    entry = Entry(kind, name.encode())
    entry.mode, entry.size = mode, size
    return entry


def _blob(provider: Provider, blob: Descriptor) -> Iterator[bytes]:
    hasher = hashlib.new(blob.digest.algorithm)
    with provider.reader(blob.digest) as reader:
        size = reader.size
        yield header(_entry(REGULAR, _path(blob), 0o444, size))
        for offset in range(0, size, _CHUNK):
            data = reader.read_at(offset, _CHUNK)
            hasher.update(data)
            yield data
    if hasher.hexdigest() != blob.digest.encoded:
        raise DataLoss(f"content {blob.digest} is damaged")
    yield padding(size)
