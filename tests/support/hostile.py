"""Images and archives that are wrong on purpose: every document and digest in them can lie."""

from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tests.support.images import Entry, digest_of, directory, layer, symlink
from tests.support.trees import device, hard_link
from tests.support.web import Repository

OCI = "application/vnd.oci.image."
MANIFEST, INDEX, CONFIG = f"{OCI}manifest.v1+json", f"{OCI}index.v1+json", f"{OCI}config.v1+json"
LAYER = f"{OCI}layer.v1.tar+gzip"
NAME = "docker.io/library/hostile:1"
GOOD = [directory("etc"), Entry("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")]
TAR = layer(GOOD)
Json = Mapping[str, object]


def dump(value: object) -> bytes:
    """Compact JSON."""
    return json.dumps(value, separators=(",", ":")).encode()


def packed(tar: bytes) -> bytes:
    """A layer as registries have it."""
    return gzip.compress(tar, 1, mtime=0)


@dataclass
class Draft:
    """An image written by hand: ``blobs`` by the digest they claim, and the descriptor on top."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    top: dict[str, object] = field(default_factory=dict)

    def put(self, data: bytes, media_type: str, **claims: object) -> dict[str, object]:
        """A blob; ``claims`` go over what its descriptor says of it."""
        said = {"mediaType": media_type, "digest": digest_of(data), "size": len(data), **claims}
        self.blobs[str(said["digest"])] = data
        self.types[str(said["digest"])] = media_type
        return said

    def config(self, tars: Iterable[bytes], **over: object) -> dict[str, object]:
        """An image configuration for layers ``tars``."""
        diff_ids = [digest_of(tar) for tar in tars]
        document = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            **over,
        }
        return self.put(dump(document), CONFIG)

    def manifest(self, config: Json, layers: Sequence[Json], **over: object) -> dict[str, object]:
        """A manifest, on top of all."""
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config,
            "layers": layers,
            **over,
        }
        self.top = self.put(dump(document), MANIFEST)
        return self.top

    def index(self, manifests: Sequence[Json], **over: object) -> dict[str, object]:
        """An index, on top of all."""
        document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests, **over}
        self.top = self.put(dump(document), INDEX)
        return self.top

    def archive(self, name: str = NAME) -> bytes:
        """As an OCI layout."""
        named = {**self.top, "annotations": {"io.containerd.image.name": name}}
        return layout(self.blobs, dump({"schemaVersion": 2, "manifests": [named]}))

    def registry(self) -> Repository:
        """As a registry with the tag ``1``."""
        tags = {"1": str(self.top["digest"])}
        return Repository(dict(self.blobs), tags, dict(self.types))


def layout(blobs: Mapping[str, bytes], index: bytes, version: str = "1.0.0") -> bytes:
    """An OCI layout; ``blobs`` may be under any name."""
    paths = {d.replace(":", "/", 1): data for d, data in blobs.items()}
    return layer(
        [
            Entry("oci-layout", dump({"imageLayoutVersion": version})),
            Entry("index.json", index),
            *(Entry(f"blobs/{path}", data) for path, data in paths.items()),
        ]
    )


def image(*tars: bytes) -> Draft:
    """An image that is right."""
    draft = Draft()
    draft.manifest(draft.config(tars), [draft.put(packed(tar), LAYER) for tar in tars])
    return draft


def with_layer(entries: Iterable[Entry]) -> Draft:
    """An image whose second layer has ``entries``."""
    return image(layer(GOOD), layer(entries))


def other_layer(data: bytes, tar: bytes | None = None, media_type: str = LAYER) -> Draft:
    """An image whose layer is ``data`` while its configuration promises ``tar``."""
    draft = Draft()
    promised = layer(GOOD) if tar is None else tar
    draft.manifest(draft.config([promised]), [draft.put(data, media_type)])
    return draft


def swapped(draft: Draft, data: bytes) -> Draft:
    """``draft`` whose last layer's bytes are ``data``, under the digest of what was there."""
    manifest = json.loads(draft.blobs[str(draft.top["digest"])])
    draft.blobs[str(manifest["layers"][-1]["digest"])] = data
    return draft


def layer_of(draft: Draft) -> bytes:
    """The last layer's bytes."""
    manifest = json.loads(draft.blobs[str(draft.top["digest"])])
    return draft.blobs[str(manifest["layers"][-1]["digest"])]


def on_top(data: bytes, media_type: str = MANIFEST, **claims: object) -> Draft:
    """An image whose manifest is ``data``."""
    draft = image(layer(GOOD))
    draft.top = draft.put(data, media_type, **claims)
    return draft


def nested(depth: int) -> Draft:
    """An image below ``depth`` indexes."""
    draft = image(layer(GOOD))
    for _ in range(depth):
        draft.index([draft.top])
    return draft


def itself(media_type: str) -> Draft:
    """A document that names its own digest: it can only be served under a wrong one."""
    draft, claimed, size = Draft(), "sha256:" + "a" * 64, 600
    own = {"mediaType": media_type, "digest": claimed, "size": size}
    document = {"schemaVersion": 2, "mediaType": media_type}
    below = {"manifests": [own]} if media_type == INDEX else {"config": own, "layers": [own]}
    data = dump({**document, **below}).ljust(size)
    draft.top = draft.put(data, media_type, digest=claimed)
    return draft


def with_config(data: bytes) -> Draft:
    """An image with this configuration."""
    draft = Draft()
    draft.manifest(draft.put(data, CONFIG), [draft.put(packed(TAR), LAYER)])
    return draft


def with_claims(**claims: object) -> Draft:
    """An image whose manifest says this of its layer."""
    draft = Draft()
    draft.manifest(draft.config([TAR]), [{**draft.put(packed(TAR), LAYER), **claims}])
    return draft


def with_top(**claims: object) -> Draft:
    """An image whose index says this of its manifest."""
    draft = image(TAR)
    draft.top = {**draft.top, **claims}
    return draft


def with_index(*manifests: object) -> Draft:
    """An index of that."""
    return on_top(dump({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}), INDEX)


def without_layer() -> Draft:
    """An image whose layer is not there."""
    draft = image(TAR)
    del draft.blobs[digest_of(packed(TAR))]
    return draft


def config_as_layer() -> Draft:
    """An image whose configuration is its layer too."""
    draft = Draft()
    config = draft.config([TAR])
    draft.manifest(config, [{**config, "mediaType": LAYER}])
    return draft


def two_diff_ids() -> Draft:
    """An image with one layer and two diff ids."""
    draft = Draft()
    draft.manifest(draft.config([TAR, TAR]), [draft.put(packed(TAR), LAYER)])
    return draft


def docker_archive(manifest: bytes, entries: Iterable[Entry] = ()) -> bytes:
    """What ``docker save`` writes, with this ``manifest.json``."""
    return layer([*entries, Entry("manifest.json", manifest)])


def escapes(outside: str) -> dict[str, list[Entry]]:
    """Layers that try to write to the directory ``outside`` of the host, by how they do it."""
    up, bare = "../" * 30, outside.lstrip("/")
    attacks: dict[str, list[Entry]] = {
        "dots": [Entry(f"{up}{bare}/victim", b"owned")],
        "dots behind a directory": [directory("etc"), Entry(f"etc/{up}{bare}/victim", b"owned")],
        "absolute": [Entry(f"{outside}/victim", b"owned")],
        "absolute link": [symlink("abs", outside), Entry("abs/victim", b"owned")],
        "relative link": [symlink("rel", f"{up}{bare}"), Entry("rel/victim", b"owned")],
        "link chain": [
            symlink("one", "two"),
            symlink("two", outside),
            Entry("one/victim", b"owned"),
        ],
        "link to a file": [symlink("v", f"{outside}/victim"), Entry("v", b"owned")],
        "whiteout": [symlink("abs", outside), Entry("abs/.wh.victim")],
        "whiteout by dots": [Entry(f"{up}{bare}/.wh.victim")],
        "opaque": [symlink("abs", outside), Entry("abs/.wh..wh..opq")],
        "directory": [symlink("abs", outside), directory("abs/made")],
        "mode by link": [symlink("abs", outside), directory("abs", mode=0o777)],
        "hard link": [hard_link("x", f"{up}{bare}/victim"), Entry("x", b"owned")],
        "absolute hard link": [hard_link("x", f"{outside}/victim"), Entry("x", b"owned")],
        "hard link by link": [symlink("abs", outside), hard_link("x", "abs/victim")],
        "device by link": [symlink("abs", outside), device("abs/node", 1, 3)],
        "fifo by link": [symlink("abs", outside), Entry("abs/fifo", kind=tarfile.FIFOTYPE)],
    }
    return attacks
