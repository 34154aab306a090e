"""Tar archives are read as others write them, written as others read them, and never trusted."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontti.diff.pax import format_record, parse_records
from kontti.diff.tar import (
    BLOCK,
    CHAR,
    DIRECTORY,
    HARDLINK,
    REGULAR,
    SYMLINK,
    Entry,
    TarReader,
)
from kontti.diff.tar_writer import ARCHIVE_END, header, padding
from kontti.errors import Error, InvalidArgument

SECOND = 10**9
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def chunked(data: bytes, size: int) -> Iterator[bytes]:
    for offset in range(0, len(data), size):
        yield data[offset : offset + size]


def read(data: bytes, chunk: int = 1 << 20) -> list[tuple[Entry, bytes]]:
    reader = TarReader(chunked(data, chunk))
    return [(entry, b"".join(reader.data())) for entry in reader]


def written(entry: Entry, data: bytes = b"") -> bytes:
    return header(entry) + data + padding(len(data)) + ARCHIVE_END


def fields(entry: Entry) -> tuple[object, ...]:
    plain = (getattr(entry, name) for name in Entry.__slots__ if name != "xattrs")
    return (*plain, entry.xattrs or {})


def archive(infos: list[tarfile.TarInfo], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for info in infos:
            tar.addfile(info, io.BytesIO(b"d" * info.size))
    return buffer.getvalue()


def named(name: str, size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    return info


NAMES = st.binary(min_size=1, max_size=300).filter(
    lambda name: b"\0" not in name and all(len(part) < 200 for part in name.split(b"/"))
)


@st.composite
def all_entries(draw: st.DrawFn) -> Entry:
    kind = draw(st.sampled_from([REGULAR, HARDLINK, SYMLINK, DIRECTORY, CHAR]))
    entry = Entry(kind, draw(NAMES))
    entry.link = draw(NAMES) if kind in (HARDLINK, SYMLINK) else b""
    entry.mode = draw(st.integers(0, 0o7777))
    entry.uid, entry.gid = draw(st.integers(0, 2**32 - 2)), draw(st.integers(0, 2**32 - 2))
    entry.mtime = draw(st.integers(-(2**60), 2**62))
    entry.size = draw(st.integers(0, 2000)) if kind == REGULAR else 0
    if kind == CHAR:
        entry.device = draw(st.tuples(st.integers(0, 4095), st.integers(0, 1 << 20)))
    names = st.binary(min_size=1, max_size=30).filter(lambda n: b"=" not in n and b"\0" not in n)
    entry.xattrs = draw(st.dictionaries(names, st.binary(max_size=60), max_size=3)) or None
    return entry


@given(st.lists(all_entries(), max_size=4), st.sampled_from([1, 7, 511, 512, 4096]))
def test_what_is_written_is_read(entries: list[Entry], chunk: int) -> None:
    data = b"".join(header(e) + b"x" * e.size + padding(e.size) for e in entries) + ARCHIVE_END
    found = read(data, chunk)
    assert [fields(entry) for entry, _ in found] == [fields(entry) for entry in entries]
    assert [data for _, data in found] == [b"x" * entry.size for entry in entries]


@given(st.lists(all_entries(), max_size=4), st.sampled_from([1, 7, 511, 512, 4096]))
def test_data_that_is_passed_over_is_where_it_is_said_to_be(
    entries: list[Entry], chunk: int
) -> None:
    stored = [bytes([number + 1]) * e.size for number, e in enumerate(entries)]
    parts = (header(e) + d + padding(e.size) for e, d in zip(entries, stored, strict=True))
    data = b"".join(parts) + ARCHIVE_END
    reader = TarReader(data[start : start + chunk] for start in range(0, len(data), chunk))
    places = [(reader.position, entry.size) for entry in reader]
    assert [data[at : at + size] for at, size in places] == stored
    assert all(at % 512 == 0 for at, _ in places)


@given(all_entries())
def test_others_read_what_is_written(entry: Entry) -> None:
    entry.name = entry.name.replace(b"/", b"_") + b"e"
    entry.xattrs = None
    if not entry.link.isascii() or not entry.name.isascii():
        entry.link, entry.name = entry.link.hex().encode(), entry.name.hex().encode()
    with tarfile.open(fileobj=io.BytesIO(written(entry, b"x" * entry.size))) as tar:
        [info] = tar.getmembers()
    assert info.name == entry.name.decode()
    assert (info.uid, info.gid, info.mode) == (entry.uid, entry.gid, entry.mode)
    assert info.linkname == entry.link.decode()


@given(
    st.dictionaries(st.binary(min_size=1, max_size=9).filter(lambda k: b"=" not in k), st.binary())
)
def test_pax_records_come_back(records: dict[bytes, bytes]) -> None:
    data = b"".join(format_record(k, v) for k, v in records.items())
    assert parse_records(data) == records


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("chunk", [100, 1 << 20])
def test_every_format_is_read(form: int, chunk: int) -> None:
    first = named("dir/" * 25 + "name" if form != tarfile.USTAR_FORMAT else "dir/name", 1000)
    first.uid, first.gid, first.mode, first.mtime = 5, 6, 0o4755, 1_700_000_000
    link = tarfile.TarInfo("link")
    link.type, link.linkname = tarfile.SYMTYPE, "t" * (99 if form == tarfile.USTAR_FORMAT else 300)
    [(one, data), (two, _)] = read(archive([first, link], form), chunk)
    assert one.name == first.name.encode()
    assert (one.uid, one.gid, one.mode, one.mtime) == (5, 6, 0o4755, 1_700_000_000 * SECOND)
    assert data == b"d" * 1000
    assert (two.kind, two.link) == (SYMLINK, link.linkname.encode())


def test_long_ustar_prefixes_are_joined() -> None:
    [(entry, _)] = read(archive([named("p" * 120 + "/" + "n" * 90)], tarfile.USTAR_FORMAT))
    assert entry.name == b"p" * 120 + b"/" + b"n" * 90


def test_gnu_large_numbers_are_read() -> None:
    info = named("x")
    info.uid, info.mtime = 3_000_000, 2**40
    [(entry, _)] = read(archive([info], tarfile.GNU_FORMAT))
    assert (entry.uid, entry.mtime) == (3_000_000, 2**40 * SECOND)


def test_global_records_hold_until_they_are_overridden() -> None:
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"uid": "77"}
    ) as tar:
        tar.addfile(named("a"))
        special = named("b")
        special.pax_headers = {"uid": "78"}
        tar.addfile(special)
        tar.addfile(named("c"))
    assert [entry.uid for entry, _ in read(buffer.getvalue())] == [77, 78, 77]


def test_data_not_asked_for_is_passed_over() -> None:
    reader = TarReader([archive([named("a", 5000), named("b", 3)])])
    assert [entry.name for entry in reader] == [b"a", b"b"]


def test_data_half_read_is_passed_over() -> None:
    reader = TarReader(chunked(archive([named("a", 5000), named("b", 3)]), 700))
    entries = iter(reader)
    next(entries)
    reader.data()
    next(reader.data())
    assert next(entries).name == b"b"


def test_a_missing_end_is_put_up_with() -> None:
    data = archive([named("a", 512)])
    assert [e.name for e, _ in read(data[: 2 * BLOCK])] == [b"a"]
    assert [e.name for e, _ in read(data[: 3 * BLOCK])] == [b"a"]
    assert read(b"") == []


def tampered(change: dict[int, bytes]) -> bytes:
    """A header with bytes put in at offsets, and a good checksum."""
    block = bytearray(archive([named("name")])[:BLOCK])
    for offset, value in change.items():
        block[offset : offset + len(value)] = value
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + b"x" * 1024 + ARCHIVE_END


SIZE, UID, KIND = 124, 108, 156
HOSTILE: dict[str, tuple[bytes, type[Error]]] = {
    "checksum": (b"\1" + archive([named("name")])[1:], InvalidArgument),
    "negative size": (tampered({SIZE: b"\xff" * 12}), InvalidArgument),
    "huge size": (tampered({SIZE: b"\x80" + b"\x7f" * 11}), InvalidArgument),
    "size past the end": (tampered({SIZE: b"77777777777\0"}), InvalidArgument),
    "no number": (tampered({SIZE: b"-1         \0"}), InvalidArgument),
    "signed number": (tampered({UID: b"+000017\0"}), InvalidArgument),
    "digit 9": (tampered({UID: b"0000019\0"}), InvalidArgument),
    "owner -1": (tampered({UID: b"\x80\0\0\0\xff\xff\xff\xff"}), InvalidArgument),
    "sparse, but not GNU tar's": (tampered({KIND: b"S"}), InvalidArgument),
    "unknown type": (tampered({KIND: b"Z"}), InvalidArgument),
    "giant pax header": (tampered({KIND: b"x", SIZE: b"00100000001\0"}), InvalidArgument),
    "giant long name": (tampered({KIND: b"L", SIZE: b"77777777777\0"}), InvalidArgument),
    "pax without records": (tampered({KIND: b"x", SIZE: b"00000000010\0"}), InvalidArgument),
    "half a header": (archive([named("a")])[:300], InvalidArgument),
    "half the data": (archive([named("a", 2000)])[:1500], InvalidArgument),
    "data behind one zero block": (bytes(512) + archive([named("a")]), InvalidArgument),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_malformed_archives_are_refused(name: str) -> None:
    data, error = HOSTILE[name]
    with pytest.raises(error):
        read(data)


PAX_HOSTILE = [
    b"path=x\n",
    b"99 path=x\n",
    b"9 path=xx",
    b"5 p=\n\n",
    b"08 =xxx\n\n",
    format_record(b"path", b"a\0b"),
    format_record(b"size", b"-1"),
    format_record(b"size", b"9" * 30),
    format_record(b"uid", b"-1"),
    format_record(b"mtime", b"1e9"),
    format_record(b"mtime", b"now"),
    format_record(b"path", b"x" * 5000),
    format_record(b"GNU.sparse.major", b"1"),
    format_record(b"SCHILY.xattr.", b"v"),
]


@pytest.mark.parametrize("records", PAX_HOSTILE)
def test_malformed_pax_headers_are_refused(records: bytes) -> None:
    extension = Entry(b"x", b"pax")
    extension.size = len(records)
    data = header(extension) + records + padding(len(records)) + archive([named("a")])
    with pytest.raises(Error):
        read(data)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        (b"1.5", 1_500_000_000),
        (b"-1.5", -1_500_000_000),
        (b"0.000000001", 1),
        (b"12", 12 * SECOND),
        (b"1.0000000019", SECOND + 1),
    ],
)
def test_times_are_exact(text: bytes, time: int) -> None:
    info = named("x")
    info.pax_headers = {"mtime": text.decode()}
    [(entry, _)] = read(archive([info]))
    assert entry.mtime == time


@given(st.binary(max_size=3000), st.integers(1, 700))
def test_noise_is_an_error_of_ours_or_nothing(noise: bytes, chunk: int) -> None:
    base = archive([named("a", 700), named("é" * 90)])
    for data in (noise, base[:512] + noise, base[:1024] + noise + base[1024:]):
        try:
            read(data, chunk)
        except Error:
            pass


@given(st.integers(0, 4095), st.integers(0, 255))
def test_one_changed_byte_is_an_error_of_ours_or_nothing(position: int, value: int) -> None:
    data = bytearray(archive([named("a", 700), named("é" * 90)]))
    data[position] = value
    try:
        read(bytes(data))
    except Error:
        pass
