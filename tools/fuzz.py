"""Feed a parser bytes until it does what no parser here may do, or until the time is over.

    tools/fuzz.py TARGET SECONDS [CORPUS]

With atheris installed (pip install atheris) inputs are made by libFuzzer, guided by coverage;
without it they are random changes of the target's own examples. An input that fails is written to
``fuzz-TARGET-DIGEST``, and is run again by ``tools/fuzz.py TARGET FILE``.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import json
import os
import random
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from tests.support.bolt import of_tree

from kontti.diff.compression import decompressed
from kontti.diff.tar import TarReader
from kontti.errors import Error
from kontti.images.manifest import parse_config, parse_index, parse_manifest
from kontti.images.media_types import OCI_INDEX, OCI_MANIFEST
from kontti.registry.reference import Reference, docker_normalize
from kontti.wire import bolt
from kontti.wire.messages.services.containers.v1.containers import ListContainersResponse

MOST_BYTES = 1 << 20
DIGEST = "sha256:" + "ab" * 32


@dataclass(frozen=True)
class Target:
    """A parser; what it raises for bad input is an Error, and nothing else."""

    run: Callable[[bytes], object]
    examples: Sequence[bytes]


def read_tar(data: bytes) -> None:
    """Every entry and its data, as an extraction reads them."""
    source = io.BytesIO(data)
    reader = TarReader(decompressed(source.read, limit=64 * MOST_BYTES))
    for _ in reader:
        for _ in reader.data():
            pass
    reader.drain()


def tar_example() -> bytes:
    """A few kinds of entries, with long names and attributes."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind in (("d/", tarfile.DIRTYPE), ("n" * 150, tarfile.REGTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.pax_headers = kind, {"SCHILY.xattr.user.a": "b"}
            info.size = 5 if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(b"hello"))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "d/" + "x" * 120
        tar.addfile(link)
    return made.getvalue()


def descriptor(kind: str) -> dict[str, object]:
    """A descriptor of a document."""
    return {"mediaType": kind, "digest": DIGEST, "size": 7, "annotations": {"a": "b"}}


def document(**fields: object) -> bytes:
    """JSON."""
    return json.dumps({"schemaVersion": 2, **fields}).encode()


def read_reference(data: bytes) -> None:
    """As containerd's clients write it, and as people do."""
    text = data.decode(errors="replace")
    try:
        assert str(Reference.parse(text)) == text
    except Error:
        pass
    Reference.parse(docker_normalize(text))


def read_bolt(data: bytes) -> None:
    """Every key of a database."""
    pending = [bolt.Database(memoryview(data)).root]
    while pending:
        pending += [value for _, value in pending.pop().items() if isinstance(value, bolt.Bucket)]


def bolt_example() -> bytes:
    """Two buckets, one within the other."""
    return of_tree({b"v1": {b"key": b"value", b"inner": {b"a": b"b"}}})


TARGETS = {
    "tar": Target(read_tar, [tar_example()]),
    "manifest": Target(
        lambda data: parse_manifest(data, OCI_MANIFEST),
        [document(config=descriptor("c"), layers=[descriptor("l")])],
    ),
    "index": Target(
        lambda data: parse_index(data, OCI_INDEX), [document(manifests=[descriptor(OCI_MANIFEST)])]
    ),
    "config": Target(
        parse_config,
        [document(os="linux", config={"Env": ["A=b"]}, rootfs={"diff_ids": [DIGEST]})],
    ),
    "reference": Target(
        read_reference, [b"alpine", b"host.example:5000/a/b:tag@" + DIGEST.encode()]
    ),
    "bolt": Target(read_bolt, [bolt_example()]),
    "protobuf": Target(ListContainersResponse.decode, [b"\n\x06\n\x04name", b""]),
}


def check(target: Target, data: bytes) -> None:
    """Run one input; what it raises that is no Error is a finding."""
    try:
        target.run(data)
    except Error:
        pass


def changed(data: bytes, dice: random.Random) -> bytes:
    """Some bytes of ``data`` changed, taken out, put in or repeated."""
    made = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 4, 16))):
        place = dice.randrange(len(made) + 1)
        length = dice.choice((1, 2, 8, 64))
        what = dice.randrange(5)
        if what == 0 and place < len(made):
            made[place] ^= 1 << dice.randrange(8)
        elif what == 1:
            del made[place : place + length]
        elif what == 2:
            made[place:place] = dice.randbytes(length)
        elif what == 3:
            made[place : place + length] = dice.choice((b"\0", b"\xff", b"9")) * length
        else:
            made[place:place] = made[max(0, place - length) : place]
    return bytes(made[:MOST_BYTES])


def run_random(target: Target, seconds: float, seed: int) -> bytes | None:
    """Changed examples until the time is over; the input that failed, if one did."""
    dice, count, end = random.Random(seed), 0, time.monotonic() + seconds
    while time.monotonic() < end:
        data = changed(dice.choice(target.examples), dice)
        count += 1
        try:
            check(target, data)
        except Exception:  # noqa: BLE001 this is what is looked for
            traceback.print_exc()
            return data
    print(f"{count} inputs, seed {seed}: nothing found")
    return None


def run_atheris(target: Target, seconds: int, corpus: str) -> None:
    """libFuzzer, to the end of the process; it says itself what it found."""
    import atheris

    with tempfile.TemporaryDirectory() as folder:
        for number, example in enumerate(target.examples):
            (Path(folder) / str(number)).write_bytes(example)
        flags = [f"-max_total_time={seconds}", f"-max_len={MOST_BYTES}"]
        atheris.instrument_all()
        atheris.Setup(
            [sys.argv[0], *flags, corpus or folder, folder], lambda data: check(target, data)
        )
        atheris.Fuzz()


def main() -> int:
    """1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("what", metavar="SECONDS|FILE")
    parser.add_argument("corpus", nargs="?", default="")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)))
    parser.add_argument("--random", action="store_true", help="without atheris")
    args = parser.parse_args()
    target = TARGETS[args.target]
    if not args.what.isdigit():
        check(target, Path(args.what).read_bytes())
        return 0
    if importlib.util.find_spec("atheris") and not args.random:
        run_atheris(target, int(args.what), args.corpus)
        return 0
    found = run_random(target, int(args.what), args.seed)
    if found is None:
        return 0
    path = f"fuzz-{args.target}-{hashlib.sha256(found).hexdigest()[:12]}"
    Path(path).write_bytes(found)
    print(f"written to {path}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
