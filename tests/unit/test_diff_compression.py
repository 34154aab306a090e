"""Streams are inflated in bounded pieces, and what is damaged is said to be."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Iterator

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from kontti.diff import compression
from kontti.diff.compression import CHUNK, compressor, decompressed, detect
from kontti.diff.zstd_frames import FrameTracker
from kontti.errors import InvalidArgument, ResourceExhausted, Unimplemented

SKIPPABLE = b"\x5a\x2a\x4d\x18\x03\0\0\0abc"
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
    "none": bytes,
}


def inflate(data: bytes, how: str = "", limit: int = 0) -> bytes:
    return b"".join(decompressed(io.BytesIO(data).read, how, limit))


@pytest.fixture(params=["isal", "zlib"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "zlib":
        monkeypatch.setattr(compression, "HAS_ISAL", False)
    return request.param  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", COMPRESS)
@pytest.mark.parametrize("size", [0, 1, 100, 3 * CHUNK + 7])
def test_what_was_compressed_comes_back(library: str, how: str, size: int) -> None:
    data = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    packed = COMPRESS[how](data)
    assert inflate(packed) == data
    assert detect(packed) == (how if packed else "none")


@pytest.mark.parametrize("how", COMPRESS)
def test_our_own_compressor_is_read_back_by_others(library: str, how: str) -> None:
    made = compressor(how)
    packed = made.compress(b"hello ") + made.compress(b"world") + made.flush()
    unpack: dict[str, Callable[[bytes], bytes]] = {
        "gzip": gzip.decompress,
        "zstd": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
        "none": bytes,
    }
    assert unpack[how](packed) == b"hello world"


def test_gzip_headers_hold_no_time(library: str) -> None:
    made = compressor("gzip")
    packed = made.compress(b"x") + made.flush()
    assert packed[4:8] == bytes(4)
    assert packed[3] == 0


@pytest.mark.parametrize("how", ["gzip", "zstd"])
def test_several_members_are_one_stream(library: str, how: str) -> None:
    pack = COMPRESS[how]
    assert inflate(pack(b"one ") + pack(b"two")) == b"one two"


def test_skippable_frames_are_skipped() -> None:
    pack = COMPRESS["zstd"]
    assert inflate(SKIPPABLE + pack(b"one") + SKIPPABLE + pack(b"two") + SKIPPABLE) == b"onetwo"


@pytest.mark.parametrize("how", ["gzip", "zstd"])
@pytest.mark.parametrize("cut", [1, 4, 8, 20])
def test_truncated_streams_are_refused(library: str, how: str, cut: int) -> None:
    packed = COMPRESS[how](bytes(range(256)) * 1000)
    with pytest.raises(InvalidArgument):
        inflate(packed[:-cut])


@pytest.mark.parametrize("how", ["gzip", "zstd"])
@pytest.mark.parametrize("junk", [b"j", b"junk and more", bytes(600)])
def test_junk_behind_is_refused(library: str, how: str, junk: bytes) -> None:
    with pytest.raises(InvalidArgument):
        inflate(COMPRESS[how](b"data" * 500) + junk)


@pytest.mark.parametrize("how", ["gzip", "zstd"])
def test_wrong_checksums_are_refused(library: str, how: str) -> None:
    packed = bytearray(COMPRESS[how](b"data" * 500))
    packed[-6 if how == "gzip" else -1] ^= 1
    with pytest.raises(InvalidArgument):
        inflate(bytes(packed))


@pytest.mark.parametrize("how", ["gzip", "zstd"])
def test_bombs_come_in_bounded_pieces_and_stop_at_the_limit(library: str, how: str) -> None:
    packed = COMPRESS[how](bytes(64 << 20))
    assert len(packed) < 100_000
    assert max(map(len, decompressed(io.BytesIO(packed).read))) <= CHUNK
    with pytest.raises(ResourceExhausted):
        inflate(packed, limit=1 << 20)


def test_a_window_of_gigabytes_is_refused() -> None:
    # frame header: window descriptor for 2 GiB
    frame = b"\x28\xb5\x2f\xfd\x00\xa8" + b"\x01\x00\x00"
    with pytest.raises(InvalidArgument):
        inflate(frame)


def test_unknown_compression_is_refused() -> None:
    with pytest.raises(Unimplemented):
        inflate(b"", "lzma")
    with pytest.raises(Unimplemented):
        compressor("lzma")


@given(st.binary(max_size=400), st.sampled_from(["gzip", "zstd"]))
def test_noise_is_an_error_of_ours(noise: bytes, how: str) -> None:
    magic = {"gzip": b"\x1f\x8b\x08", "zstd": b"\x28\xb5\x2f\xfd"}[how]
    try:
        inflate(magic + noise)
    except InvalidArgument:
        pass


@given(st.lists(st.binary(max_size=300_000), max_size=4), st.integers(1, 4000))
def test_frames_are_followed_in_any_pieces(parts: list[bytes], size: int) -> None:
    level = zstandard.ZstdCompressor(write_checksum=True, write_content_size=len(parts) % 2 == 0)
    stream = b"".join(level.compress(part) for part in parts)
    tracker = FrameTracker()
    for offset in range(0, len(stream), size):
        tracker.feed(stream[offset : offset + size])
    assert tracker.complete
    shorter = FrameTracker()
    shorter.feed(stream[:-1])
    assert shorter.complete == (not stream)
