"""Images of an engine: told of, found and fetched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import BinaryIO

from kontti.engine.base import Core
from kontti.engine.values import ImageInfo
from kontti.errors import NotFound
from kontti.images.graph import find_manifest, platforms
from kontti.images.image_check import size
from kontti.images.manifest import read_config
from kontti.images.platforms import default, format_platform, only, parse
from kontti.metadata.base import Image
from kontti.namespaces import Scope
from kontti.registry.reference import docker_normalize
from kontti.transfer.base import DEFAULT_SNAPSHOTTER, PullOptions, Unpacking
from kontti.transfer.progress import OnProgress, silent
from kontti.values import Descriptor


def find(core: Core, scope: Scope, name: str) -> Image:
    """An image by its name or docker's short form of it; raises NotFound."""
    images = core.stores.images(scope)
    try:
        return images.get(name)
    except NotFound:
        return images.get(docker_normalize(name))


def info(core: Core, scope: Scope, image: Image) -> ImageInfo:
    """What is told of an image; one whose content is not there has no size."""
    content = core.stores.content(scope)
    try:
        names = {format_platform(p) for p in platforms(content, image.target)}
        bytes_ = size(content, image.target, only(default()))
    except NotFound:
        names, bytes_ = set(), 0
    shown = tuple(sorted(names))
    return ImageInfo(image.name, image.target.digest, bytes_, shown, image.created_at)


def details(core: Core, scope: Scope, image: Image) -> dict[str, object]:
    """All that is recorded of an image, for this host's platform; raises NotFound."""
    told = info(core, scope, image)
    content = core.stores.content(scope)
    _, manifest = find_manifest(content, image.target, only(default()))
    config = read_config(content, manifest.config)
    run = config.run
    return {
        "name": image.name,
        "digest": str(image.target.digest),
        "media_type": image.target.media_type,
        "size": told.size,
        "platforms": list(told.platforms),
        "labels": dict(image.labels),
        "created_at": image.created_at,
        "config": {
            "user": run.user,
            "env": list(run.env),
            "entrypoint": list(run.entrypoint),
            "cmd": list(run.cmd),
            "working_dir": run.working_dir,
            "stop_signal": run.stop_signal,
        },
        "layers": [
            {"media_type": layer.media_type, "digest": str(layer.digest), "size": layer.size}
            for layer in manifest.layers
        ],
    }


def fetch(
    core: Core,
    scope: Scope,
    name: str,
    credentials: tuple[str, str],
    *,
    plain_http: bool,
    progress: OnProgress | None,
    snapshotter: str = DEFAULT_SNAPSHOTTER,
) -> Image:
    """Pull and unpack an image; layers that the snapshotter gets by itself are not fetched."""
    from kontti.engine.registries import open_session
    from kontti.registry.resolver import Resolver
    from kontti.transfer.pull import pull

    name, (user, password) = docker_normalize(name), credentials
    # those of every daemon need not be asked about
    lazy = snapshotter != DEFAULT_SNAPSHOTTER and core.is_lazy(snapshotter)
    options = PullOptions(unpack=Unpacking(snapshotter, lazy_name=name if lazy else ""))
    with open_session(name, plain_http=plain_http, user=user, password=password) as session:
        parts, resolver = core.transfer_parts(), Resolver(session)
        return pull(parts, scope, resolver, name, options, progress=progress or silent).image


def send(
    core: Core,
    scope: Scope,
    name: str,
    target: Descriptor,
    credentials: tuple[str, str],
    *,
    plain_http: bool,
    progress: OnProgress | None,
) -> None:
    """Push an image to its registry."""
    from kontti.engine.registries import open_session
    from kontti.transfer.push import push

    name, (user, password) = docker_normalize(name), credentials
    with open_session(name, plain_http=plain_http, user=user, password=password) as session:
        push(core.stores, scope, session, name, target, progress=progress or silent)


def store(core: Core, scope: Scope, source: BinaryIO, progress: OnProgress | None) -> list[Image]:
    """Store the images of an archive."""
    from kontti.transfer.import_ import ImportOptions, import_archive

    options = ImportOptions(prefix="import")
    parts = core.transfer_parts()
    found = import_archive(parts, scope, source.read, options, progress=progress or silent)
    return list(found.images)


def tag(core: Core, scope: Scope, source: str, names: Sequence[str]) -> list[Image]:
    """Give an image more names, whatever those stood for before. All are read before the first."""
    from kontti.transfer.records import record

    image = find(core, scope, source)
    wanted = [docker_normalize(name) for name in names]
    images = core.stores.images(scope)
    return [record(images, name, image.target, image.labels) for name in wanted]


def save(
    core: Core,
    scope: Scope,
    names: Sequence[str],
    write: Callable[[bytes], object],
    platform: str = "",
) -> None:
    """Write images as one archive: an OCI layout that is a docker archive too.

    ``platform`` "" is this host's, ``all`` every one that is here. Raises NotFound before the
    first byte.
    """
    from kontti.transfer.base import Selection
    from kontti.transfer.export import ExportOptions, export_images

    found = [find(core, scope, name).name for name in names]
    asked = () if platform in ("", "all") else (parse(platform),)
    select = Selection(asked, all_platforms=platform == "all")
    export_images(core.stores, scope, found, write, ExportOptions(select))
