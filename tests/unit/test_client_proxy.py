"""Proxies that are not there, and that do not answer."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kontti.client import proxy
from kontti.client.proxy import ProxyContent, ProxySnapshotter
from kontti.client.stores import SNAPSHOTS
from kontti.errors import DeadlineExceeded, Unavailable
from kontti.snapshots.base import Info, Kind
from kontti.values import Digest

SECONDS = {"QUICK": 0.2, "CALL": 1.2, "LONG": 2.4}


@pytest.fixture
def stuck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of one that takes calls and never answers."""
    for kind, seconds in SECONDS.items():
        monkeypatch.setattr(proxy, f"{kind}_SECONDS", seconds)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        yield str(tmp_path / "s")


CALLS: dict[str, tuple[str, Callable[[ProxySnapshotter], object]]] = {
    "stat": ("QUICK", lambda store: store.stat("a")),
    "update": ("QUICK", lambda store: store.update(Info(Kind.ACTIVE, "a"), ["labels.x"])),
    "walk": ("QUICK", lambda store: list(store.walk())),
    "prepare": ("CALL", lambda store: store.prepare("a")),
    "view": ("CALL", lambda store: store.view("a")),
    "mounts": ("CALL", lambda store: store.mounts("a")),
    "commit": ("LONG", lambda store: store.commit("b", "a")),
    "remove": ("LONG", lambda store: store.remove("a")),
    "usage": ("LONG", lambda store: store.usage("a")),
    "cleanup": ("LONG", lambda store: store.cleanup()),
}


@pytest.mark.parametrize(("kind", "call"), CALLS.values(), ids=CALLS)
def test_one_that_does_not_answer(
    stuck: str, kind: str, call: Callable[[ProxySnapshotter], object]
) -> None:
    late = f'^proxy plugin x at "{stuck}" did not answer in time: context deadline exceeded$'
    began = time.monotonic()
    with (
        contextlib.closing(ProxySnapshotter(stuck, "x")) as store,
        pytest.raises(DeadlineExceeded, match=late),
    ):
        call(store)
    took = time.monotonic() - began
    assert took > SECONDS[kind] - 0.05
    # the machine may be slow, but not as slow as to make one kind another
    assert all(took < longer for longer in SECONDS.values() if longer > SECONDS[kind])


def test_a_content_store_that_does_not_answer(stuck: str) -> None:
    digest = Digest(f"sha256:{'0' * 64}")
    late = f'^proxy plugin y at "{stuck}" did not answer in time: context deadline exceeded$'
    with contextlib.closing(ProxyContent(stuck, "y")) as store:
        for call in (
            lambda: store.info(digest),
            lambda: list(store.walk()),
            lambda: store.delete(digest),
            store.list_statuses,
        ):
            with pytest.raises(DeadlineExceeded, match=late):
                call()


def test_how_long_is_waited() -> None:
    known, others = proxy.QUICK | proxy.LONG, ("Prepare", "View", "Mounts")
    assert all(proxy.seconds_of(method) in (30.0, 600.0) for method in known)
    assert {proxy.seconds_of(f"{SNAPSHOTS}{method}") for method in others} == {120.0}


def test_one_that_is_not_there() -> None:
    store = ProxySnapshotter("/no/such.sock", "x")
    said = 'proxy plugin x: failed to dial "/no/such.sock": No such file or directory'
    with pytest.raises(Unavailable, match=said):
        store.stat("a")
