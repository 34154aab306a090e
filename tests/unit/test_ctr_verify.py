"""``ctr content verify`` beside a collector."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kontti.cmd.ctr import content
from kontti.errors import NotFound
from kontti.wire.messages.services.content.v1.content import (
    Info,
    InfoResponse,
    ListContentResponse,
    ReadContentResponse,
)


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Client:
    """A daemon whose list names blobs that it may no longer have, or cannot read."""

    def __init__(self, listed: list[str], blobs: dict[str, bytes], unreadable: set[str]) -> None:
        self.listed = listed
        self.blobs = blobs
        self.unreadable = unreadable

    def stream(self, method: str, request: Any, kind: type) -> Iterator[Any]:
        if kind is ListContentResponse:
            yield ListContentResponse(info=[Info(digest=digest) for digest in self.listed])
        elif request.digest in self.blobs and request.digest not in self.unreadable:
            yield ReadContentResponse(data=self.blobs[request.digest])
        else:
            raise NotFound(f"content digest {request.digest}: not found")

    def unary(self, method: str, request: Any, kind: type) -> Any:
        if request.digest not in self.blobs:
            raise NotFound(f"content digest {request.digest}: not found")
        return InfoResponse(info=Info(digest=request.digest))


class Call:
    def __init__(self, *args: str) -> None:
        self.args = list(args)

    def bool(self, name: str) -> bool:
        return False


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Client:
    kept, lost = b"kept", b"lost"
    client = Client(
        [digest_of(kept), digest_of(b"collected"), digest_of(lost)],
        {digest_of(kept): kept, digest_of(lost): lost},
        {digest_of(lost)},
    )

    @contextmanager
    def connect(call: Any) -> Iterator[Client]:
        yield client

    monkeypatch.setattr(content, "connect", connect)
    return client


def test_a_blob_that_was_collected_since_it_was_listed(
    daemon: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.unreadable.clear()
    call: Any = Call()
    assert content.verify(call) == 0
    out, err = capsys.readouterr()
    assert out.split() == [digest_of(b"kept"), digest_of(b"lost")]
    assert err == ""


def test_a_blob_whose_file_is_gone(daemon: Client, capsys: pytest.CaptureFixture[str]) -> None:
    call: Any = Call()
    assert content.verify(call) == 1
    assert f"failed to verify {digest_of(b'lost')}" in capsys.readouterr().err


def test_a_named_blob_that_is_gone(daemon: Client, capsys: pytest.CaptureFixture[str]) -> None:
    call: Any = Call(digest_of(b"collected"))
    assert content.verify(call) == 1
    assert "not found" in capsys.readouterr().err
