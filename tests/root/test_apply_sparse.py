"""Sparse files in layers, in every form that GNU tar writes them in."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from kontti.diff.pax import format_record
from kontti.diff.tar import REGULAR, Entry, TarReader
from kontti.diff.tar_writer import ARCHIVE_END, header, padding
from kontti.errors import InvalidArgument
from tests.support.trees import apply_all, put

pytestmark = pytest.mark.root
PLAIN = "application/vnd.oci.image.layer.v1.tar"
FORMS = {
    "old GNU": ["--format=gnu"],
    "0.0": ["--format=posix", "--sparse-version=0.0"],
    "0.1": ["--format=posix", "--sparse-version=0.1"],
    "1.0": ["--format=posix", "--sparse-version=1.0"],
}
SIZE = 40 << 20


def make_sparse(directory: Path, name: str, parts: int, end: int = SIZE) -> None:
    """A file of ``end`` bytes with ``parts`` blocks of data in it."""
    with (directory / name).open("wb") as file:
        for part in range(parts):
            file.seek(part * (SIZE // parts))
            file.write(os.urandom(4096))
        file.truncate(end)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("source")
    make_sparse(made, "three", 3)
    make_sparse(made, "many", 100)
    make_sparse(made, "hole", 0)
    make_sparse(made, "to-the-end", 2, SIZE // 2 + 4096)
    make_sparse(made, "n" * 150, 5)
    (made / "plain").write_bytes(b"plain")
    return made


@pytest.mark.parametrize("form", FORMS)
def test_sparse_files_come_out_as_they_went_in(tmp_path: Path, source: Path, form: str) -> None:
    command = ["tar", "-cS", *FORMS[form], "-C", str(source), "."]
    packed = subprocess.run(command, check=True, capture_output=True, timeout=60).stdout
    assert len(packed) < SIZE
    chain = apply_all(tmp_path, [])
    chain.applier.apply(put(chain.store, packed, PLAIN), chain.mounts())
    made = tmp_path / "layers/0/fs"
    assert sorted(os.listdir(made)) == sorted(os.listdir(source))
    for name in os.listdir(source):
        assert (made / name).read_bytes() == (source / name).read_bytes(), name
        assert (made / name).stat().st_blocks * 512 < 1 << 20


def old(parts: list[tuple[int, int]], size: int, stored: int) -> bytes:
    """An old GNU header for up to four parts, and its data."""
    entry = Entry(REGULAR, b"s")
    entry.size = stored
    block = bytearray(header(entry))
    block[156:157], block[257:265] = b"S", b"ustar  \0"
    field = b"".join(b"%011o\0%011o\0" % part for part in parts)
    block[386 : 386 + len(field)] = field
    block[483:495] = b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + b"d" * stored + padding(stored) + ARCHIVE_END


def pax(records: dict[bytes, bytes], data: bytes) -> bytes:
    """A file with pax records of its own."""
    text = b"".join(format_record(b"GNU.sparse." + k, v) for k, v in records.items())
    extension, entry = Entry(b"x", b"pax"), Entry(REGULAR, b"s")
    extension.size, entry.size = len(text), len(data)
    blocks = (header(extension), text, padding(len(text)), header(entry), data, padding(len(data)))
    return b"".join(blocks) + ARCHIVE_END


ONE = {b"major": b"1", b"minor": b"0", b"realsize": b"100"}
HOSTILE = {
    "parts overlap": old([(0, 10), (5, 10)], 100, 20),
    "parts past the end": old([(0, 10), (95, 10)], 100, 20),
    "less stored": old([(0, 10), (20, 10)], 100, 10),
    "more stored": old([(0, 10)], 100, 20),
    "0.1: odd numbers": pax({b"map": b"0,5,9", b"size": b"100"}, b"d" * 5),
    "0.1: no size": pax({b"map": b"0,5"}, b"d" * 5),
    "0.1: no numbers": pax({b"map": b"0,x", b"size": b"100"}, b"d" * 5),
    "1.0: no map": pax(ONE, b""),
    "1.0: a map without end": pax(ONE, b"9" * 5000),
    "1.0: too many parts": pax(ONE, b"99999999\n" + b"1\n" * 5000),
    "1.0: half a map": pax(ONE, b"3\n0\n5\n" + b"\0" * 506),
    "1.0: negative": pax(ONE, b"1\n-5\n5\n"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_maps_that_cannot_be(name: str) -> None:
    with pytest.raises(InvalidArgument, match=r"archive/tar|unexpected EOF"):
        for _ in TarReader(iter([HOSTILE[name]])):
            pass


def test_a_file_larger_than_any_can_be(tmp_path: Path) -> None:
    chain = apply_all(tmp_path, [])
    data = pax({b"map": b"", b"size": b"%d" % ((1 << 63) - 1)}, b"")
    with pytest.raises(InvalidArgument, match="failed to extract 's': file too large"):
        chain.applier.apply(put(chain.store, data, PLAIN), chain.mounts())


def test_global_headers_without_end() -> None:
    text = format_record(b"k%d", b"v" * 900_000)
    blocks = []
    for number in range(4):
        record = text.replace(b"k%d", b"k%02d" % number)
        extension = Entry(b"g", b"pax")
        extension.size = len(record)
        blocks += [header(extension), record, padding(len(record))]
    with pytest.raises(InvalidArgument, match="global extended headers are too long"):
        list(TarReader(iter(blocks)))
