"""``ctr images convert``, ``mount`` and ``unmount``, and ``ctr snapshots unpack``."""

from __future__ import annotations

import secrets
import time

from kontti.client.stores import RemoteSnapshotter
from kontti.cmd.ctr.grammar import Call, UsageError
from kontti.cmd.ctr.output import rfc3339, warn
from kontti.cmd.ctr.registries import selection
from kontti.cmd.ctr.transfers import Remote, snapshotter
from kontti.errors import AlreadyExists, Error, InvalidArgument, NotFound, Unimplemented
from kontti.images.graph import find_manifest
from kontti.images.identity import chain_id
from kontti.images.manifest import read_config
from kontti.images.platforms import Everything, Matcher, any_of, default, only, only_strict, parse
from kontti.linux.mounts import mount_all, unmount_all
from kontti.namespaces import Scope
from kontti.transfer.base import Selection, Unpacking
from kontti.transfer.labels import SNAPSHOT_PREFIX
from kontti.transfer.lease import EXPIRE_LABEL
from kontti.transfer.parts import unpack as run_unpack
from kontti.values import Descriptor, Digest, Mount

EROFS = ("raw", "zstd")


def convert(call: Call) -> None:
    """Make another image of an image; prints its digest."""
    from kontti.images.convert import Conversion
    from kontti.transfer.convert import convert_image

    source = call.arg(0, "src and target image need to be specified")
    target = call.arg(1, "src and target image need to be specified")
    refuse_erofs(call)
    flags = {name: call.bool(name) for name in ("uncompress", "oci", "zstd")}
    wanted = Conversion(platforms=_platforms(call), **flags)
    with Remote(call) as remote:
        image = convert_image(remote.stores, remote.scope, source, target, wanted)
    print(image.target.digest)


def refuse_erofs(call: Call) -> None:
    """Layers that are erofs images are no layers of ours: snapshots are made so, not blobs."""
    form = call.str("erofs")
    if "erofs" in call.given and form not in EROFS:
        raise UsageError(f'unsupported erofs format "{form}", supported: raw, zstd')
    if "erofs" in call.given:
        raise Unimplemented("erofs layers: the erofs snapshotter makes its images of tar layers")


def build_erofs_cache(call: Call) -> None:
    """Not there; says so."""
    call.arg(0, "please provide an image reference")
    call.arg(1, "please provide a cache directory")
    raise Unimplemented("erofs layer cache: the erofs snapshotter makes its images of tar layers")


def _platforms(call: Call) -> Matcher:
    chosen = selection(call)
    if chosen.all_platforms:
        return Everything()
    return any_of(chosen.platforms) if chosen.platforms else only_strict(default())


def mount(call: Call) -> None:
    """Mount an image's root file system; prints its chain id and where it is."""
    name = call.arg(0, "please provide an image reference to mount")
    target = call.args[1] if len(call.args) > 1 else ""
    key = target or f"ctr-images-mount-{time.time_ns() % 10**9}-{secrets.token_urlsafe(3)}"
    with Remote(call) as remote:
        made = _lease(call, remote, key)
        scope = Scope(remote.scope.namespace, key)
        snapshots = remote.stores.snapshots(scope, snapshotter(call))
        try:
            image = remote.stores.images(scope).get(name)
            chain = _unpacked(call, remote, scope, image.target)
            print(chain)
            place = _mounted(call, snapshots, key, chain, target)
        except BaseException:
            if made:
                remote.stores.leases(remote.scope).delete(key)
            raise
    print(place)


def _lease(call: Call, remote: Remote, key: str) -> bool:
    """Keep the snapshot while it is mounted, and not for ever; whether the lease is new."""
    expires = time.time_ns() + int(call.float("expiration") * 1e9)
    labels = {
        EXPIRE_LABEL: rfc3339(expires, fraction=False),
        SNAPSHOT_PREFIX + snapshotter(call): key,
    }
    try:
        remote.stores.leases(remote.scope).create(key, labels)
    except AlreadyExists:
        return False
    return True


def _unpacked(call: Call, remote: Remote, scope: Scope, target: Descriptor) -> str:
    asked = call.str("platform")
    platform = parse(asked) if asked else default()
    content = remote.stores.content(scope)
    found, manifest = find_manifest(content, target, only(platform))
    options = Unpacking(snapshotter(call), call.bool("sync-fs"))
    # the manifest alone: an index may have others that are not here
    run_unpack(remote.parts, scope, found, options, Selection((platform,)))
    return chain_id(read_config(content, manifest.config).diff_ids)


def _mounted(call: Call, snapshots: RemoteSnapshotter, key: str, chain: str, target: str) -> str:
    try:
        make = snapshots.prepare if call.bool("rw") else snapshots.view
        mounts = make(key, chain)
    except AlreadyExists:
        # someone's from before, with what was written to it: a failure must not take it
        return _at(snapshots.mounts(key), target)
    try:
        return _at(mounts, target)
    except BaseException:
        try:
            snapshots.remove(key)
        except Error as error:
            warn(f"snapshot {key} stays: {error.message}")
        raise


def _at(mounts: list[Mount], target: str) -> str:
    if target:
        mount_all(mounts, target)
        return target
    if len(mounts) == 1 and mounts[0].type == "bind":
        return mounts[0].source
    kinds = ", ".join(mount.type for mount in mounts)
    raise InvalidArgument(f"cannot handle returned mounts without a target: {kinds}")


def unmount(call: Call) -> None:
    """Take an image's root file system away; with --rm its snapshot too."""
    target = call.arg(0, "please provide a target path to unmount from")
    unmount_all(target)
    if call.bool("rm"):
        with Remote(call) as remote:
            snapshots = remote.stores.snapshots(remote.scope, snapshotter(call))
            for remove in (remote.stores.leases(remote.scope).delete, snapshots.remove):
                try:
                    remove(target)
                except NotFound:
                    continue
    print(target)


def unpack(call: Call) -> None:
    """Unpack the image of that digest into the snapshotter."""
    digest = Digest.parse(call.arg(0, "please provide the digest of a manifest"))
    outer = call.globals
    name = snapshotter(call) if "snapshotter" in call.given or not outer else snapshotter(outer)
    options = Unpacking(name, call.bool("sync-fs"))
    with Remote(call) as remote:
        for image in remote.stores.images(remote.scope).list():
            if image.target.digest == digest:
                print(f"unpacking {digest} ({image.target.media_type})...", end="", flush=True)
                try:
                    run_unpack(remote.parts, remote.scope, image.target, options)
                except BaseException:
                    print()
                    raise
                print("done")
                return
    raise UsageError("manifest not found")
