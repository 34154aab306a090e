"""Early writing of a layer: nothing is changed by it, and its errors are not lost."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from kontti.diff import flusher
from kontti.diff.flusher import EVERY, Flusher
from kontti.linux import libc


def test_chunks_pass_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    big = bytes(EVERY // 2)
    made = Flusher()
    assert list(made.watch([b"a", big, big, big, b"z"])) == [b"a", big, big, big, b"z"]
    made.finish()


def test_a_small_layer_starts_no_thread() -> None:
    made = Flusher()
    assert list(made.watch([b"abc"])) == [b"abc"]
    assert made._thread is None
    made.finish()


def test_an_error_comes_to_light(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def broken(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(libc, "syncfs", broken)
    monkeypatch.setattr(flusher, "EVERY", 10)
    made = Flusher()
    list(made.watch([bytes(8)] * 8))
    with pytest.raises(OSError, match="Input/output error"):
        made.finish()
