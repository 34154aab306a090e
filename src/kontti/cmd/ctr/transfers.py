"""Pull, push, import, export and fetch with ``--local``: on this side, over the daemon's stores."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

from kontti.client.stores import RemoteStores
from kontti.cmd.ctr.grammar import Call, UsageError
from kontti.cmd.ctr.progress import shown
from kontti.cmd.ctr.registries import selection, session
from kontti.cmd.ctr.session import DEFAULT_SNAPSHOTTER, key_values, namespace_of
from kontti.namespaces import Scope
from kontti.registry.resolver import Resolver
from kontti.transfer.base import PullOptions, Unpacking
from kontti.transfer.parts import Parts
from kontti.transfer.progress import Progress


class Remote:
    """The daemon's stores in the namespace of the global flags, for one command."""

    def __init__(self, call: Call) -> None:
        outer = call.globals or call
        self.scope = Scope.of(namespace_of(call))
        self.stores = RemoteStores(outer.str("address"), outer.float("connect-timeout") or 10.0)
        self.parts = Parts(self.stores, self.stores.applier)

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_: object) -> None:
        self.stores.close()


def snapshotter(call: Call) -> str:
    """The snapshotter that the command's flag names."""
    return call.str("snapshotter") or DEFAULT_SNAPSHOTTER


def pull(call: Call) -> None:
    """Pull an image and unpack it."""
    from kontti.transfer.pull import pull as run

    name = call.arg(0, "please provide an image reference to pull")
    options = PullOptions(
        select=selection(call),
        unpack=Unpacking(snapshotter(call), call.bool("sync-fs")),
        labels=key_values(call.list("label")),
        skip_metadata=call.bool("skip-metadata"),
        max_concurrent_downloads=call.int("max-concurrent-downloads") or 3,
    )
    with Remote(call) as remote, session(call) as registries:
        pulled = run(
            remote.parts, remote.scope, Resolver(registries), name, options, progress=shown()
        )
    if call.bool("print-chainid"):
        for unpacked in pulled.unpacked:
            print(f"image chain ID: {unpacked.chain_id}")


def fetch(call: Call) -> None:
    """Pull an image's content only."""
    from kontti.transfer.pull import pull as run

    name = call.arg(0, "please provide an image reference to fetch")
    options = PullOptions(
        select=selection(call),
        unpack=None,
        labels=key_values(call.list("label")),
        skip_metadata=call.bool("skip-metadata"),
        metadata_only=call.bool("metadata-only"),
    )
    with Remote(call) as remote, session(call) as registries:
        run(remote.parts, remote.scope, Resolver(registries), name, options, progress=shown())


def push(call: Call) -> None:
    """Push an image, or a manifest by its digest."""
    from kontti.transfer.push import PushOptions
    from kontti.transfer.push import push as run
    from kontti.values import Descriptor, Digest

    name = call.arg(0, "please provide a remote image reference to push")
    local = call.args[1] if len(call.args) > 1 else name
    with Remote(call) as remote, session(call) as registries:
        if call.str("manifest"):
            digest = Digest.parse(call.str("manifest"))
            size = remote.stores.content(remote.scope).info(digest).size
            target = Descriptor(call.str("manifest-type"), digest, size)
        else:
            target = remote.stores.images(remote.scope).get(local).target
        options = PushOptions(
            select=selection(call),
            allow_nondistributable=call.bool("allow-non-distributable-blobs"),
            max_concurrent_uploads=call.int("max-concurrent-uploaded-layers") or 3,
        )
        run(
            remote.stores,
            remote.scope,
            registries,
            name,
            target,
            options=options,
            progress=shown(),
        )


def import_(call: Call) -> None:
    """Import an archive from a file, or from stdin for ``-``."""
    from kontti.transfer.import_ import ImportOptions, import_archive

    path = call.arg(0, "please provide a path to import, or - for stdin")
    check_import(call)
    base = call.str("base-name")
    unpack = None if call.bool("no-unpack") else Unpacking(snapshotter(call), call.bool("sync-fs"))
    options = ImportOptions(
        prefix=base or f"import-{datetime.now(UTC):%Y-%m-%d}",
        filter_prefix=bool(base),
        digests=call.bool("digests"),
        skip_digest_for_named=call.bool("skip-digest-for-named"),
        index_name=call.str("index-name"),
        select=selection(call),
        unpack=unpack,
        labels=key_values(call.list("label")),
        compress=call.bool("compress-blobs"),
        discard_unpacked_layers=call.bool("discard-unpacked-layers"),
    )
    source = sys.stdin.buffer if path == "-" else open(path, "rb")  # noqa: SIM115 closed below
    with source, Remote(call) as remote:
        result = import_archive(
            remote.parts, remote.scope, source.read, options, progress=quiet_progress
        )
    for image in result.images:
        done = "...done" if unpack else ""
        verb = "unpacking" if unpack else "imported"
        print(f"{verb} {image.name} ({image.target.digest}){done}")


def check_import(call: Call) -> None:
    """Raises UsageError for flags that do not go together."""
    if call.bool("no-unpack") and call.bool("discard-unpacked-layers"):
        raise UsageError("--discard-unpacked-layers and --no-unpack are incompatible options")
    if call.bool("skip-digest-for-named") and not call.bool("digests"):
        raise UsageError("--skip-digest-for-named must be specified with --digests option")


def quiet_progress(_progress: Progress) -> None:
    """An import says what it did when it is done."""


def export(call: Call) -> None:
    """Write images as an archive to a file, or to stdout for ``-``."""
    from kontti.transfer.export import ExportOptions, export_images

    path = call.arg(0, "please provide both an output filename and an image reference to export")
    call.arg(1, "please provide both an output filename and an image reference to export")
    options = ExportOptions(
        select=selection(call),
        skip_manifest_json=call.bool("skip-manifest-json"),
        skip_nondistributable=call.bool("skip-non-distributable"),
    )
    target = sys.stdout.buffer if path == "-" else open(path, "wb")  # noqa: SIM115 closed below
    with target, Remote(call) as remote:
        export_images(remote.stores, remote.scope, call.args[1:], target.write, options)
