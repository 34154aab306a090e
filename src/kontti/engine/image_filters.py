"""Filters of image lists, in the words of docker's users."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from kontti.engine.base import Core
from kontti.errors import InvalidArgument, NotFound
from kontti.images.archive_names import familiar, has_tag
from kontti.images.graph import find_manifest
from kontti.images.manifest import read_config
from kontti.images.platforms import Everything
from kontti.metadata.base import Image
from kontti.namespaces import Scope

Test = Callable[[Image], bool]


def chosen(core: Core, scope: Scope, filters: Sequence[str]) -> list[Image]:
    """The images that all of ``filters`` (``key=value``) let through; raises InvalidArgument.

    ``reference`` takes a pattern, ``dangling`` true or false, ``label`` a key or ``key=value`` of
    the image's config, ``before`` and ``since`` another image.
    """
    images = list(core.stores.images(scope).list())
    tests = [_test(core, scope, images, text) for text in filters]
    return [image for image in images if all(test(image) for test in tests)]


def dangling(images: Sequence[Image]) -> frozenset[str]:
    """Names of images that nothing but a digest names: no tag has the same target."""
    tagged = {image.target.digest for image in images if is_tagged(image.name)}
    return frozenset(image.name for image in images if image.target.digest not in tagged)


def is_tagged(name: str) -> bool:
    """Whether a name is one that a person gave, and not only a digest."""
    return not name.startswith("sha256:") and has_tag(name)


def _test(core: Core, scope: Scope, images: Sequence[Image], text: str) -> Test:
    key, _, value = text.partition("=")
    if key == "reference" and value:
        return lambda image: matches(image.name, value)
    if key == "dangling" and value in ("true", "false"):
        wanted, names = value == "true", dangling(images)
        return lambda image: (image.name in names) is wanted
    if key == "label" and value:
        return lambda image: _has_label(core, scope, image, value)
    if key in ("before", "since") and value:
        return _by_time(images, value, before=key == "before")
    raise InvalidArgument(
        f"filter {text!r:.120}: reference=PATTERN, dangling=true|false, label=KEY[=VALUE], "
        "before=IMAGE and since=IMAGE are known"
    )


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern means an image: by its whole name or docker's short one, tag or not."""
    names = {name, familiar(name)} - {""}
    bare = {n.rpartition(":")[0] for n in names if has_tag(n)}
    return any(fnmatchcase(candidate, pattern) for candidate in names | bare)


def _has_label(core: Core, scope: Scope, image: Image, wanted: str) -> bool:
    content = core.stores.content(scope)
    try:
        _, manifest = find_manifest(content, image.target, Everything())
        labels = read_config(content, manifest.config).run.labels
    except NotFound:
        return False
    key, equals, value = wanted.partition("=")
    return key in labels and (not equals or labels[key] == value)


def _by_time(images: Sequence[Image], name: str, *, before: bool) -> Test:
    found = [image for image in images if matches(image.name, name)]
    if len(found) != 1:
        raise (
            NotFound(f'image "{name}"')
            if not found
            else InvalidArgument(f"{name!r} may be any of {len(found)} images: give the whole name")
        )
    border = found[0].created_at
    return lambda image: image.created_at < border if before else image.created_at > border
