"""The record codec and the log driver's URI."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontti.errors import InvalidArgument
from kontti.wire import log_uri
from kontti.wire.log_record import STDERR, STDOUT, STREAMS, decode, encode, encode_lost, stamp_of
from kontti.wire.log_uri import Limits

STAMP = b"2016-10-06T00:17:09.669794202Z"
BYTES = st.binary(max_size=300) | st.lists(
    st.sampled_from([b"\n", b"\n\n", b"\0", b"\xff\xfe", b" ", b"a line", b"x" * 100])
).map(b"".join)


@given(BYTES, st.sampled_from(STREAMS))
def test_every_byte_comes_back(data: bytes, stream: bytes) -> None:
    *lines, end = encode(STAMP, stream, data).split(b"\n")
    assert end == b""
    records = [decode(line) for line in lines]
    assert b"".join(r.data for r in records if r) == data
    assert all(r and r.stream == stream and r.stamp == STAMP and not r.lost for r in records)
    assert len(records) == data.count(b"\n") + (not data.endswith(b"\n") and data != b"")


def test_the_format_is_kubernetes_own() -> None:
    assert encode(STAMP, STDOUT, b"a\nb") == STAMP + b" stdout F a\n" + STAMP + b" stdout P b\n"
    assert encode(STAMP, STDERR, b"\n") == STAMP + b" stderr F \n"


def test_lost_bytes_are_a_whole_line_to_others() -> None:
    line = encode_lost(STAMP, STDOUT, 4096, "No space left\non device")
    assert line.count(b"\n") == 1
    assert line.startswith(STAMP + b" stdout F:lost=4096 ")
    record = decode(line.rstrip(b"\n"))
    assert record is not None
    assert (record.lost, record.whole) == (4096, True)
    assert record.data == b"4096 bytes of output were lost: No space left on device\n"


@given(st.binary(max_size=200))
def test_nothing_breaks_the_decoder(line: bytes) -> None:
    decode(line)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        STAMP + b" stdout F",
        STAMP + b" stdin F x",
        STAMP + b" stdout X x",
        STAMP + b" stdout F:lost=x x",
        STAMP[:-1] + b" stdout F x",
    ],
)
def test_what_is_no_record(line: bytes) -> None:
    assert decode(line) is None


@given(st.lists(st.integers(0, 4 * 10**18), min_size=2))
def test_stamps_compare_as_times_do(times: list[int]) -> None:
    assert [stamp_of(t) for t in sorted(times)] == sorted(map(stamp_of, times))
    assert {len(stamp_of(t)) for t in times} == {30}


@given(st.text(min_size=1, max_size=40), st.integers(1, 1000), st.booleans())
def test_uris_keep_what_they_say(name: str, files: int, compress: bool) -> None:
    folder = f"/logs/{name}"
    limits = Limits(1 << 20, files, compress=compress)
    if "\0" in folder or ".." in folder.split("/"):
        return
    uri = log_uri.make(folder, limits.options())
    found, read = log_uri.parse(uri)
    assert (found, read.options()) == (folder, limits.options())
    assert log_uri.folder_of(uri) == folder
    logger = log_uri.for_logger(uri, Limits(), "/usr/bin/kontti-logger")
    assert logger.startswith("binary:///usr/bin/kontti-logger?")
    assert log_uri.folder_of(logger) == folder


def test_what_a_uri_leaves_open_is_the_daemons() -> None:
    uri = log_uri.for_shim("kontti-log:///a/b?max-file=2", Limits(1 << 20, 9, compress=False))
    assert uri == "kontti-log:///a/b?max-size=1048576&max-file=2&compress=false"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("kontti-log:///", "not an absolute path"),
        ("kontti-log:relative", "not an absolute path"),
        ("kontti-log:///a/../b", "not an absolute path"),
        ("kontti-log:///a%00b", "not an absolute path"),
        ("kontti-log://host/a", "is not kontti-log:///folder"),
        ("kontti-log://[/a", "malformed"),
        ("file:///a", "is not kontti-log:///folder"),
        ("kontti-log:///a?max-size=", "'' is not a size such as 10m"),
        ("kontti-log:///a?max-size=1x", "'1x' is not a size such as 10m"),
        ("kontti-log:///a?max-size=1", "at least 4096 bytes"),
        ("kontti-log:///a?max-size=-1", "not a size"),
        ("kontti-log:///a?max-size=9999999g", "at most 1 PiB"),
        ("kontti-log:///a?max-file=0", "between 1 and 1000"),
        ("kontti-log:///a?max-file=two", "'two' is not a number"),
        ("kontti-log:///a?compress=maybe", "neither true nor false"),
        ("kontti-log:///a?mode=x", "unknown log option 'mode'"),
    ],
)
def test_uris_that_are_wrong(uri: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        log_uri.parse(uri)


def test_other_uris_are_not_ours() -> None:
    for uri in ("", "/run/fifo", "file:///kontti-log", "binary:///bin/other?folder=/x"):
        assert not log_uri.is_log(uri)
        assert log_uri.folder_of(uri) == ""
    for uri in ("kontti-log:x", "kontti-log://[", "binary:///kontti-logger?folder=../x"):
        assert log_uri.folder_of(uri) == ""


@pytest.mark.parametrize(
    ("text", "size"),
    [("10m", 10 << 20), ("1GiB", 1 << 30), ("64k", 65536), ("4096", 4096), ("8KB", 8192)],
)
def test_sizes(text: str, size: int) -> None:
    assert log_uri.parse_size(text) == size
