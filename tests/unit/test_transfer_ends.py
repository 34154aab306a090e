"""The ends of a transfer: from messages, to names, records, credentials and snapshotters."""

from __future__ import annotations

import asyncio

import pytest

from kontti.errors import InvalidArgument, NotFound
from kontti.registry.auth import Credentials
from kontti.services.outbox import MAX_WAITING, Outbox
from kontti.services.transfer_ends import Cancel, credentials, host_options, image_store
from kontti.streaming.bytes import pack
from kontti.transfer.ends import (
    ImageReference,
    ImageStore,
    UnpackWish,
    name_in_archive,
    supported_for,
)
from kontti.transfer.settings import Supported
from kontti.values import Descriptor, Digest, Platform
from kontti.wire.messages.types import platform as wire
from kontti.wire.messages.types.transfer import imagestore
from kontti.wire.messages.types.transfer.registry import AuthResponse, AuthType, RegistryResolver

DIGEST = Digest("sha256:" + "a" * 64)
TARGET = Descriptor("application/vnd.oci.image.index.v1+json", DIGEST, 7)
FULL, TAG = "io.containerd.image.name", "org.opencontainers.image.ref.name"
AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64")


def test_an_image_store_from_its_message() -> None:
    message = imagestore.ImageStore(
        name="a",
        labels={"k": "v"},
        platforms=[wire.Platform(os="linux", architecture="arm64", os_features=["x"])],
        all_metadata=True,
        manifest_limit=2,
        extra_references=[imagestore.ImageReference(name="p", is_prefix=True, add_digest=True)],
        unpacks=[imagestore.UnpackConfiguration(snapshotter="native")],
    )
    store = image_store(imagestore.ImageStore.decode(message.encode()))
    assert store == ImageStore(
        "a",
        {"k": "v"},
        (Platform("linux", "arm64", os_features=("x",)),),
        True,
        2,
        (ImageReference("p", is_prefix=True, digest=True),),
        (UnpackWish(Platform(), "native"),),
    )
    assert store.selection().limit == 2
    assert not store.selection().all_platforms
    assert image_store(imagestore.ImageStore()).selection().all_platforms


@pytest.mark.parametrize(
    ("annotations", "overwrite", "name"),
    [
        ({FULL: "docker.io/library/b:1", TAG: "1"}, True, "docker.io/library/b:1"),
        ({FULL: "docker.io/library/b:1", TAG: "1"}, False, ""),
        ({FULL: "foo/bar:1", TAG: "1"}, False, "foo/bar:1"),
        ({FULL: "foo/barber:1"}, False, ""),
        ({FULL: "bare"}, True, ""),
        ({TAG: "1"}, False, "foo/bar:1"),
        ({TAG: "x/y:1"}, False, ""),
        ({TAG: "x/y:1"}, True, "x/y:1"),
        ({}, True, ""),
    ],
)
def test_names_in_an_archive(annotations: dict[str, str], overwrite: bool, name: str) -> None:
    reference = ImageReference("foo/bar", is_prefix=True, overwrite=overwrite)
    assert name_in_archive(annotations, reference) == name


def test_records_by_name_and_by_digest() -> None:
    named = Descriptor("m", DIGEST, 7, {TAG: "1"})
    digests = ImageReference("foo", is_prefix=True, digest=True)
    both = ImageStore(references=(digests,), labels={"k": "v"})
    assert [i.name for i in both.imported(named)] == ["foo:1", f"foo@{DIGEST}"]
    assert [i.name for i in both.imported(TARGET)] == [f"foo@{DIGEST}"]
    skipping = ImageStore(references=(ImageReference("foo", True, True, True, True),))
    assert [i.name for i in skipping.imported(named)] == ["foo:1"]
    assert [i.name for i in skipping.imported(TARGET)] == [f"foo@{DIGEST}"]
    assert both.imported(named)[0].labels == {"k": "v"}
    with pytest.raises(NotFound, match="no image name found"):
        ImageStore(references=(ImageReference("foo", is_prefix=True),)).named(TARGET)


def test_a_further_name_lives_as_long_as_the_first() -> None:
    first, second = ImageStore("a", references=(ImageReference("b"),)).named(TARGET)
    assert (first.name, dict(first.labels)) == ("a", {})
    assert second.name == "b"
    assert second.labels["containerd.io/gc.bref.image"] == "a"
    assert "containerd.io/gc.expire" in second.labels


@pytest.mark.parametrize(
    ("wish", "strict", "found"),
    [
        (UnpackWish(AMD64), True, "overlayfs"),
        (UnpackWish(AMD64, "native"), True, "native"),
        (UnpackWish(AMD64, "erofs"), True, ""),
        (UnpackWish(ARM64, "native"), True, ""),
        # the operating system alone counts
        (UnpackWish(ARM64, "native"), False, "native"),
        (UnpackWish(Platform("windows", "amd64")), False, ""),
    ],
)
def test_what_may_be_unpacked(wish: UnpackWish, strict: bool, found: str) -> None:
    supported = [Supported(AMD64, name, strict) for name in ("native", "overlayfs")]
    chosen = supported_for(wish, supported, "overlayfs")
    assert (chosen.snapshotter if chosen else "") == found


def test_credentials_that_a_client_gives() -> None:
    def said(kind: int, secret: str, user: str = "") -> Credentials | None:
        return credentials(pack(AuthResponse(authType=kind, secret=secret, username=user)))

    assert said(AuthType.CREDENTIALS, "s", "alice") == Credentials("alice", "s")
    assert said(AuthType.REFRESH, "t") == Credentials("", "t")
    # what ctr answers where it has nothing
    assert said(AuthType.REFRESH, "") is None
    assert said(AuthType.NONE, "s", "alice") is None
    assert said(AuthType.HEADER, "Bearer abc") == Credentials(token="abc")
    assert said(AuthType.HEADER, "basic YWxpY2U6czp4") == Credentials("alice", "s:x")
    for wrong in ("Basic !", "Basic YWxpY2U=", "Digest a", "x"):
        with pytest.raises(InvalidArgument):
            said(AuthType.HEADER, wrong)
    with pytest.raises(InvalidArgument, match="where credentials are wanted"):
        credentials(pack(RegistryResolver()))


def test_hosts_by_a_resolver() -> None:
    plain = host_options(RegistryResolver(default_scheme="http", headers={"A": "b"}))
    assert plain.plain_http
    assert plain.headers == (("A", "b"),)
    usual = host_options(RegistryResolver(), ("/x",))
    assert (usual.plain_http, usual.loopback_http, usual.directories) == (False, True, ("/x",))
    assert not host_options(RegistryResolver(default_scheme="https")).loopback_http
    assert host_options(RegistryResolver(host_dir="/y"), ("/x",)).directories == ("/y",)
    with pytest.raises(InvalidArgument):
        host_options(RegistryResolver(default_scheme="ftp"))


def test_an_outbox_sends_the_newest_of_each_in_order() -> None:
    sent: list[str] = []
    gate = asyncio.Event()

    async def send(text: str) -> None:
        await gate.wait()
        sent.append(text)

    async def run() -> None:
        outbox = Outbox(send, pause=0)
        async with asyncio.timeout(10), outbox.sending():
            for text in ("a1", "b1", "a2", "c1", "a3"):
                outbox.post(text[0], text)
            await asyncio.sleep(0)
            gate.set()
        assert sent == ["b1", "c1", "a3"]

    asyncio.run(run())


def test_an_outbox_does_not_wait_for_who_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kontti.services.outbox.LAST_SECONDS", 0.05)

    async def run() -> None:
        async def never(_: str) -> None:
            await asyncio.Event().wait()

        outbox = Outbox(never)
        async with asyncio.timeout(10), outbox.sending():
            for number in range(MAX_WAITING * 2):
                outbox.post(str(number), "x")
            await asyncio.sleep(0.01)
            assert len(outbox._waiting) == MAX_WAITING

    asyncio.run(run())


def test_a_cancel_calls_each_once_and_what_comes_later_at_once() -> None:
    cancel, called = Cancel(), list[int]()
    cancel.add(lambda: called.append(1))
    cancel.set()
    cancel.set()
    cancel.add(lambda: called.append(2))
    assert called == [1, 2]
