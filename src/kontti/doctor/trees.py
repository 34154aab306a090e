"""Snapshots: the records against the snapshotters, and layers against their blobs."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from kontti.diff.lowers import is_whiteout
from kontti.doctor.base import Finding, Patient, Remedy
from kontti.errors import Error, NotFound
from kontti.metadata.store import SnapshotRow
from kontti.namespaces import Scope
from kontti.snapshots.base import Info, Kind, Snapshotter
from kontti.snapshots.native import NativeSnapshotter
from kontti.snapshots.overlay import OverlaySnapshotter
from kontti.transfer.unpack import Layer

CHUNK = 1 << 20
Local = OverlaySnapshotter | NativeSnapshotter
LOCAL = (OverlaySnapshotter, NativeSnapshotter)
"""Snapshotters whose files are here, to be looked at."""
_NOTES = ("trusted.overlay.", "user.overlay.")
_OPAQUE = "opaque"


def check(patient: Patient) -> Iterator[Finding]:
    """Snapshots that are damaged or gone, those nobody knows of, containers that lack theirs."""
    for name, snapshotter in patient.metadata.snapshotters.items():
        rows = patient.metadata.snapshot_rows(name)
        unfinished = patient.metadata.unfinished(name)
        held = {info.name: info for info in snapshotter.walk()}
        yield from _of(patient, name, rows, held)
        for made in unfinished:
            said = f"its commit to {made.name} was cut short"
            yield Finding(name, made.namespace, made.key, said, Remedy.COLLECT)
        for orphan in held.keys() - {r.backend for r in rows} - {c.backend for c in unfinished}:
            yield Finding(name, "", orphan, "no namespace has it", Remedy.COLLECT)
    for scope in patient.scopes():
        yield from containers(patient, scope)


def _of(
    patient: Patient, name: str, rows: list[SnapshotRow], held: Mapping[str, Info]
) -> Iterator[Finding]:
    snapshotter = patient.metadata.snapshotters[name]
    bad: set[tuple[str, str]] = set()
    half_made = {commit.consumed for commit in patient.metadata.unfinished(name)}
    for namespace in sorted({row.namespace for row in rows}):
        layers = patient.layers(Scope.of(namespace))
        own = [row for row in rows if row.namespace == namespace]
        for row in parents_first([row for row in own if row.backend not in half_made]):
            layer = layers.get(row.key)
            said = problem(snapshotter, row, held)
            if not said and patient.deep and layer and (namespace, row.parent) not in bad:
                said = difference(patient, Unpacking(name, row, parent_of(row, rows), layer))
            if said:
                bad.add((namespace, row.key))
                spare = row.backend not in held and is_spare(patient, name, row, own)
                remedy = Remedy.FORGET if spare else Remedy.NONE
                remedy = Remedy.UNPACK if layer else remedy
                yield Finding(name, namespace, row.key, said, remedy)


def is_spare(patient: Patient, name: str, row: SnapshotRow, own: list[SnapshotRow]) -> bool:
    """Whether no snapshot or container of its namespace needs a snapshot."""
    users = patient.metadata.containers(Scope.of(row.namespace)).list()
    taken = {container.snapshot_key for container in users if container.snapshotter == name}
    return row.key not in taken | {other.parent for other in own}


def parents_first(rows: list[SnapshotRow]) -> list[SnapshotRow]:
    """Each row after its parent's."""
    by_key = {row.key: row for row in rows}
    ordered: dict[str, SnapshotRow] = {}
    for row in rows:
        chain: list[SnapshotRow] = []
        at: SnapshotRow | None = row
        while at is not None and at.key not in ordered and len(chain) <= len(rows):
            chain.append(at)
            at = by_key.get(at.parent)
        ordered.update({link.key: link for link in reversed(chain)})
    return list(ordered.values())


def parent_of(row: SnapshotRow, rows: list[SnapshotRow]) -> str:
    """The name that a snapshot's parent has in the snapshotter; "" for none."""
    same = (r.backend for r in rows if r.namespace == row.namespace and r.key == row.parent)
    return next(same, "") if row.parent else ""


def problem(snapshotter: Snapshotter, row: SnapshotRow, held: Mapping[str, Info]) -> str:
    """What can be seen of a snapshot without reading it; "" for nothing wrong."""
    if row.backend not in held:
        return "the snapshotter does not have it"
    if isinstance(snapshotter, LOCAL):
        return snapshotter.damage(row.backend)
    return ""


def containers(patient: Patient, scope: Scope) -> Iterator[Finding]:
    """Containers whose snapshot is not there."""
    for container in patient.metadata.containers(scope).list():
        if not container.snapshot_key or container.snapshotter not in patient.metadata.snapshotters:
            continue
        rows = patient.metadata.snapshot_rows(container.snapshotter)
        keys = {row.key for row in rows if row.namespace == scope.namespace}
        if container.snapshot_key not in keys:
            said = f"its snapshot {container.snapshot_key} is not there"
            yield Finding("container", scope.namespace, container.id, said)


@dataclass(frozen=True, slots=True)
class Unpacking:
    """A layer to be unpacked again beside, or in the place of, its snapshot."""

    snapshotter: str
    row: SnapshotRow
    parent: str
    layer: Layer


def difference(patient: Patient, work: Unpacking) -> str:
    """How a committed snapshot differs from its layer; "" where it does not."""
    snapshotter = patient.metadata.snapshotters[work.snapshotter]
    if not isinstance(snapshotter, LOCAL):
        return ""
    if snapshotter.stat(work.row.backend).kind is not Kind.COMMITTED:
        return ""
    try:
        return _beside(patient, snapshotter, work)
    except Error:
        return ""  # its layer is damaged or gone, which the blobs' own check tells
    except OSError as error:
        return f"{error.filename}: {error.strerror}"


def _beside(patient: Patient, snapshotter: Local, work: Unpacking) -> str:
    key = f"doctor-{secrets.token_hex(6)}"
    with patient.metadata.making(work.snapshotter, [key]):
        try:
            _unpack(patient, snapshotter, key, work)
            there, wanted = snapshotter.own_files(work.row.backend), snapshotter.own_files(key)
            return first_difference(there, wanted)
        finally:
            with suppress(NotFound):
                snapshotter.remove(key)


def _unpack(patient: Patient, snapshotter: Local, key: str, work: Unpacking) -> None:
    mounts = snapshotter.prepare(key, work.parent)
    applied = patient.applier(Scope.of(work.row.namespace)).apply(work.layer.descriptor, mounts)
    if applied.digest != work.layer.diff_id:
        raise Error(f"its layer has diff id {applied.digest}")


def forget(patient: Patient, finding: Finding) -> bool:
    """Remove the record of a snapshot that there is none of; whether that is done."""
    snapshots = patient.metadata.snapshots(Scope.of(finding.namespace), finding.kind)
    try:
        snapshots.remove(finding.name)
    except Error:
        return False
    return True


def mend(patient: Patient, finding: Finding) -> bool:
    """Unpack a snapshot's layer again in its place; whether it is whole now."""
    rows = patient.metadata.snapshot_rows(finding.kind)
    row = next((r for r in rows if (r.namespace, r.key) == (finding.namespace, finding.name)), None)
    layer = patient.layers(Scope.of(finding.namespace)).get(finding.name)
    snapshotter = patient.metadata.snapshotters[finding.kind]
    if row is None or layer is None or not isinstance(snapshotter, LOCAL):
        return False
    work = Unpacking(finding.kind, row, parent_of(row, rows), layer)
    key = f"doctor-{secrets.token_hex(6)}"
    with patient.metadata.making(finding.kind, [key, row.backend]):
        try:
            _unpack(patient, snapshotter, key, work)
            _put_in_place(snapshotter, row.backend, key)
        except (Error, OSError):
            with suppress(Error):
                snapshotter.remove(key)
            return False
    return True


def _put_in_place(snapshotter: Local, name: str, key: str) -> None:
    try:
        snapshotter.stat(name)
    except NotFound:
        snapshotter.commit(name, key)
    else:
        snapshotter.replace(name, key)


def first_difference(there: str, wanted: str) -> str:
    """The first thing that a tree has otherwise than another; "" where they are the same."""
    stack = [""]
    while stack:
        folder = stack.pop()
        here, other = os.path.join(there, folder), os.path.join(wanted, folder)
        names, expected = set(os.listdir(here)), set(os.listdir(other))
        if names != expected:
            odd = min(names ^ expected)
            state = "not there" if odd in expected else "there, and is not in its layer"
            return f"/{os.path.join(folder, odd)} is {state}"
        for name in sorted(names):
            path = os.path.join(folder, name)
            said = _differs(os.path.join(here, name), os.path.join(other, name))
            if said:
                return f"/{path} has {said}"
            if stat.S_ISDIR(os.lstat(os.path.join(here, name)).st_mode):
                stack.append(path)
    return ""


def _differs(here: str, other: str) -> str:
    one, two = os.lstat(here), os.lstat(other)
    if is_whiteout(one) and is_whiteout(two):
        return ""  # when a name was deleted is told nowhere
    for field in ("st_mode", "st_uid", "st_gid", "st_mtime_ns", "st_rdev"):
        if getattr(one, field) != getattr(two, field):
            return f"another {field.removeprefix('st_').removesuffix('_ns')}"
    if stat.S_ISLNK(one.st_mode):
        return "" if os.readlink(here) == os.readlink(other) else "another target"
    if _xattrs(here) != _xattrs(other):
        return "other extended attributes"
    if stat.S_ISREG(one.st_mode):
        same = one.st_size == two.st_size and _same_bytes(here, other)
        return "" if same else "other bytes"
    return ""


def _xattrs(path: str) -> dict[str, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    return {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in names
        if not name.startswith(_NOTES) or name.endswith(_OPAQUE)
    }


def _same_bytes(here: str, other: str) -> bool:
    with open(here, "rb") as one, open(other, "rb") as two:
        while data := one.read(CHUNK):
            if data != two.read(CHUNK):
                return False
    return True
