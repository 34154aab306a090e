"""Manifests, indexes and image configs: hostile bytes in, frozen values out (OCI 1.1)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from kontti.content.base import Provider
from kontti.errors import DataLoss, InvalidArgument, Unimplemented
from kontti.images import documents as json
from kontti.images.documents import Json
from kontti.images.media_types import (
    DOCKER_SCHEMA1,
    INDEXES,
    MANIFESTS,
    OCI_INDEX,
    OCI_MANIFEST,
    kind_of,
)
from kontti.values import EMPTY, Descriptor, Digest, Platform

MAX_DOCUMENT = 8 << 20


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image (or artifact): its config and its layers, lowest first."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    artifact_type: str = ""
    subject: Descriptor | None = None

    @property
    def children(self) -> tuple[Descriptor, ...]:
        """What the manifest is made of, config first."""
        return (self.config, *self.layers)


@dataclass(frozen=True, slots=True)
class Index:
    """A list of manifests, or of further indexes."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=lambda: EMPTY)

    @property
    def children(self) -> tuple[Descriptor, ...]:
        """The same as ``manifests``."""
        return self.manifests


@dataclass(frozen=True, slots=True)
class RunConfig:
    """What an image says of how to run it."""

    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    stop_signal: str = ""
    volumes: tuple[str, ...] = ()
    exposed_ports: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """An image's configuration; ``document`` is all of it."""

    platform: Platform
    diff_ids: tuple[Digest, ...]
    run: RunConfig
    created: str
    document: Json


def read_document(provider: Provider, descriptor: Descriptor) -> bytes:
    """A blob, whole and verified; raises NotFound, InvalidArgument over 8 MiB, DataLoss."""
    with provider.reader(descriptor.digest) as reader:
        if reader.size > MAX_DOCUMENT:
            raise InvalidArgument(f"{descriptor.digest} is too large to read: {reader.size} bytes")
        data = reader.read_at(0, reader.size)
    found = f"{descriptor.digest.algorithm}:{_hash(descriptor.digest.algorithm, data)}"
    if found != descriptor.digest:
        raise DataLoss(f"content {descriptor.digest} is damaged: it hashes to {found}")
    return data


def _hash(algorithm: str, data: bytes) -> str:
    return hashlib.new(algorithm, data).hexdigest()


def read_manifest(provider: Provider, descriptor: Descriptor) -> Manifest:
    """The manifest behind a descriptor that says it is one."""
    return parse_manifest(read_document(provider, descriptor), descriptor.media_type)


def read_index(provider: Provider, descriptor: Descriptor) -> Index:
    """The index behind a descriptor that says it is one."""
    return parse_index(read_document(provider, descriptor), descriptor.media_type)


def read_config(provider: Provider, descriptor: Descriptor) -> ImageConfig:
    """The image config behind a manifest's config descriptor."""
    return parse_config(read_document(provider, descriptor))


def children(provider: Provider, descriptor: Descriptor) -> tuple[Descriptor, ...]:
    """What a blob refers to; nothing for layers, configs and types that are not known."""
    check_known(descriptor.media_type)
    kind = kind_of(descriptor.media_type)
    if kind == "manifest":
        return read_manifest(provider, descriptor).children
    if kind == "index":
        return read_index(provider, descriptor).children
    return ()


def check_known(media_type: str) -> None:
    """Raises Unimplemented for Docker's manifest schema 1, which names no verifiable layers."""
    if media_type in DOCKER_SCHEMA1:
        raise Unimplemented(f"unsupported manifest media type {media_type}")


def parse_manifest(data: bytes, media_type: str) -> Manifest:
    """A manifest of ``media_type``; raises InvalidArgument where it is something else."""
    if media_type not in MANIFESTS:
        raise InvalidArgument(f"unexpected media type {media_type!r:.200} for a manifest")
    document = json.loads(data, "manifest")
    _check_schema(document)
    if document.get("manifests") or json.text(document, "mediaType") in INDEXES:
        raise InvalidArgument(f"media-type: expected manifest but found index ({media_type})")
    subject = document.get("subject")
    return Manifest(
        media_type,
        json.parse_descriptor(document.get("config"), "manifest config"),
        _descriptors(document, "layers"),
        json.text_map(document, "annotations"),
        json.text(document, "artifactType"),
        json.parse_descriptor(subject, "manifest subject") if subject else None,
    )


def parse_index(data: bytes, media_type: str) -> Index:
    """An index of ``media_type``; raises InvalidArgument where it is something else."""
    if media_type not in INDEXES:
        raise InvalidArgument(f"unexpected media type {media_type!r:.200} for an index")
    document = json.loads(data, "index")
    _check_schema(document)
    is_manifest = document.get("config") or document.get("layers")
    if is_manifest or json.text(document, "mediaType") in MANIFESTS:
        raise InvalidArgument(f"media-type: expected index but found manifest ({media_type})")
    return Index(
        media_type, _descriptors(document, "manifests"), json.text_map(document, "annotations")
    )


def parse_config(data: bytes) -> ImageConfig:
    """An image config; raises InvalidArgument."""
    document = json.loads(data, "image config")
    rootfs = json.section(document, "rootfs")
    return ImageConfig(
        json.parse_platform(document),
        tuple(Digest.parse(text) for text in json.texts(rootfs, "diff_ids")),
        _run_config(json.section(document, "config")),
        json.text(document, "created"),
        document,
    )


def _run_config(document: Json) -> RunConfig:
    return RunConfig(
        user=json.text(document, "User"),
        env=json.texts(document, "Env"),
        entrypoint=_command(document, "Entrypoint"),
        cmd=_command(document, "Cmd"),
        working_dir=json.text(document, "WorkingDir"),
        stop_signal=json.text(document, "StopSignal"),
        volumes=tuple(json.section(document, "Volumes")),
        exposed_ports=tuple(json.section(document, "ExposedPorts")),
        labels=json.text_map(document, "Labels"),
    )


def document_type(data: bytes) -> str:
    """The media type of a manifest or index by what it says and has; "" for other bytes."""
    if not data.startswith(b"{"):
        return ""
    try:
        document = json.loads(data, "document")
        said = json.text(document, "mediaType")
        if said in MANIFESTS or said in INDEXES:
            return said
        if json.items(document, "manifests"):
            return OCI_INDEX
        whole = json.section(document, "config") and json.items(document, "layers")
        return OCI_MANIFEST if whole else ""
    except InvalidArgument:
        return ""


def _command(document: Json, key: str) -> tuple[str, ...]:
    # old builders wrote a single string here
    value = document.get(key)
    return (value,) if isinstance(value, str) else json.texts(document, key)


def _check_schema(document: Json) -> None:
    if json.items(document, "fsLayers"):
        raise Unimplemented("unsupported manifest: docker schema 1")


def _descriptors(document: Json, key: str) -> tuple[Descriptor, ...]:
    return tuple(
        json.parse_descriptor(value, f"{key} entry") for value in json.items(document, key)
    )
