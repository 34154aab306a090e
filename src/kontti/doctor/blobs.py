"""Blobs: the files against their names, and the records against the files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress

from kontti.content.base import Store
from kontti.doctor.base import Finding, Pace, Patient, Remedy
from kontti.errors import AlreadyExists, Error, NotFound
from kontti.images.graph import walk
from kontti.metadata.base import Image
from kontti.namespaces import Scope
from kontti.registry.reference import Reference
from kontti.registry.resolver import Resolver
from kontti.transfer.download import Downloads, Sink
from kontti.transfer.labels import source_label
from kontti.transfer.progress import Reporter, silent
from kontti.values import Descriptor, Digest

CHUNK = 1 << 20


def check(patient: Patient) -> Iterator[Finding]:
    """Blobs that are damaged or gone, those that nobody knows of, and images that lack some."""
    backend = patient.metadata.backend_content
    sizes = {info.digest: info.size for info in backend.walk()}
    known: set[Digest] = set()
    bad: dict[Digest, str] = {}
    for scope in patient.scopes():
        for info in patient.metadata.content(scope).walk():
            if info.digest not in known:
                known.add(info.digest)
                bad[info.digest] = problem(backend, info.digest, info.size, sizes, patient)
            if bad[info.digest]:
                yield Finding("blob", scope.namespace, info.digest, bad[info.digest], Remedy.FETCH)
        yield from incomplete(patient, scope)
    for digest in sizes.keys() - known:
        yield Finding("blob", "", digest, "no namespace has it", Remedy.COLLECT)


def problem(
    backend: Store, digest: Digest, size: int, sizes: Mapping[Digest, int], patient: Patient
) -> str:
    """What is wrong with a blob, "" for nothing."""
    if digest not in sizes:
        return "its file is gone"
    if sizes[digest] != size:
        return f"its file has {sizes[digest]} bytes and not {size}"
    if not patient.deep:
        return ""
    try:
        found = hash_of(backend, digest, patient.pace)
    except Error as error:
        return error.message
    return "" if found == digest.encoded else f"its file has {digest.algorithm}:{found}"


def hash_of(content: Store, digest: Digest, pace: Pace) -> str:
    """The hash of what is stored by the name ``digest``, in hex."""
    total = hashlib.new(digest.algorithm)
    with content.reader(digest) as reader:
        offset = 0
        while data := reader.read_at(offset, CHUNK):
            total.update(data)
            offset += len(data)
            pace.spend(len(data))
    return total.hexdigest()


def incomplete(patient: Patient, scope: Scope) -> Iterator[Finding]:
    """Images whose manifest, or what a manifest of this host needs, is not there."""
    content = patient.metadata.content(scope)
    for image in patient.metadata.images(scope).list():
        with suppress(NotFound):
            content.info(image.target.digest)
            continue
        said = f"{image.target.digest} is not there"
        yield Finding("image", scope.namespace, image.name, said, Remedy.FETCH)


class Fetching:
    """Has damaged blobs fetched again from where an image that has them came from."""

    def __init__(self, patient: Patient, resolver: Resolver) -> None:
        self._patient = patient
        self._resolver = resolver

    def mend(self, finding: Finding) -> bool:
        """Put what is damaged aside, and fetch it; whether it is there again.

        A blob that cannot be had has no record any more: who pulls its image gets it.
        """
        scope = Scope.of(finding.namespace)
        if finding.kind == "image":
            image = self._patient.metadata.images(scope).get(finding.name)
            return self._fetch(scope, image, image.target, {})
        digest = Digest.parse(finding.name)
        content = self._patient.metadata.content(scope)
        found = self._owner(scope, digest)
        with suppress(NotFound):
            labels = content.info(digest).labels
            self._put_aside(digest)
            content.delete(digest)
            return found is not None and self._fetch(scope, *found, labels)
        return False

    def _owner(self, scope: Scope, digest: Digest) -> tuple[Image, Descriptor] | None:
        content = self._patient.metadata.content(scope)
        for image in self._patient.metadata.images(scope).list():
            with suppress(Error):
                for node in walk(content, image.target):
                    if node.descriptor.digest == digest:
                        return image, node.descriptor
        return None

    def _put_aside(self, digest: Digest) -> None:
        with suppress(NotFound), self._patient.metadata.backend_content.reader(digest) as reader:
            if reader.path is None:
                return
            os.makedirs(self._patient.quarantine, mode=0o700, exist_ok=True)
            name = digest.replace(":", "-")
            os.rename(reader.path, os.path.join(self._patient.quarantine, name))

    def _fetch(
        self, scope: Scope, image: Image, wanted: Descriptor, labels: Mapping[str, str]
    ) -> bool:
        content = self._patient.metadata.content(scope)
        try:
            reference = Reference.parse(image.name)
            kept = {**labels, **source_label(reference)}
            sink = Sink(
                content, lambda: content, Reporter(silent), self._patient.parts.flights, kept
            )
            with Downloads(self._resolver.fetcher(reference), sink, 1) as downloads:
                downloads.start(wanted)
                downloads.finish()
        except AlreadyExists:
            return True
        except (Error, OSError):
            return False
        return True
