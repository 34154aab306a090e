"""The Images store."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import replace

from kontti.errors import AlreadyExists, InvalidArgument, NotFound
from kontti.filters import Adaptor, parse_all
from kontti.metadata.backing import Backing, drop, ensure_namespace, hold, now
from kontti.metadata.base import Image
from kontti.metadata.database import clean, dump, load
from kontti.metadata.gc import EXPIRE, lets_go
from kontti.metadata.leases import IMAGES
from kontti.namespaces import Scope
from kontti.values import (
    Descriptor,
    Digest,
    Resource,
    check_labels,
    merge_labels,
)
from kontti.wire.messages.events.image import ImageCreate, ImageDelete, ImageUpdate
from kontti.wire.protobuf import Message

_COLUMNS = "name, target, labels, created_at, updated_at"


class ImageStore:
    """metadata.base.Images of one namespace."""

    def __init__(self, backing: Backing, scope: Scope) -> None:
        self._backing = backing
        self._database = backing.database
        self._scope = scope
        self._namespace = scope.namespace

    def get(self, name: str) -> Image:
        """Raises NotFound."""
        with self._database.read() as connection:
            return self._get(connection, name)

    def _get(self, connection: sqlite3.Connection, name: str) -> Image:
        row = connection.execute(
            f"SELECT {_COLUMNS} FROM images WHERE namespace = ? AND name = ?",
            (self._namespace, name),
        ).fetchone()
        if row is None:
            raise NotFound(f'image "{name}"')
        return _from_row(row)

    def list(self, filters: Sequence[str] = ()) -> Sequence[Image]:
        """Those that match, by name."""
        wanted = parse_all(filters)
        with self._database.read() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM images WHERE namespace = ? ORDER BY name",
                (self._namespace,),
            )
            images = [_from_row(row) for row in rows]
        return [i for i in images if wanted.match(adaptor(i))]

    def create(self, image: Image) -> Image:
        """Raises AlreadyExists, InvalidArgument."""
        check(image)
        stamp = now()
        made = replace(image, labels=clean(image.labels), created_at=stamp, updated_at=stamp)
        with self._database.write() as connection:
            ensure_namespace(connection, self._namespace)
            done = connection.execute(
                "INSERT OR IGNORE INTO images VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    self._namespace,
                    image.name,
                    image.target.digest,
                    dump_target(image.target),
                    dump(made.labels),
                    stamp,
                    stamp,
                ),
            )
            if not done.rowcount:
                raise AlreadyExists(f'image "{image.name}"')
            self._hold(connection, made)
        self._publish("create", ImageCreate(name=made.name, labels=made.labels))
        self._backing.mutated(False)
        return made

    def update(self, image: Image, paths: Sequence[str] = ()) -> Image:
        """With no paths target and labels are replaced; raises NotFound, InvalidArgument."""
        with self._database.write() as connection:
            old = self._get(connection, image.name)
            updated = replace(_masked(old, image, paths), updated_at=now())
            check(updated)
            connection.execute(
                "UPDATE images SET digest = ?, target = ?, labels = ?, updated_at = ? "
                "WHERE namespace = ? AND name = ?",
                (
                    updated.target.digest,
                    dump_target(updated.target),
                    dump(updated.labels),
                    updated.updated_at,
                    self._namespace,
                    image.name,
                ),
            )
            self._hold(connection, updated)
        self._publish("update", ImageUpdate(name=image.name, labels=updated.labels))
        moved = updated.target.digest != old.target.digest
        self._backing.mutated(moved or lets_go(old.labels, updated.labels))
        return updated

    def delete(self, name: str, target: Descriptor | None = None) -> None:
        """Remove the name, or only where it still names ``target``; raises NotFound."""
        with self._database.write() as connection:
            old = self._get(connection, name)
            if target is not None and target.digest != old.target.digest:
                raise NotFound(
                    f'image "{name}" has target {old.target.digest}, not {target.digest}'
                )
            connection.execute(
                "DELETE FROM images WHERE namespace = ? AND name = ?", (self._namespace, name)
            )
            drop(connection, self._scope, Resource(name, IMAGES))
        self._publish("delete", ImageDelete(name=name))
        self._backing.mutated(True)

    def _hold(self, connection: sqlite3.Connection, image: Image) -> None:
        # one that does not expire needs nobody to keep it
        if EXPIRE in image.labels:
            hold(connection, self._scope, Resource(image.name, IMAGES))

    def _publish(self, what: str, event: Message) -> None:
        self._backing.publisher.publish(self._namespace, f"/images/{what}", event)


def check(image: Image) -> None:
    """Raises InvalidArgument without a name, or a target without digest, size or type."""
    if not image.name:
        raise InvalidArgument("Image.Name required")
    check_labels(image.labels)
    Digest.parse(image.target.digest)
    if image.target.size <= 0:
        raise InvalidArgument("Target.Size must be greater than zero")
    if not image.target.media_type:
        raise InvalidArgument("Target.MediaType must be set")


def _masked(old: Image, new: Image, paths: Sequence[str]) -> Image:
    if not paths:
        return replace(old, target=new.target, labels=clean(new.labels))
    updated = old
    for path in paths:
        if path == "labels" or path.startswith("labels."):
            updated = replace(updated, labels=merge_labels(updated.labels, new.labels, [path]))
        elif path == "target":
            updated = replace(updated, target=new.target)
        elif path == "annotations" or path.startswith("annotations."):
            paths_ = [path.replace("annotations", "labels", 1)]
            merged = merge_labels(updated.target.annotations, new.target.annotations, paths_)
            updated = replace(updated, target=replace(updated.target, annotations=merged))
        else:
            raise InvalidArgument(f'cannot update "{path}" field on image "{new.name}"')
    return updated


def adaptor(image: Image) -> Adaptor:
    """Fields for filters: name, target.digest, target.mediatype, labels, annotations."""

    def value(path: Sequence[str]) -> tuple[str, bool]:
        fields = {
            ("name",): image.name,
            ("target", "digest"): image.target.digest,
            ("target", "mediatype"): image.target.media_type,
        }
        if tuple(path) in fields:
            return fields[tuple(path)], True
        if path[0] in ("labels", "annotations") and len(path) > 1:
            source = image.labels if path[0] == "labels" else image.target.annotations
            key = ".".join(path[1:])
            return source.get(key, ""), key in source
        return "", False

    return value


def dump_target(target: Descriptor) -> str:
    """A descriptor as a column."""
    return json.dumps(
        [target.media_type, target.digest, target.size, dict(target.annotations)],
        separators=(",", ":"),
        ensure_ascii=False,
    )


def _from_row(row: tuple[str, str, str, int, int]) -> Image:
    name, target, labels, created, updated = row
    media_type, digest, size, annotations = json.loads(target)
    descriptor = Descriptor(media_type, Digest(digest), size, annotations)
    return Image(name, descriptor, load(labels), created, updated)
