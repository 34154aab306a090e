"""The log driver's files and their readers, on a disk and with no container."""

from __future__ import annotations

import gzip
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kontti.errors import DataLoss, FailedPrecondition, InvalidArgument
from kontti.logs.output import Shown
from kontti.logs.reader import Query, read
from kontti.logs.times import ns_of, stamp
from kontti.shim import log_files, log_pack
from kontti.shim.log_writer import LogWriter
from kontti.wire.log_record import STDERR, STDOUT, STREAMS, encode, stamp_of
from kontti.wire.log_uri import Limits

SMALL = 4096
FEW = settings(max_examples=60, deadline=None)
CHUNKS = st.lists(
    st.tuples(
        st.sampled_from(STREAMS),
        st.binary(min_size=1, max_size=200)
        | st.sampled_from([b"\n" * 500, b"x" * 6000, b"\0\xff", b"line\n", b"a\nb\nc"]),
    ),
    max_size=30,
)
Written = Sequence[tuple[bytes, bytes]]


def written(folder: Path, chunks: Written, limits: Limits) -> None:
    writer = LogWriter(str(folder), limits)
    for stream, data in chunks:
        writer.write(stream, data)
    writer.close(wait=True)


def bytes_of(folder: Path, stream: bytes, **wanted: object) -> bytes:
    query = Query(streams=(stream,), **wanted)  # type: ignore[arg-type]
    return b"".join(record.data for record in read(str(folder), query))


def sizes(folder: Path) -> list[int]:
    return [path.stat().st_size for path in sorted(folder.glob("*.log"))]


counter = itertools.count()


@FEW
@given(CHUNKS)
def test_any_bytes_come_back_across_rotations(
    tmp_path_factory: pytest.TempPathFactory, chunks: Written
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"log-{next(counter)}"
    written(folder, chunks, Limits(SMALL, 1000, compress=False))
    for stream in STREAMS:
        assert bytes_of(folder, stream) == b"".join(d for s, d in chunks if s == stream)
    assert max(sizes(folder)) <= SMALL


@FEW
@given(CHUNKS, st.integers(1, 4))
def test_what_is_retained_is_the_end_and_within_limits(
    tmp_path_factory: pytest.TempPathFactory, chunks: Written, files: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"log-{next(counter)}"
    written(folder, chunks, Limits(SMALL, files, compress=False))
    assert len(sizes(folder)) <= files
    assert max(sizes(folder)) <= SMALL
    for stream in STREAMS:
        whole = b"".join(d for s, d in chunks if s == stream)
        assert whole.endswith(bytes_of(folder, stream))


@FEW
@given(CHUNKS, st.integers(0, 6), st.sampled_from([STREAMS, (STDOUT,), (STDERR,)]))
def test_tail_gives_the_last_lines(
    tmp_path_factory: pytest.TempPathFactory,
    chunks: Written,
    count: int,
    streams: tuple[bytes, ...],
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"log-{next(counter)}"
    ended = [*chunks, (STDOUT, b"\n"), (STDERR, b"\n")]
    written(folder, ended, Limits(SMALL, 1000, compress=False))
    wanted = lines_of([(s, d) for s, d in ended if s in streams])[-count:] if count else []
    query = Query(tail=count, streams=streams)
    found = [(record.stream, record.data) for record in read(str(folder), query)]
    assert lines_of(found) == wanted


def lines_of(chunks: Written) -> list[tuple[bytes, bytes]]:
    """Lines in the order of their ends."""
    lines = []
    rest = dict.fromkeys(STREAMS, b"")
    for stream, data in chunks:
        *whole, rest[stream] = (rest[stream] + data).split(b"\n")
        lines += [(stream, line) for line in whole]
    assert not any(rest.values())
    return lines


def test_tail_counts_a_line_without_an_end(tmp_path: Path) -> None:
    written(
        tmp_path / "log", [(STDOUT, b"one\ntwo\n"), (STDOUT, b"pro"), (STDOUT, b"mpt> ")], Limits()
    )
    assert bytes_of(tmp_path / "log", STDOUT, tail=1) == b"prompt> "
    assert bytes_of(tmp_path / "log", STDOUT, tail=2) == b"two\nprompt> "
    assert bytes_of(tmp_path / "log", STDOUT, tail=0) == b""


def test_files_are_numbered_and_compressed_but_for_the_two_newest(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    data = b"".join(b"line %06d\n" % n for n in range(2000))
    limits = Limits(16 << 10, 1000)
    for start in range(0, len(data), 1000):
        written(folder, [(STDOUT, data[start : start + 1000])], limits)
    written(folder, [(STDOUT, b"x" * 15000)], limits)
    names = sorted(os.listdir(folder))
    assert [n for n in names if n.endswith(".log")] == names[-2:]
    assert len(names) > 4
    assert bytes_of(folder, STDOUT) == data + b"x" * 15000
    first = gzip.decompress((folder / names[0]).read_bytes())
    assert first.count(b" stdout F line ") > 100
    assert (folder / names[0]).stat().st_mode & 0o777 == 0o640
    assert bytes_of(folder, STDOUT, tail=3).startswith(b"line 001998\nline 001999\n")


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    writer = LogWriter(str(tmp_path / "log"), Limits())
    with pytest.raises(FailedPrecondition, match="is written to by another"):
        LogWriter(str(tmp_path / "log"), Limits())
    writer.close()
    LogWriter(str(tmp_path / "log"), Limits()).close()


def test_a_torn_record_is_cut_off(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    written(folder, [(STDOUT, b"one\n")], Limits())
    path = folder / "00000001.log"
    path.write_bytes(path.read_bytes() + b"2016-10-06T00:17:09.669794202Z stdout F half")
    assert bytes_of(folder, STDOUT) == b"one\n"
    written(folder, [(STDOUT, b"two\n")], Limits())
    assert bytes_of(folder, STDOUT) == b"one\ntwo\n"


def test_damage_is_told_and_hides_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    written(folder, [(STDOUT, b"one\n"), (STDOUT, b"two\n")], Limits())
    path = folder / "00000001.log"
    path.write_bytes(path.read_bytes().replace(b" stdout F two", b"\0" * 13))
    assert bytes_of(folder, STDOUT) == b"one\n"
    assert b"of the log are damaged" in bytes_of(folder, STDERR)


@pytest.mark.parametrize("cut", [True, False])
def test_a_damaged_compressed_file_is_an_error(tmp_path: Path, cut: bool) -> None:
    packed = bytearray(gzip.compress(encode(stamp_of(1), STDOUT, os.urandom(5000))))
    if cut:
        del packed[-100:]
    else:
        packed[200] ^= 0xFF
    (tmp_path / "00000001.log.gz").write_bytes(packed)
    with pytest.raises(DataLoss, match=r"00000001\.log\.gz"):
        bytes_of(tmp_path, STDOUT)


@pytest.mark.parametrize("seed", range(4))
def test_a_compressor_killed_at_any_instant_costs_no_byte(tmp_path: Path, seed: int) -> None:
    folder = tmp_path / "log"
    data = os.urandom(3 << 20).replace(b"\n", b"n")
    writer = LogWriter(str(folder), Limits(256 << 10, 100, compress=False))
    for start in range(0, len(data), 10000):
        writer.write(STDOUT, data[start : start + 10000])
    for turn in range(6):
        argv = [sys.executable, "-c", "from kontti.shim.log_pack import main; main()", folder]
        with subprocess.Popen(argv) as packer:
            time.sleep(0.05 + 0.03 * turn + 0.007 * seed)
            packer.send_signal(signal.SIGKILL)
        assert bytes_of(folder, STDOUT) == data
    log_pack.pack_all(str(folder))
    writer.close()
    assert len(list(folder.glob("*.log"))) == 2
    assert list(folder.glob("*.tmp")) == []
    assert bytes_of(folder, STDOUT) == data


def test_a_removed_file_does_not_come_back(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    written(folder, [(STDOUT, b"x" * 3000)] * 4, Limits(SMALL, 10, compress=False))
    assert log_pack.candidates(str(folder)) == [1, 2]
    plain = folder / "00000001.log"
    before = log_files.unlink

    def gone(path: str) -> bool:
        return before(path) and path != str(plain)

    log_pack.log_files.unlink = gone
    try:
        assert log_pack.pack(str(folder), 1)
    finally:
        log_pack.log_files.unlink = before
    assert log_files.numbers(str(folder)) == [2, 3, 4]


def test_follow_goes_across_rotations_to_the_writers_end(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    writer = LogWriter(str(folder), Limits(SMALL, 1000))
    seen = bytearray()

    def follow() -> None:
        for record in read(str(folder), Query(follow=True)):
            seen.extend(record.data)

    thread = threading.Thread(target=follow)
    thread.start()
    for number in range(3000):
        writer.write(STDOUT, b"%d\n" % number)
    time.sleep(0.3)
    writer.write(STDOUT, b"the end")
    writer.close(wait=True)
    thread.join(20)
    assert not thread.is_alive()
    assert bytes(seen) == b"".join(b"%d\n" % n for n in range(3000)) + b"the end"


def test_a_follower_that_is_too_slow_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    writer = LogWriter(str(folder), Limits(SMALL, 2))
    writer.write(STDOUT, b"first\n")
    following = read(str(folder), Query(follow=True))
    assert next(following).data == b"first\n"
    for _ in range(5):
        writer.write(STDOUT, b"x" * 4000)
    writer.close()
    rest = [record.data for record in following]
    assert rest[0] == b"x" * 4000
    assert rest[1] == b"2 files of the log were removed before they were read\n"
    assert rest[2:] == [b"x" * 4000] * 2


def test_times_choose(tmp_path: Path) -> None:
    times = [10**18, 10**18 + 5, 2 * 10**18]
    parts = [encode(stamp_of(t), STDOUT, b"%d\n" % t) for t in times]
    (tmp_path / "00000001.log").write_bytes(b"".join(parts))
    since, until = stamp_of(times[1]), stamp_of(times[1])
    assert bytes_of(tmp_path, STDOUT, since=since) == b"%d\n%d\n" % tuple(times[1:])
    assert bytes_of(tmp_path, STDOUT, until=until) == b"%d\n%d\n" % tuple(times[:2])
    assert bytes_of(tmp_path, STDOUT, since=since, until=until) == b"%d\n" % times[1]
    assert bytes_of(tmp_path, STDOUT, since=since, tail=1) == b"%d\n" % times[2]


def test_timestamps_stand_before_lines_only(tmp_path: Path) -> None:
    moments = [stamp_of(10**18 + n) for n in range(4)]
    chunks = [b"a ", b"b\n", b"c\nd\n", b"e"]
    data = b"".join(encode(m, STDOUT, c) for m, c in zip(moments, chunks, strict=True))
    (tmp_path / "00000001.log").write_bytes(data)
    shown = Shown(timestamps=True)
    text = b"".join(shown.text(record) for record in read(str(tmp_path), Query()))
    m = moments
    assert text == b"%b a b\n%b c\n%b d\n%b e" % (m[0], m[2], m[2], m[3])


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("2001-09-09T01:46:40Z", 10**18),
        ("2001-09-09T01:46:40.000000005Z", 10**18 + 5),
        ("2001-09-09T03:46:40.5+02:00", 10**18 + 5 * 10**8),
        ("2001-09-09T01:46", 10**18 - 40 * 10**9),
        ("2001-09-09", 999993600 * 10**9),
        ("1000000000", 10**18),
        ("1000000000.25", 10**18 + 25 * 10**7),
        ("10m", 2 * 10**18 - 600 * 10**9),
        ("1h30m", 2 * 10**18 - 5400 * 10**9),
    ],
)
def test_points_in_time(text: str, ns: int) -> None:
    assert ns_of(text, 2 * 10**18) == ns


@pytest.mark.parametrize(
    "text", ["yesterday", "2001-13-01T00:00:00Z", "5 m", "2001-09-09T25:00Z", "10x", "-"]
)
def test_points_in_time_that_are_none(text: str) -> None:
    with pytest.raises(InvalidArgument):
        stamp(text)


def test_no_point_in_time() -> None:
    assert stamp("") == b""
