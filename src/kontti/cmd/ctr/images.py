"""``ctr images``."""

from __future__ import annotations

from kontti.cmd.ctr.content import registry_flags
from kontti.cmd.ctr.grammar import BOOL, DURATION, INT, LIST, Call, Command, Flag, UsageError
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
    from collections.abc import Callable

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
    from kontti.images.graph import walk
    from kontti.images.platforms import default, only

    found = walk(content, target, only(default()), limit=1)
    return sum(node.descriptor.size for node in found if not node.missing)


def platforms_text(content: Provider, target: Descriptor) -> str:
    """``linux/amd64,linux/arm64/v8``; a dash where it cannot be told."""
    from kontti.images.graph import platforms
    from kontti.images.platforms import format_platform

    try:
        names = {format_platform(platform) for platform in platforms(content, target)}
    except Error:
        return "-"
    return ",".join(sorted(names)) or "-"


def tag(call: Call) -> None:
    """Give an image more names on this side; prints each."""
    source = call.arg(0, "please provide an image reference to tag from")
    call.arg(1, "please provide an image reference to tag to")
    if not call.bool("skip-reference-check"):
        check_names(call.args[1:])
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


def check_names(names: list[str]) -> None:
    """Raises UsageError for a name that no client would take."""
    from kontti.registry.reference import docker_normalize

    for name in names:
        try:
            docker_normalize(name)
        except Error as problem:
            raise UsageError(
                f'error parsing reference: "{name}" is not a valid repository/tag: '
                f"{problem.message}"
            ) from None


def label(call: Call) -> None:
    """Set and clear labels; prints what the image has then."""
    name = call.arg(0, "please specify an image")
    labels = key_values(call.args[1:])
    paths = ["labels"] if call.bool("replace-all") else [f"labels.{key}" for key in labels]
    request = UpdateImageRequest(
        image=Image(name=name, labels=labels), update_mask=FieldMask(paths=paths)
    )
    with connect(call) as client:
        # an update that names no field is one of them all
        if paths:
            answer = client.unary(IMAGES + "Update", request, UpdateImageResponse)
            shown = answer.image.labels if answer.image else {}
        else:
            shown = get(client, name).labels
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


def later(module: str, name: str) -> Callable[[Call], None]:
    """A function of another module here, imported when it is wanted."""

    def run(call: Call) -> None:
        from importlib import import_module

        getattr(import_module(f"kontti.cmd.ctr.{module}"), name)(call)

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
        later("image_state", "check"),
        "check existing images to ensure all content is available locally",
        args="[flags] [<filter>, ...]",
        flags=[Flag("quiet,q", BOOL), SNAPSHOTTER],
    ),
    Command(
        "export",
        later("moves", "export"),
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
        later("moves", "import_"),
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
        "inspect,i",
        later("image_tree", "inspect"),
        "inspect an image",
        args="<image> [flags]",
        flags=[Flag("content", BOOL, "show JSON content")],
    ),
    Command(
        "convert",
        later("image_files", "convert"),
        "convert an image",
        args="[flags] <source_ref> <target_ref>",
        flags=[
            *_PLATFORMS,
            Flag("uncompress", BOOL, "convert tar.gz layers to uncompressed tar layers"),
            Flag("oci", BOOL, "convert Docker media types to OCI media types"),
            Flag("zstd", BOOL, "convert layers to tar.zstd layers"),
            Flag("erofs"),
            Flag("erofs-compressors"),
            Flag("erofs-mkfs-options"),
        ],
    ),
    Command(
        "mount",
        later("image_files", "mount"),
        "mount an image to a target path",
        args="[flags] <ref> [<target>]",
        flags=[
            *registry_flags(),
            SNAPSHOTTER,
            Flag("label", LIST),
            Flag("rw", BOOL, "enable write support on the mount"),
            Flag("platform", help="mount the image for the specified platform"),
            Flag("sync-fs", BOOL),
            Flag(
                "expiration,x", DURATION, "when the mount and its snapshot may go", default=3600.0
            ),
        ],
    ),
    Command(
        "unmount",
        later("image_files", "unmount"),
        "unmount the image from the target",
        args="[flags] <target>",
        flags=[
            *registry_flags(),
            SNAPSHOTTER,
            Flag("label", LIST),
            Flag("rm", BOOL, "remove the snapshot after a successful unmount"),
        ],
    ),
    Command(
        "build-erofs-cache",
        later("image_files", "build_erofs_cache"),
        "build an erofs layer content cache from an image's layers",
        args="[flags] <image_ref> <cache_dir>",
        flags=[
            Flag("compressors"),
            Flag("mkfs-options"),
            Flag("platform"),
            Flag("dmverity", BOOL),
        ],
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
        later("moves", "pull"),
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
        later("moves", "push"),
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
        later("moves", "tag"),
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
        later("image_state", "usage"),
        "display usage of snapshots for a given image ref",
        args="[flags] <ref>",
        flags=[SNAPSHOTTER],
    ),
)
