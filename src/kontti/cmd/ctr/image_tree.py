"""``ctr images inspect``: an image's tree, drawn as containerd 2.x draws it."""

from __future__ import annotations

import json
from collections.abc import Iterator

from kontti.client.content import RemoteContent
from kontti.client.convert import descriptor_from_wire, nanoseconds
from kontti.cmd.ctr.grammar import Call
from kontti.cmd.ctr.images import get
from kontti.cmd.ctr.output import go_time
from kontti.cmd.ctr.session import connect
from kontti.errors import InvalidArgument, NotFound
from kontti.images.graph import MAX_DEPTH
from kontti.images.manifest import children, read_document
from kontti.images.media_types import kind_of
from kontti.images.platforms import format_platform
from kontti.values import Descriptor

MIDDLE, LAST, THROUGH, BLANK = "├── ", "└── ", "│   ", "    "


def inspect(call: Call) -> None:
    """Print an image's record and tree; with --content its documents and labels too."""
    name = call.arg(0, "please provide an image reference")
    with connect(call) as client:
        image = get(client, name)
        print(image.name)
        print(f"{THROUGH} Created: {go_time(nanoseconds(image.created_at))}")
        print(f"{THROUGH} Updated: {go_time(nanoseconds(image.updated_at))}")
        for key in sorted(image.labels):
            print(f"{THROUGH} Label {json.dumps(key)}: {json.dumps(image.labels[key])}")
        tree = Tree(RemoteContent(client), call.bool("content"))
        for line in tree.lines(descriptor_from_wire(image.target), LAST, BLANK):
            print(line)


class Tree:
    """Draws what a descriptor refers to; ``content`` says whether documents are shown."""

    def __init__(self, store: RemoteContent, content: bool) -> None:
        self._store = store
        self._content = content

    def lines(self, descriptor: Descriptor, first: str, rest: str, depth: int = 0) -> Iterator[str]:
        """A blob and what is below it; ``first`` is before its own line, ``rest`` before others."""
        if depth > MAX_DEPTH:
            raise InvalidArgument(f"image refers to too many blobs at {descriptor.digest}")
        yield first + _title(descriptor)
        through = rest + THROUGH
        if descriptor.platform is not None and descriptor.platform.architecture:
            yield f"{through} Platform: {format_platform(descriptor.platform)}"
        try:
            below = children(self._store, descriptor)
        except NotFound:
            yield f"{rest + LAST} Content does not exist locally, skipping"
            return
        yield from self._shown(descriptor, through)
        for number, child in enumerate(below, 1):
            over = number == len(below)
            own, its = rest + (LAST if over else MIDDLE), rest + (BLANK if over else THROUGH)
            if kind_of(descriptor.media_type) == "index":
                yield from self.lines(child, own, its, depth + 1)
            else:
                yield own + _title(child)
                # a layer is no document, and may be large
                if number == 1:
                    yield from self._shown(child, its)

    def _shown(self, descriptor: Descriptor, before: str) -> Iterator[str]:
        if not self._content:
            return
        try:
            labels = self._store.info(descriptor.digest).labels
        except NotFound:
            return
        if labels:
            yield f"{before}┌────────Labels─────────"
            for key in sorted(labels):
                yield f"{before}│{json.dumps(key)}: {json.dumps(labels[key])}"
            yield f"{before}└───────────────────────"
        if descriptor.media_type.endswith("json"):
            yield f"{before}┌────────Content────────"
            text = json.dumps(json.loads(read_document(self._store, descriptor)), indent=3)
            yield from (f"{before}│{line}" for line in text.splitlines())
            yield f"{before}└───────────────────────"


def _title(descriptor: Descriptor) -> str:
    return f"{descriptor.media_type} @{descriptor.digest} ({descriptor.size} bytes)"
