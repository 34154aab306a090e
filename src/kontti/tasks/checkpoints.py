"""Checkpoints as blobs: a task's state as a tar in the content store, and back to a directory."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable
from typing import Protocol

from kontti.content.base import Store
from kontti.diff.base import Applier, Comparer, DiffOptions
from kontti.diff.media_types import OCI_LAYER
from kontti.errors import AlreadyExists, InvalidArgument, NotFound
from kontti.namespaces import Scope
from kontti.tasks import convert
from kontti.values import AnyValue, Descriptor, Mount

CHECKPOINT = "application/vnd.containerd.container.criu.checkpoint.criu.tar"
CONFIG = "application/vnd.containerd.container.checkpoint.config.v1+proto"


class Checkpoints(Protocol):
    """Keeps what ``Tasks.checkpoint`` has made, and gives it to ``Tasks.create``."""

    def save(self, scope: Scope, path: str, spec: AnyValue) -> list[Descriptor]:
        """The directory ``path`` and the container's spec, as blobs."""
        ...

    def unpack(self, scope: Scope, checkpoint: Descriptor, path: str) -> None:
        """Write the directory that was saved to ``path``; raises InvalidArgument, NotFound."""
        ...


class ContentCheckpoints:
    """Checkpoints in a content store; the arguments give a scope's."""

    def __init__(
        self,
        content: Callable[[Scope], Store],
        applier: Callable[[Scope], Applier],
        comparer: Callable[[Scope], Comparer],
    ) -> None:
        self._content = content
        self._applier = applier
        self._comparer = comparer

    def save(self, scope: Scope, path: str, spec: AnyValue) -> list[Descriptor]:
        """Checkpoints.save."""
        made = self._comparer(scope).compare([], [_bind(path, "ro")], DiffOptions(OCI_LAYER))
        config = self._write(scope, convert.to_any(spec).encode())
        return [Descriptor(CHECKPOINT, made.digest, made.size), config]

    def _write(self, scope: Scope, data: bytes) -> Descriptor:
        store = self._content(scope)
        reference = f"checkpoint-config-{time.time_ns()}-{secrets.token_hex(8)}"
        try:
            with store.writer(reference, len(data)) as writer:
                writer.write(data)
                digest = writer.digest()
                with contextlib.suppress(AlreadyExists):
                    writer.commit(len(data), digest)
        except BaseException:
            with contextlib.suppress(NotFound):
                store.abort(reference)
            raise
        return Descriptor(CONFIG, digest, len(data))

    def unpack(self, scope: Scope, checkpoint: Descriptor, path: str) -> None:
        """Checkpoints.unpack."""
        if checkpoint.media_type != CHECKPOINT:
            raise InvalidArgument(f"unsupported checkpoint type {checkpoint.media_type!r:.200}")
        layer = Descriptor(OCI_LAYER, checkpoint.digest, checkpoint.size)
        self._applier(scope).apply(layer, [_bind(path, "rw")])


def _bind(path: str, mode: str) -> Mount:
    return Mount("bind", path, ("rbind", mode))
