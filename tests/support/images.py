"""Real images from real files: Debian's busybox in layers, as an OCI layout tar. Deterministic."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

BUSYBOX = Path("/bin/busybox")
APPLETS = [
    "sh",
    "true",
    "false",
    "echo",
    "cat",
    "sleep",
    "ls",
    "ps",
    "env",
    "id",
    "pwd",
    "hostname",
    "mount",
    "touch",
    "rm",
    "mkdir",
    "head",
    "tail",
    "wc",
    "dd",
    "kill",
    "stty",
    "sync",
    "test",
    "printf",
    "seq",
    "date",
    "uname",
    "sed",
    "grep",
    "tee",
    "tty",
    "chmod",
    "chown",
    "ln",
    "mv",
    "cp",
    "stat",
    "find",
    "yes",
]
EPOCH = 1_700_000_000


@dataclass(frozen=True)
class Entry:
    """One tar entry. ``kind`` as tarfile's type flags."""

    name: str
    data: bytes = b""
    mode: int = 0o644
    kind: bytes = tarfile.REGTYPE
    link: str = ""
    uid: int = 0
    gid: int = 0
    device: tuple[int, int] = (0, 0)
    pax: Mapping[str, str] = field(default_factory=dict)


def directory(name: str, mode: int = 0o755, uid: int = 0, gid: int = 0) -> Entry:
    return Entry(name, mode=mode, kind=tarfile.DIRTYPE, uid=uid, gid=gid)


def symlink(name: str, target: str) -> Entry:
    return Entry(name, mode=0o777, kind=tarfile.SYMTYPE, link=target)


def layer(entries: Iterable[Entry]) -> bytes:
    """An uncompressed layer tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.size = len(entry.data)
            info.mode, info.type, info.linkname = entry.mode, entry.kind, entry.link
            info.uid, info.gid, info.mtime = entry.uid, entry.gid, EPOCH
            info.devmajor, info.devminor = entry.device
            info.pax_headers = dict(entry.pax)
            tar.addfile(info, io.BytesIO(entry.data))
    return buffer.getvalue()


def base_layer() -> bytes:
    """A root file system with busybox and two users."""
    passwd = b"root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000:alice:/home/alice:/bin/sh\n"
    group = b"root:x:0:\nalice:x:1000:\nstaff:x:50:alice\n"
    entries = [
        *(directory(d) for d in ("bin", "dev", "etc", "home", "proc", "root", "sys", "run", "var")),
        directory("tmp", mode=0o1777),
        directory("home/alice", uid=1000, gid=1000),
        Entry("bin/busybox", BUSYBOX.read_bytes(), mode=0o755),
        *(symlink(f"bin/{a}", "busybox") for a in APPLETS),
        Entry("etc/passwd", passwd),
        Entry("etc/group", group),
        Entry("etc/motd", b"to be removed by the next layer\n"),
    ]
    return layer(entries)


def second_layer() -> bytes:
    """Adds a file and removes one of the base layer."""
    return layer([directory("etc"), Entry("etc/.wh.motd"), Entry("etc/greeting", b"hello\n")])


DEFAULT_CONFIG: Mapping[str, object] = {
    "Env": ["PATH=/bin:/usr/bin", "GREETING=hello"],
    "Cmd": ["/bin/sh"],
    "WorkingDir": "/",
}


@dataclass(frozen=True)
class Image:
    """A built image: every blob by digest, and its manifest's descriptor."""

    blobs: Mapping[str, bytes]
    manifest: Mapping[str, object]
    config_digest: str
    layer_digests: tuple[str, ...]

    @property
    def digest(self) -> str:
        return str(self.manifest["digest"])


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def gzipped(tar: bytes) -> bytes:
    return gzip.compress(tar, 6, mtime=0)


def build(
    layers: Iterable[bytes] | None = None,
    config: Mapping[str, object] = DEFAULT_CONFIG,
    pack: Callable[[bytes], bytes] = gzipped,
    suffix: str = "+gzip",
) -> Image:
    """An image of ``layers`` (uncompressed tars; busybox where None), each packed."""
    tars = list(layers) if layers is not None else [base_layer(), second_layer()]
    blobs: dict[str, bytes] = {}

    def put(data: bytes, media_type: str) -> dict[str, object]:
        blobs[digest_of(data)] = data
        return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}

    described = [put(pack(tar), f"application/vnd.oci.image.layer.v1.tar{suffix}") for tar in tars]
    config_json = {
        "architecture": "amd64",
        "os": "linux",
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": [digest_of(tar) for tar in tars]},
    }
    config_descriptor = put(_json(config_json), "application/vnd.oci.image.config.v1+json")
    manifest = put(
        _json(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": config_descriptor,
                "layers": described,
            }
        ),
        "application/vnd.oci.image.manifest.v1+json",
    )
    return Image(
        blobs,
        manifest,
        str(config_descriptor["digest"]),
        tuple(str(d["digest"]) for d in described),
    )


def archive(image: Image, name: str) -> bytes:
    """``image`` as an OCI layout tar that names it ``name``."""
    index = {
        "schemaVersion": 2,
        "manifests": [
            {
                **image.manifest,
                "platform": {"architecture": "amd64", "os": "linux"},
                "annotations": {
                    "io.containerd.image.name": name,
                    "org.opencontainers.image.ref.name": name.rpartition(":")[2],
                },
            }
        ],
    }
    entries = [
        Entry("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'),
        Entry("index.json", _json(index)),
        *(Entry(f"blobs/sha256/{d[7:]}", data) for d, data in sorted(image.blobs.items())),
    ]
    return layer(entries)


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
