"""Programs that judge images before they are pulled: real ones, honest, slow, loud and broken."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import pytest

from kontti.errors import Error
from kontti.testing.content import sha256
from kontti.transfer.verifiers import OUTPUT_BYTES, BinDir, Judgement, verify
from kontti.values import Descriptor, Platform
from tests.support.host import gone

TARGET = Descriptor(
    "application/vnd.oci.image.index.v1+json",
    sha256(b"image"),
    5,
    {"a": "b"},
    platform=Platform("linux", "arm64", "v8"),
)
NAME = "registry.example/some/box:1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "bin"
    made.mkdir()
    return made


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def judge(folder: Path, most: int = 10, seconds: float = 10.0) -> Judgement:
    return BinDir(str(folder), most, seconds).judge(NAME, TARGET)


def test_no_programs_refuse_nothing(folder: Path) -> None:
    assert judge(folder / "none").ok
    assert judge(folder).ok
    (folder / "file").touch()
    with pytest.raises(OSError, match="Not a directory"):
        judge(folder / "file")


def test_what_a_program_is_told(folder: Path, tmp_path: Path) -> None:
    words = f'for word in "$@"; do echo "$word"; done > {tmp_path}/argv'
    program(folder, "v", f"{words}; cat > {tmp_path}/stdin")
    assert judge(folder) == Judgement(True, "v => ")
    assert (tmp_path / "argv").read_text().splitlines() == [
        "-name", NAME,
        "-digest", str(TARGET.digest),
        "-stdin-media-type", "application/vnd.oci.descriptor.v1+json",
    ]  # fmt: skip
    assert json.loads((tmp_path / "stdin").read_text()) == {
        "mediaType": TARGET.media_type,
        "digest": str(TARGET.digest),
        "size": 5,
        "annotations": {"a": "b"},
        "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"},
    }


def test_all_must_let_it_pass(folder: Path, tmp_path: Path) -> None:
    program(folder, "b", "echo is fine")
    program(folder, "a", "echo 'is signed '")
    assert judge(folder) == Judgement(True, "a => is signed, b => is fine")
    program(folder, "c", "echo is from yesterday; exit 3")
    program(folder, "d", f"touch {tmp_path}/asked")
    refused = "verifier c rejected image (exit code 3): is from yesterday"
    assert judge(folder) == Judgement(False, refused)
    # who comes after one that refuses is not asked
    assert not (tmp_path / "asked").exists()


def test_so_many_are_asked(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    program(folder, "a", "echo yes")
    program(folder, "b", "exit 1")
    assert judge(folder, most=1).ok
    assert "more than the 1 of max_verifiers" in caplog.text
    assert judge(folder, most=0).ok
    for most in (2, -1):
        assert not judge(folder, most=most).ok


def test_one_that_takes_too_long_is_killed_with_all_that_it_started(
    folder: Path, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    program(folder, "slow", f"sleep 100 & echo $! $$ > {pids}; wait")
    began = time.monotonic()
    with pytest.raises(Error, match=r"failed to call verifier slow \(runtime .*in time"):
        judge(folder, seconds=1.0)
    assert time.monotonic() - began < 30
    assert all(gone(int(pid)) for pid in pids.read_text().split())


def test_what_one_left_running_does_not_outlive_it(folder: Path, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    program(folder, "v", f"sleep 100 > /dev/null 2>&1 & echo $! > {pids}; echo ok")
    assert judge(folder) == Judgement(True, "v => ok")
    assert gone(int(pids.read_text()))


def test_output_without_end_is_cut(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    loud = "head -c 1000000 /dev/zero | tr '\\0' x"
    program(folder, "v", f"{loud}; echo one >&2; {loud} >&2; exit 1")
    with caplog.at_level(logging.DEBUG):
        judgement = judge(folder)
    said = f"verifier v rejected image (exit code 1): {'x' * OUTPUT_BYTES}(truncated)"
    assert judgement == Judgement(False, said)
    assert "image verifier v: one" in caplog.text
    assert sum(len(record.message) for record in caplog.records) < 2 * OUTPUT_BYTES


@pytest.mark.parametrize("how", ["nothing", "directory", "killed", "not executable"])
def test_one_that_cannot_answer_is_no_consent(folder: Path, how: str) -> None:
    path = folder / "v"
    program(folder, "v", "kill -9 $$")
    if how == "nothing":
        path.write_bytes(b"")
    elif how == "directory":
        path.unlink()
        path.mkdir()
    elif how == "not executable":
        path.chmod(0o644)
    with pytest.raises(Error, match="failed to call verifier v"):
        judge(folder)


def test_what_who_pulls_hears(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    program(folder, "v", "echo fine")
    program(other, "v", "echo never; exit 1")
    verify([BinDir(str(folder))], NAME, TARGET)
    what = f"pull of {NAME} with digest {TARGET.digest}"
    with pytest.raises(Error) as refused:
        verify([BinDir(str(folder)), BinDir(str(other))], NAME, TARGET)
    reason = "verifier v rejected image (exit code 1): never"
    assert refused.value.message == f"image verifier bindir blocked {what} for reason: {reason}"
    with pytest.raises(Error) as broken:
        verify([BinDir(str(folder / "v"))], NAME, TARGET)
    assert broken.value.message.startswith(f"blocking {what}: image verifier bindir returned error")
