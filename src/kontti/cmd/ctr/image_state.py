"""``ctr images check`` and ``usage``: what of an image is here, and what it takes."""

from __future__ import annotations

from kontti.client.content import RemoteContent
from kontti.client.convert import descriptor_from_wire
from kontti.client.stores import RemoteSnapshotter
from kontti.cmd.ctr.grammar import Call
from kontti.cmd.ctr.images import get, images
from kontti.cmd.ctr.output import binary_size, write_table
from kontti.cmd.ctr.session import connect
from kontti.cmd.ctr.transfers import snapshotter
from kontti.errors import Error
from kontti.images import image_check
from kontti.images.graph import find_manifest
from kontti.images.identity import chain_ids
from kontti.images.manifest import read_config
from kontti.images.platforms import default, only


def check(call: Call) -> None:
    """Whether each image's content is here, and unpacked."""
    rows = []
    first: Error | None = None
    with connect(call) as client:
        content, matcher = RemoteContent(client), only(default())
        stat = RemoteSnapshotter(client, snapshotter(call)).stat
        for image in images(client, call.args):
            target = descriptor_from_wire(image.target)
            status = image_check.check(content, target, matcher)
            required, present = len(status.required), len(status.present)
            size, here = status.size, status.present_size
            unpacked = False
            try:
                # a snapshotter may have layers that are not here
                unpacked = image_check.is_unpacked(content, target, matcher, stat)
            except Error as error:
                problem = f"unable to check unpack for {image.name}: {error.message}"
                first = first or type(error)(problem)
            if call.bool("quiet"):
                if status.complete and unpacked:
                    print(image.name)
                continue
            rows.append(
                (
                    image.name,
                    target.media_type,
                    target.digest,
                    f"{status.word} ({present}/{required})",
                    f"{binary_size(here)}/{binary_size(size)}",
                    "true" if unpacked else "false",
                )
            )
    if not call.bool("quiet"):
        write_table([("REF", "TYPE", "DIGEST", "STATUS", "SIZE", "UNPACKED"), *rows])
    if first is not None:
        raise first


def usage(call: Call) -> None:
    """What an image's snapshots take."""
    name = call.arg(0, "please provide an image reference")
    with connect(call) as client:
        content = RemoteContent(client)
        target = descriptor_from_wire(get(client, name).target)
        _, manifest = find_manifest(content, target, only(default()))
        chains = chain_ids(read_config(content, manifest.config).diff_ids)
        store = RemoteSnapshotter(client, snapshotter(call))
        usages = [(chain, store.usage(chain)) for chain in chains]
    rows = [(chain, binary_size(u.size), str(u.inodes)) for chain, u in usages]
    size, inodes = sum(u.size for _, u in usages), sum(u.inodes for _, u in usages)
    write_table([("KEY", "SIZE", "INODES"), *rows, ("total", binary_size(size), str(inodes))])
