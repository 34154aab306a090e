"""Root file systems for user namespaces: owners of the image's files as a namespace maps them."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time

from kontti.client.stores import RemoteSnapshotter
from kontti.cmd.ctr.session import INTROSPECTION
from kontti.errors import AlreadyExists, Error, InvalidArgument, NotFound
from kontti.linux.mounts import mounted
from kontti.wire.messages.services.introspection.v1.introspection import (
    PluginsRequest,
    PluginsResponse,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from kontti.client.client import Client
    from kontti.oci.spec import IdMapping

UID_LABEL = "containerd.io/snapshot/uidmapping"
GID_LABEL = "containerd.io/snapshot/gidmapping"
REMAPS, REMAPS_ONLY = "remap-ids", "only-remap-ids"
_SPECIAL = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX


class Mapping:
    """A user namespace's mappings."""

    def __init__(self, uids: Sequence[IdMapping], gids: Sequence[IdMapping]) -> None:
        self.uids = sorted(uids, key=lambda one: one["containerID"])
        self.gids = sorted(gids, key=lambda one: one["containerID"])

    def labels(self) -> dict[str, str]:
        """For a snapshotter that maps owners by itself."""
        return {UID_LABEL: _text(self.uids), GID_LABEL: _text(self.gids)}

    def key(self, parent: str) -> str:
        """The name of ``parent``'s mapped copy: containerd's clients find the same one by it."""
        ids = {"UidMap": self.uids, "GidMap": self.gids}
        document = json.dumps({"Parent": parent, "IDMap": ids}, separators=(",", ":"))
        return f"sha256:{hashlib.sha256(document.encode()).hexdigest()}"


def _text(mappings: Sequence[IdMapping]) -> str:
    return ",".join(f"{m['containerID']}:{m['hostID']}:{m['size']}" for m in mappings)


def on_host(id: int, mappings: Sequence[IdMapping]) -> int:
    """Who ``id`` inside is outside; raises InvalidArgument for one that has no place there."""
    for mapping in mappings:
        offset = id - mapping["containerID"]
        if 0 <= offset < mapping["size"]:
            return mapping["hostID"] + offset
    raise InvalidArgument(f"id {id} of a file in the image is not mapped")


def remapped(client: Client, name: str, parent: str, mapping: Mapping) -> str:
    """The snapshot of ``parent`` with mapped owners, made now where it is not there."""
    store = RemoteSnapshotter(client, name)
    key = mapping.key(parent)
    try:
        store.stat(key)
    except NotFound:
        pass
    else:
        return key
    # not the same for all: one that a killed client left is no other's
    draft = f"{key}-remap-{time.time_ns()}"
    mounts = store.prepare(draft, parent)
    try:
        with mounted(mounts) as root:
            chown_tree(root, mapping)
        store.commit(key, draft)
    except AlreadyExists:
        store.remove(draft)  # another client was quicker
    except BaseException:
        store.remove(draft)
        raise
    return key


def chown_tree(root: str, mapping: Mapping) -> None:
    """Give every file to whom its owner is mapped; raises InvalidArgument, OSError."""
    given: set[tuple[int, int]] = set()
    for _, folders, files, folder in os.fwalk(root, follow_symlinks=False):
        # a directory is given when it is walked, a link to one is not walked
        for name in (".", *files, *folders):
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            walked = stat.S_ISDIR(found.st_mode) and name != "."
            if walked or (found.st_dev, found.st_ino) in given:
                continue
            if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
                given.add((found.st_dev, found.st_ino))
            _give(name, folder, found, mapping)


def _give(name: str, folder: int, found: os.stat_result, mapping: Mapping) -> None:
    uid, gid = on_host(found.st_uid, mapping.uids), on_host(found.st_gid, mapping.gids)
    os.chown(name, uid, gid, dir_fd=folder, follow_symlinks=False)
    if found.st_mode & _SPECIAL and not stat.S_ISLNK(found.st_mode):
        # chown(2) takes the set-user-ID and set-group-ID bits away
        os.chmod(name, stat.S_IMODE(found.st_mode), dir_fd=folder)


def parent_for_labels(client: Client, name: str, parent: str, mapping: Mapping) -> str:
    """What a snapshot with the mapping's labels is made of: ``parent``, or its mapped copy.

    Raises Error where the snapshotter maps by itself, but not on this host.
    """
    able = capabilities(client, name)
    if REMAPS in able:
        return parent
    if REMAPS_ONLY in able:
        raise Error(
            f'snapshotter "{name}" doesn\'t support idmap mounts on this host, configure '
            "`slow_chown` to allow a slower and expensive fallback"
        )
    return remapped(client, name, parent, mapping)


def capabilities(client: Client, name: str) -> list[str]:
    """What a snapshotter says it can do."""
    request = PluginsRequest(filters=[f"type==io.containerd.snapshotter.v1, id=={name}"])
    found = client.unary(INTROSPECTION + "Plugins", request, PluginsResponse).plugins
    return [able for plugin in found for able in plugin.capabilities]
