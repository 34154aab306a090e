"""Proxies that are not there, and that do not answer."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kontti.client import proxy
from kontti.client.proxy import ProxySnapshotter
from kontti.errors import DeadlineExceeded, Unavailable


@pytest.fixture
def stuck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of one that takes calls and never answers."""
    monkeypatch.setattr(proxy, "CALL_SECONDS", 0.2)
    monkeypatch.setattr(proxy, "LIST_SECONDS", 0.2)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        yield str(tmp_path / "s")


def test_one_that_does_not_answer(stuck: str) -> None:
    store = ProxySnapshotter(stuck, "x")
    late = f'^proxy plugin at "{stuck}" did not answer in time: context deadline exceeded$'
    try:
        with pytest.raises(DeadlineExceeded, match=late):
            store.stat("a")
        with pytest.raises(DeadlineExceeded, match=late):
            list(store.walk())
    finally:
        store.close()


def test_one_that_is_not_there() -> None:
    store = ProxySnapshotter("/no/such.sock", "x")
    said = '^proxy plugin: failed to dial "/no/such.sock": No such file or directory: unavailable$'
    with pytest.raises(Unavailable, match=said):
        store.stat("a")
