"""``ctr images``."""

from __future__ import annotations

from kontti.cmd.ctr.content import registry_flags
from kontti.cmd.ctr.grammar import BOOL, INT, LIST, Call, Command, Flag, UsageError
from kontti.cmd.ctr.hints import hint_elsewhere
from kontti.cmd.ctr.output import binary_size, error, labels_text, warn, write_table
from kontti.cmd.ctr.session import IMAGES, SNAPSHOTTER, connect, key_values
from kontti.errors import AlreadyExists, Error, NotFound
from kontti.wire.messages.google import Empty, FieldMask
from kontti.wire.messages.services.images.v1.images import (
    CreateImageRequest,
    CreateImageResponse,
    DeleteImageRequest,
    GetImageRequest,
    GetImageResponse,
    Image,
    ListImagesRequest,
    ListImagesResponse,
    UpdateImageRequest,
    UpdateImageResponse,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kontti.client.client import Client
    from kontti.content.base import Provider
    from kontti.values import Descriptor


def images(client: Client, filters: list[str]) -> list[Image]:
    """Those that match, by name."""
    request = ListImagesRequest(filters=filters)
    return client.unary(IMAGES + "List", request, ListImagesResponse).images


def get(client: Client, name: str) -> Image:
    """Raises NotFound."""
    answer = client.unary(IMAGES + "Get", GetImageRequest(name=name), GetImageResponse)
    return answer.image or Image()


def list_(call: Call) -> None:
    """Name, type, digest, size, platforms and labels of each."""
    with connect(call) as client:
        found = images(client, call.args)
        if call.bool("quiet"):
            for image in found:
                print(image.name)
            return
        if not found:
            if not call.args:
                hint_elsewhere(client, call, "images", lambda name: count(client, name))
            print("REF TYPE DIGEST SIZE PLATFORMS LABELS ")
            return
        rows = [row_of(client, image) for image in found]
    write_table([("REF", "TYPE", "DIGEST", "SIZE", "PLATFORMS", "LABELS"), *rows])


def count(client: Client, namespace: str) -> int:
    """How many images there are in a namespace."""
    request = ListImagesRequest()
    answer = client.unary(IMAGES + "List", request, ListImagesResponse, namespace=namespace)
    return len(answer.images)


def row_of(client: Client, image: Image) -> tuple[str, ...]:
    """One image's line; a size or platform that cannot be told is a dash."""
    from kontti.client.content import RemoteContent
    from kontti.client.convert import descriptor_from_wire

    target = descriptor_from_wire(image.target)
    content = RemoteContent(client)
    try:
        size = binary_size(total_size(content, target))
    except Error as problem:
        error(f"calculating size for image {image.name}", problem.message)
        size = "-"
    labels = labels_text(image.labels)
    shown = platforms_text(content, target)
    return image.name, target.media_type, target.digest, size, shown, labels


def total_size(content: Provider, target: Descriptor) -> int:
    """Bytes of the best manifest for this host and all below it, as far as descriptors tell."""
    from kontti.images.image_check import size
    from kontti.images.platforms import default, only

    return size(content, target, only(default()))


def platforms_text(content: Provider, target: Descriptor) -> str:
    """``linux/amd64,linux/arm64/v8``; a dash where it cannot be told."""
    from kontti.images.graph import platforms
    from kontti.images.platforms import format_platform

    try:
        names = {format_platform(platform) for platform in platforms(content, target)}
    except Error:
        return "-"
    return ",".join(sorted(names)) or "-"


def check(call: Call) -> None:
    """Whether each image's content is here, and unpacked."""
    from kontti.client.content import RemoteContent
    from kontti.client.convert import descriptor_from_wire
    from kontti.client.stores import RemoteSnapshotter
    from kontti.cmd.ctr.transfers import snapshotter
    from kontti.images import image_check
    from kontti.images.platforms import default, only

    rows = []
    with connect(call) as client:
        content, matcher = RemoteContent(client), only(default())
        stat = RemoteSnapshotter(client, snapshotter(call)).stat
        for image in images(client, call.args):
            target = descriptor_from_wire(image.target)
            status = image_check.check(content, target, matcher)
            required, present = len(status.required), len(status.present)
            size, here = status.size, status.present_size
            unpacked = status.complete and image_check.is_unpacked(content, target, matcher, stat)
            if call.bool("quiet"):
                if status.complete:
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


def tag(call: Call) -> None:
    """Give an image more names on this side; prints each."""
    source = call.arg(0, "please provide an image reference to tag from")
    call.arg(1, "please provide an image reference to tag to")
    with connect(call) as client:
        image = get(client, source)
        for name in call.args[1:]:
            made = Image(name=name, target=image.target, labels=image.labels)
            try:
                client.unary(IMAGES + "Create", CreateImageRequest(image=made), CreateImageResponse)
            except AlreadyExists:
                if not call.bool("force"):
                    raise
                client.unary(IMAGES + "Delete", DeleteImageRequest(name=name), Empty)
                client.unary(IMAGES + "Create", CreateImageRequest(image=made), CreateImageResponse)
            print(name)


def label(call: Call) -> None:
    """Set and clear labels; prints what the image has then."""
    name = call.arg(0, "please specify an image")
    labels = key_values(call.args[1:])
    paths = ["labels"] if call.bool("replace-all") else [f"labels.{key}" for key in labels]
    request = UpdateImageRequest(
        image=Image(name=name, labels=labels), update_mask=FieldMask(paths=paths)
    )
    with connect(call) as client:
        answer = client.unary(IMAGES + "Update", request, UpdateImageResponse)
    shown = answer.image.labels if answer.image else {}
    print(",".join(f"{key}={value}" for key, value in shown.items()))


def remove(call: Call) -> int:
    """Remove names; what nothing refers to any more is collected."""
    call.arg(0, "please provide an image reference to remove")
    failure = 0
    with connect(call) as client:
        for number, name in enumerate(call.args, 1):
            sync = call.bool("sync") and number == len(call.args)
            try:
                client.unary(IMAGES + "Delete", DeleteImageRequest(name=name, sync=sync), Empty)
            except NotFound:
                warn(f"{name}: image not found")
                continue
            except Error as problem:
                failure = 1
                error(f"unable to delete {name}", problem.message)
                continue
            print(name)
    return failure


def usage(call: Call) -> None:
    """What an image's snapshots take."""
    from kontti.client.content import RemoteContent
    from kontti.client.convert import descriptor_from_wire
    from kontti.client.stores import RemoteSnapshotter
    from kontti.cmd.ctr.transfers import snapshotter
    from kontti.images.graph import find_manifest
    from kontti.images.identity import chain_ids
    from kontti.images.manifest import read_config
    from kontti.images.platforms import default, only

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


def inspect(call: Call) -> None:
    """An image's tree: its descriptors, one below the other."""
    from kontti.client.content import RemoteContent
    from kontti.client.convert import descriptor_from_wire
    from kontti.images.manifest import children

    name = call.arg(0, "please provide an image reference")
    with connect(call) as client:
        content = RemoteContent(client)
        stack = [(descriptor_from_wire(get(client, name).target), 0)]
        print(name)
        while stack:
            descriptor, depth = stack.pop()
            indent = "   " * depth
            size = f"{descriptor.size} bytes"
            print(f"{indent}└── {descriptor.media_type} @{descriptor.digest} ({size})")
            try:
                below = list(children(content, descriptor))
            except NotFound:
                continue
            stack.extend((child, depth + 1) for child in reversed(below))


def transfer(name: str) -> object:
    """A function that does the transfer ``name``, imported when it is wanted."""

    def run(call: Call) -> None:
        from kontti.cmd.ctr import moves

        getattr(moves, name)(call)

    return run


def prune(call: Call) -> None:
    """Remove every image that no container uses."""
    from kontti.cmd.ctr.session import CONTAINERS
    from kontti.wire.messages.services.containers.v1.containers import (
        ListContainersRequest,
        ListContainersResponse,
    )

    if not call.bool("all"):
        raise UsageError("prune removes every image that is not used: say so with --all")
    with connect(call) as client:
        listed = client.unary(CONTAINERS + "List", ListContainersRequest(), ListContainersResponse)
        used = {container.image for container in listed.containers}
        for image in images(client, []):
            if image.name not in used:
                client.unary(IMAGES + "Delete", DeleteImageRequest(name=image.name), Empty)
                print(image.name)


_PLATFORMS = (Flag("platform", LIST), Flag("all-platforms", BOOL))
COMMANDS = (
    Command(
        "check",
        check,
        "check existing images to ensure all content is available locally",
        args="[flags] [<filter>, ...]",
        flags=[Flag("quiet,q", BOOL), SNAPSHOTTER],
    ),
    Command(
        "export",
        transfer("export"),  # type: ignore[arg-type]
        "export images",
        args="[flags] <out> <image> ...",
        flags=[
            *_PLATFORMS,
            Flag("skip-manifest-json", BOOL),
            Flag("skip-non-distributable", BOOL),
            Flag("local", BOOL),
        ],
    ),
    Command(
        "import",
        transfer("import_"),  # type: ignore[arg-type]
        "import images",
        args="[flags] <in>",
        flags=[
            *_PLATFORMS,
            SNAPSHOTTER,
            Flag("base-name"),
            Flag("digests", BOOL),
            Flag("skip-digest-for-named", BOOL),
            Flag("index-name"),
            Flag("no-unpack", BOOL),
            Flag("local", BOOL),
            Flag("compress-blobs", BOOL),
            Flag("discard-unpacked-layers", BOOL),
            Flag("sync-fs", BOOL),
            Flag("label", LIST),
        ],
    ),
    Command(
        "inspect,i", inspect, "inspect an image", args="<image>", flags=[Flag("content", BOOL)]
    ),
    Command(
        "list,ls",
        list_,
        "list images known to containerd",
        args="[flags] [<filter>, ...]",
        flags=[Flag("quiet,q", BOOL)],
    ),
    Command(
        "pull",
        transfer("pull"),  # type: ignore[arg-type]
        "pull an image from a remote",
        args="[flags] <ref>",
        flags=[
            *registry_flags(),
            *_PLATFORMS,
            SNAPSHOTTER,
            Flag("label", LIST),
            Flag("all-metadata", BOOL),
            Flag("skip-metadata", BOOL),
            Flag("print-chainid", BOOL),
            Flag("max-concurrent-downloads", INT),
            Flag("local", BOOL),
            Flag("sync-fs", BOOL),
        ],
    ),
    Command("prune", prune, "remove unused images", flags=[Flag("all", BOOL)]),
    Command(
        "push",
        transfer("push"),  # type: ignore[arg-type]
        "push an image to a remote",
        args="[flags] <remote> [<local>]",
        flags=[
            *registry_flags(),
            Flag("manifest"),
            Flag("manifest-type", default="application/vnd.oci.image.manifest.v1+json"),
            Flag("platform", LIST),
            Flag("max-concurrent-uploaded-layers", INT),
            Flag("local", BOOL),
            Flag("allow-non-distributable-blobs", BOOL),
        ],
    ),
    Command(
        "delete,del,remove,rm",
        remove,
        "remove one or more images by reference",
        args="[flags] <ref> [<ref>, ...]",
        flags=[Flag("sync", BOOL)],
    ),
    Command(
        "tag",
        transfer("tag"),  # type: ignore[arg-type]
        "tag an image",
        args="[flags] <source_ref> <target_ref> [<target_ref>, ...]",
        flags=[Flag("force", BOOL), Flag("local", BOOL), Flag("skip-reference-check", BOOL)],
    ),
    Command(
        "label",
        label,
        "set and clear labels for an image",
        args="[flags] <name> [<key>=<value>, ...]",
        flags=[Flag("replace-all,r", BOOL)],
    ),
    Command(
        "usage",
        usage,
        "display usage of snapshots for a given image ref",
        args="[flags] <ref>",
        flags=[SNAPSHOTTER],
    ),
)
