"""``ctr snapshots``."""

from __future__ import annotations

import os
import time

from kontti.cmd.ctr.grammar import BOOL, LIST, STRING, Call, Command, Flag, UsageError
from kontti.cmd.ctr.output import binary_size, print_json, rfc3339, write_table
from kontti.cmd.ctr.session import (
    DEFAULT_SNAPSHOTTER,
    DIFF,
    MOUNTS,
    SNAPSHOTS,
    SNAPSHOTTER,
    connect,
    expiring,
    key_values,
)
from kontti.errors import AlreadyExists, Unimplemented
from kontti.wire.messages.google import Empty, FieldMask
from kontti.wire.messages.services.diff.v1.diff import DiffRequest, DiffResponse
from kontti.wire.messages.services.mounts.v1.mounts import (
    ActivateRequest,
    ActivateResponse,
    InfoRequest,
    InfoResponse,
)
from kontti.wire.messages.services.snapshots.v1.snapshots import (
    CommitSnapshotRequest,
    Info,
    ListSnapshotsRequest,
    ListSnapshotsResponse,
    MountsRequest,
    MountsResponse,
    PrepareSnapshotRequest,
    PrepareSnapshotResponse,
    RemoveSnapshotRequest,
    StatSnapshotRequest,
    StatSnapshotResponse,
    UpdateSnapshotRequest,
    UpdateSnapshotResponse,
    UsageRequest,
    UsageResponse,
    ViewSnapshotRequest,
    ViewSnapshotResponse,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kontti.client.client import Client
    from kontti.wire.messages.google import Timestamp
    from kontti.wire.messages.types.mount import Mount

KINDS = ("Unknown", "View", "Active", "Committed")
DIFF_SECONDS = 3600.0
UNPACK_LABEL = "containerd.io/gc.root"
FLAGS = (SNAPSHOTTER,)


def snapshotter_of(call: Call) -> str:
    """The snapshotter that the group's flag names."""
    outer = call.globals
    return (outer.str("snapshotter") if outer else "") or DEFAULT_SNAPSHOTTER


def walk(client: Client, snapshotter: str, filters: Sequence[str] = ()) -> Iterator[Info]:
    """Every snapshot."""
    request = ListSnapshotsRequest(snapshotter=snapshotter, filters=filters)
    for page in client.stream(SNAPSHOTS + "List", request, ListSnapshotsResponse):
        yield from page.info


def list_(call: Call) -> None:
    """Key, parent and kind of each."""
    with connect(call) as client:
        rows = [(i.name, i.parent, KINDS[i.kind]) for i in walk(client, snapshotter_of(call))]
    write_table([("KEY", "PARENT", "KIND"), *rows])


def tree(call: Call) -> None:
    """Parents and children, drawn."""
    with connect(call) as client:
        infos = list(walk(client, snapshotter_of(call)))
    children: dict[str, list[str]] = {}
    for info in infos:
        children.setdefault(info.parent, []).append(info.name)
    for root in children.get("", ()):
        draw(children, root)


def draw(children: dict[str, list[str]], root: str) -> None:
    """One tree, depth first, without recursion: chains can be long."""
    stack = [(root, 0)]
    while stack:
        name, depth = stack.pop()
        prefix = "  " * depth + ("\\_" if depth else "")
        print(f"{prefix} {name}")
        stack.extend((child, depth + 1) for child in reversed(children.get(name, [])))


def info(call: Call) -> None:
    """One snapshot as JSON."""
    key = call.arg(0, "needs one argument")
    with connect(call) as client:
        found = stat(client, snapshotter_of(call), key)
    shown: dict[str, object] = {"Kind": KINDS[found.kind], "Name": found.name}
    if found.parent:
        shown["Parent"] = found.parent
    if found.labels:
        shown["Labels"] = found.labels
    shown["Created"] = rfc3339(nanoseconds(found.created_at))
    shown["Updated"] = rfc3339(nanoseconds(found.updated_at))
    print_json(shown)


def nanoseconds(stamp: Timestamp | None) -> int:
    """A Timestamp as ns since the epoch."""
    return stamp.seconds * 10**9 + stamp.nanos if stamp else 0


def stat(client: Client, snapshotter: str, key: str) -> Info:
    """One snapshot's record; raises NotFound."""
    request = StatSnapshotRequest(snapshotter=snapshotter, key=key)
    answer = client.unary(SNAPSHOTS + "Stat", request, StatSnapshotResponse)
    return answer.info or Info()


def usage(call: Call) -> None:
    """What snapshots take, each without its parents."""
    name = snapshotter_of(call)
    with connect(call) as client:
        keys = call.args or [i.name for i in walk(client, name)]
        rows = []
        for key in keys:
            request = UsageRequest(snapshotter=name, key=key)
            found = client.unary(SNAPSHOTS + "Usage", request, UsageResponse)
            size = str(found.size) if call.bool("b") else binary_size(found.size)
            rows.append((key, size, str(found.inodes)))
    write_table([("KEY", "SIZE", "INODES"), *rows])


def prepare(call: Call) -> None:
    """An active snapshot over a parent."""
    key = call.arg(0, "needs one or two arguments")
    parent = call.args[1] if len(call.args) > 1 else ""
    request = PrepareSnapshotRequest(
        snapshotter=snapshotter_of(call), key=key, parent=parent, labels=gc_root()
    )
    with connect(call) as client:
        answer = client.unary(SNAPSHOTS + "Prepare", request, PrepareSnapshotResponse)
    print_requested(call, answer.mounts)


def view(call: Call) -> None:
    """A read-only snapshot over a parent."""
    key = call.arg(0, "needs one or two arguments")
    parent = call.args[1] if len(call.args) > 1 else ""
    request = ViewSnapshotRequest(
        snapshotter=snapshotter_of(call), key=key, parent=parent, labels=gc_root()
    )
    with connect(call) as client:
        answer = client.unary(SNAPSHOTS + "View", request, ViewSnapshotResponse)
    print_requested(call, answer.mounts)


def gc_root() -> dict[str, str]:
    """The label that keeps a snapshot made by hand."""
    return {UNPACK_LABEL: rfc3339(time.time_ns(), fraction=False)}


def print_requested(call: Call, mounts: Sequence[Mount]) -> None:
    """The mounts, where --target or --mounts asks for them."""
    if call.str("target"):
        print_mounts(call.str("target"), mounts)
    if call.bool("mounts"):
        print_json([mount_json(m) for m in mounts])


def mount_json(mount: Mount) -> dict[str, object]:
    """One mount as ctr's JSON."""
    return {
        "Type": mount.type,
        "Source": mount.source,
        "Target": mount.target,
        "Options": mount.options,
    }


def print_mounts(target: str, mounts: Sequence[Mount]) -> None:
    """The mount(8) command lines."""
    for mount in mounts:
        place = os.path.join(target, mount.target.lstrip("/")) if mount.target else target
        print(f"mount -t {mount.type} {mount.source} {place} -o {','.join(mount.options)}")


def mounts(call: Call) -> None:
    """How to mount an active snapshot."""
    target = call.arg(0, "needs two arguments")
    key = call.arg(1, "needs two arguments")
    with connect(call) as client:
        name = snapshotter_of(call)
        request = MountsRequest(snapshotter=name, key=key)
        found = client.unary(SNAPSHOTS + "Mounts", request, MountsResponse).mounts
        # for as long as the snapshot is there
        activate = ActivateRequest(
            name=f"ctr{key}",
            mounts=found,
            temporary=call.bool("temp"),
            labels={f"containerd.io/gc.bref.snapshot.{name}": key},
        )
        print_mounts(target, activated(client, activate))


def activated(client: Client, request: ActivateRequest) -> Sequence[Mount]:
    """What is left to mount when the daemon has mounted what the system cannot."""
    try:
        info = client.unary(MOUNTS + "Activate", request, ActivateResponse).info
    except Unimplemented:
        return request.mounts
    except AlreadyExists:
        again = InfoRequest(name=request.name)
        info = client.unary(MOUNTS + "Info", again, InfoResponse).info
    return info.system if info is not None else ()


def commit(call: Call) -> None:
    """Make an active snapshot a committed one."""
    name = call.arg(0, "needs two arguments")
    key = call.arg(1, "needs two arguments")
    request = CommitSnapshotRequest(
        snapshotter=snapshotter_of(call), name=name, key=key, labels=gc_root()
    )
    with connect(call) as client:
        client.unary(SNAPSHOTS + "Commit", request, Empty)


def remove(call: Call) -> None:
    """Remove snapshots."""
    call.arg(0, "must specify at least one snapshot")
    with connect(call) as client:
        for key in call.args:
            request = RemoveSnapshotRequest(snapshotter=snapshotter_of(call), key=key)
            try:
                client.unary(SNAPSHOTS + "Remove", request, Empty)
            except Exception as problem:
                raise type(problem)(f'failed to remove "{key}": {problem}') from problem


def label(call: Call) -> None:
    """Set and clear labels; prints what the snapshot has then."""
    key = call.arg(0, "please specify a snapshot")
    labels = key_values(call.args[1:])
    name = snapshotter_of(call)
    request = UpdateSnapshotRequest(
        snapshotter=name,
        info=Info(name=key, labels=labels),
        update_mask=FieldMask(paths=[f"labels.{k}" for k in labels]),
    )
    with connect(call) as client:
        # an update that names no label would clear them all
        if labels:
            answer = client.unary(SNAPSHOTS + "Update", request, UpdateSnapshotResponse)
            shown = answer.info.labels if answer.info else {}
        else:
            shown = stat(client, name, key).labels
    print(",".join(f"{k}={v}" for k, v in shown.items()))


def diff(call: Call) -> None:
    """Write the difference of two snapshots (of one and its parent) as a layer to stdout."""
    from kontti.client.stores import RemoteLeases
    from kontti.cmd.ctr.content import print_blob

    right = call.arg(-1 if len(call.args) > 1 else 0, "snapshot id must be provided")
    name, labels = snapshotter_of(call), key_values(call.list("label"))
    if call.bool("keep"):
        labels |= gc_root()
    with connect(call) as client:
        leases = RemoteLeases(client)
        made = leases.create("", expiring(DIFF_SECONDS))
        try:
            # what is made is the lease's alone: an image's own layer may be the same blob
            with client.with_lease(made.id):
                left = call.args[0] if len(call.args) > 1 else stat(client, name, right).parent
                with views(client, name, (left, right)) as (lower, upper):
                    print_blob(client, layer_of(client, call, lower, upper, labels))
        finally:
            leases.delete(made.id)


def layer_of(
    client: Client, call: Call, lower: list[Mount], upper: list[Mount], labels: dict[str, str]
) -> str:
    """The digest of the layer that the daemon makes of a difference."""
    request = DiffRequest(
        left=lower,
        right=upper,
        media_type=call.str("media-type"),
        ref=call.str("ref"),
        labels=labels,
    )
    made = client.unary(DIFF + "Diff", request, DiffResponse, timeout=DIFF_SECONDS).diff
    if made is None:
        raise UsageError("the server made no diff")
    return made.digest


class views:  # noqa: N801 used as a function
    """Read-only mounts of two snapshots, their views (the lease's) removed at the end."""

    def __init__(self, client: Client, snapshotter: str, keys: tuple[str, str]) -> None:
        self._client, self._snapshotter, self._keys = client, snapshotter, keys
        self._made: list[str] = []

    def __enter__(self) -> tuple[list[Mount], list[Mount]]:
        try:
            return self._mounts(self._keys[0], "lower"), self._mounts(self._keys[1], "upper")
        except BaseException:
            self.__exit__()
            raise

    def _mounts(self, key: str, side: str) -> list[Mount]:
        if not key:
            return []
        if KINDS[stat(self._client, self._snapshotter, key).kind] != "Committed":
            request = MountsRequest(snapshotter=self._snapshotter, key=key)
            return list(self._client.unary(SNAPSHOTS + "Mounts", request, MountsResponse).mounts)
        view_key = f"{key}-{side}-view-{time.time_ns()}"
        asked = ViewSnapshotRequest(snapshotter=self._snapshotter, key=view_key, parent=key)
        answer = self._client.unary(SNAPSHOTS + "View", asked, ViewSnapshotResponse)
        self._made.append(view_key)
        return list(answer.mounts)

    def __exit__(self, *_: object) -> None:
        for key in self._made:
            request = RemoveSnapshotRequest(snapshotter=self._snapshotter, key=key)
            self._client.unary(SNAPSHOTS + "Remove", request, Empty)


def unpack(call: Call) -> None:
    """Unpack an image by its digest."""
    from kontti.cmd.ctr.image_files import unpack as run

    run(call)


_TARGET = (Flag("target,t", STRING, "mount target path"), Flag("mounts", BOOL, "print the mounts"))
COMMANDS = (
    Command("commit", commit, "commit an active snapshot", args="<key> <active>"),
    Command(
        "diff",
        diff,
        "get the diff of two snapshots",
        args="[flags] <idA> [<idB>]",
        flags=[
            Flag("media-type", default="application/vnd.oci.image.layer.v1.tar+gzip"),
            Flag("ref"),
            Flag("keep", BOOL),
            Flag("label", LIST),
        ],
    ),
    Command("info", info, "get info about a snapshot", args="<key>"),
    Command("list,ls", list_, "list snapshots"),
    Command(
        "mounts,m,mount",
        mounts,
        "mount gets mount commands",
        args="<target> <key>",
        flags=[Flag("temp", BOOL, "have the daemon mount all, and print a bind of that")],
    ),
    Command("prepare", prepare, "prepare a snapshot", args="<key> [<parent>]", flags=_TARGET),
    Command("delete,del,remove,rm", remove, "remove snapshots", args="<key> [<key>, ...]"),
    Command("label", label, "add labels to content", args="<name> [<label>=<value> ...]"),
    Command(
        "unpack",
        unpack,
        "unpack applies layers from a manifest to a snapshot",
        args="[flags] <digest>",
        flags=[SNAPSHOTTER, Flag("sync-fs", BOOL)],
    ),
    Command("tree", tree, "display tree view of snapshot branches"),
    Command("usage", usage, "usage snapshots", args="[<key>, ...]", flags=[Flag("b", BOOL)]),
    Command("view", view, "create a read-only snapshot", args="<key> [<parent>]", flags=_TARGET),
)
