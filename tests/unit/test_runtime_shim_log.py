"""What shims say, whatever they say."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kontti.errors import Error
from kontti.runtime.bundle import Bundle
from kontti.runtime.shim_log import MAX_LINE, ShimLog


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle("ns", "one", str(tmp_path), "")


def listen(bundle: Bundle, *said: bytes) -> None:
    """Have a shim say ``said`` and hear it all."""

    async def main() -> None:
        log = await ShimLog.open(bundle)
        writer = os.open(os.path.join(bundle.path, "log"), os.O_WRONLY | os.O_NONBLOCK)
        try:
            for part in said:
                os.write(writer, part)
                # two turns of the loop: one to be told of it, one to have read it
                await asyncio.sleep(0)
                await asyncio.sleep(0)
        finally:
            os.close(writer)
            log.close()
            log.close()

    asyncio.run(main())


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, "kontti.runtime.shim_log")
    return lambda: [record.getMessage() for record in caplog.records]


def test_lines_are_heard_whole(bundle: Bundle, heard: Callable[[], list[str]]) -> None:
    listen(bundle, b"first\nsec", b"ond\n", b"not ended")
    assert heard() == ["shim of ns/one: first", "shim of ns/one: second"]


def test_what_is_no_text_is_heard_as_far_as_it_goes(
    bundle: Bundle, heard: Callable[[], list[str]]
) -> None:
    listen(bundle, b"\xff\x00\n", b"x" * 20000)
    first, second = heard()
    assert first == "shim of ns/one: \ufffd\x00"
    assert len(second) == len("shim of ns/one: ") + MAX_LINE


def test_a_fifo_that_is_there_is_used_again(bundle: Bundle, heard: Callable[[], list[str]]) -> None:
    listen(bundle, b"before\n")
    listen(bundle, b"after\n")
    assert heard() == ["shim of ns/one: before", "shim of ns/one: after"]


@pytest.mark.parametrize("what", ["file", "link", "nothing"])
def test_what_is_no_fifo_is_refused(bundle: Bundle, what: str) -> None:
    path = Path(bundle.path) / "log"
    if what == "file":
        path.write_text("")
    elif what == "link":
        path.symlink_to("/dev/null")
    else:
        Path(bundle.path).rmdir()
    with pytest.raises(Error, match="shim log of one"):
        listen(bundle)
