"""What is packed in a thread comes out whole and in order, and errors come back."""

from __future__ import annotations

import gzip
import threading

import pytest

from kontti.diff.packer import Packer
from tests.support.images import digest_of


def fill(packer: Packer) -> None:
    for _ in range(100):
        packer.put(b"x" * 100_000)


def test_all_of_it_in_order() -> None:
    parts = [bytes([number]) * 50_000 for number in range(100)]
    out: list[bytes] = []
    packer = Packer(out.append, "gzip")
    for part in parts:
        packer.put(part)
    packer.finish()
    assert gzip.decompress(b"".join(out)) == b"".join(parts)
    assert packer.diff_id == digest_of(b"".join(parts))


def test_nothing_at_all() -> None:
    out: list[bytes] = []
    Packer(out.append, "gzip").finish()
    assert gzip.decompress(b"".join(out)) == b""


def test_an_error_of_the_receiver_is_raised() -> None:
    def broken(_data: bytes) -> None:
        raise BrokenPipeError("nobody reads")

    packer = Packer(broken, "none")
    with pytest.raises(BrokenPipeError):
        fill(packer)
    with pytest.raises(BrokenPipeError):
        packer.finish()


def test_nothing_is_emitted_after_close() -> None:
    out: list[bytes] = []
    packer = Packer(out.append, "none")
    for _ in range(20):
        packer.put(b"x" * 1_000_000)
    packer.close()
    packer.close()
    count = len(out)
    assert not [t for t in threading.enumerate() if t.name.endswith("(_run)")]
    assert len(out) == count
