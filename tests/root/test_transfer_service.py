"""The Transfer service of a running daemon: every way, progress, credentials, ends too early."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from kontti import Engine
from kontti.client.client import Client
from kontti.client.stores import RemoteStores
from kontti.client.transfer import STREAM, Transfer
from kontti.engine.stores import StoreSettings
from kontti.errors import Error, InvalidArgument, NotFound, Unauthenticated, Unimplemented
from kontti.namespaces import Scope
from kontti.transfer.verifiers import BinDir
from kontti.wire.messages.google import Any, Empty
from kontti.wire.messages.services.streaming.v1.streaming import StreamInit
from kontti.wire.messages.types.platform import Platform
from kontti.wire.messages.types.transfer.imagestore import (
    ImageReference,
    ImageStore,
    UnpackConfiguration,
)
from kontti.wire.messages.types.transfer.importexport import ImageExportStream, ImageImportStream
from kontti.wire.messages.types.transfer.progress import Progress
from kontti.wire.messages.types.transfer.registry import (
    AuthResponse,
    AuthType,
    OCIRegistry,
    RegistryResolver,
)
from kontti.wire.typeurl import pack, unpack
from tests.support import daemons, registry
from tests.support.daemons import Daemon
from tests.support.images import Entry, Image, archive, build, layer
from tests.support.shims import short_folder
from tests.support.web import Answer, Asked, Repository, serving

pytestmark = pytest.mark.root
SCOPE = Scope("default")
LINUX = Platform(os="linux", architecture="amd64")
UNPACK = UnpackConfiguration(platform=LINUX, snapshotter="overlayfs")
PASSWORDS = "alice:$2b$04$tv114WrPnSRmNmw/c90Q9OEd8bqQQZZawUHHQnCZ396BrzYlTco1i\n"
SECONDS = 15.0


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with short_folder() as folder, daemons.running("kontti", folder) as found:
        yield found


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with Client(daemon.address) as found:
        yield found


@pytest.fixture
def stores(daemon: Daemon) -> Iterator[RemoteStores]:
    found = RemoteStores(daemon.address)
    yield found
    images = found.images(SCOPE)
    for image in images.list():
        images.delete(image.name)
    assert found.leases(SCOPE).list() == []
    found.close()


@pytest.fixture(scope="module")
def image() -> Image:
    return build()


def pull(client: Client, name: str, store: ImageStore) -> list[Progress]:
    """Pull by plain HTTP; gives the progress."""
    told: list[Progress] = []
    transfer = Transfer(client)
    stream = transfer.progress(told.append)
    resolver = RegistryResolver(default_scheme="http")
    transfer.run(OCIRegistry(reference=name, resolver=resolver), store, stream)
    return told


def contents(tar: bytes) -> dict[str, object]:
    """An archive's files by name, the JSON of index and manifest read."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as read:
        files = {m.name: read.extractfile(m) for m in read.getmembers() if m.isfile()}
        data = {name: file.read() for name, file in files.items() if file is not None}
    return {n: json.loads(d) if n.endswith(".json") else d for n, d in data.items()}


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_pull_tells_of_each_blob_and_where_it_belongs(
    client: Client, stores: RemoteStores, image: Image, tmp_path: Path
) -> None:
    with registry.running(tmp_path) as address:
        registry.push(address, "some/box", "1", image)
        name = f"{address}/some/box:1"
        store = ImageStore(name=name, labels={"k": "v"}, platforms=[LINUX], unpacks=[UNPACK])
        told = pull(client, name, store)
    events = [(p.event, p.name) for p in told]
    assert events[0] == (f"Resolving from OCI Registry ({name})", "")
    assert events[1:3] == [
        (f"Pulling from OCI Registry ({name})", ""),
        ("fetching image content", name),
    ]
    assert events[-2:] == [("saved", name), (f"Completed pull from OCI Registry ({name})", "")]
    assert told[-2].desc is not None
    assert told[-2].desc.digest == image.digest
    manifest = f"manifest-{image.digest}"
    last = {p.name: p for p in told}
    assert last[manifest].parents == [name]
    for digest in image.layer_digests:
        found = last[f"layer-{digest}"]
        assert (found.event, found.parents) == ("extracted", [manifest])
        assert found.progress == found.total == len(image.blobs[digest])
    recorded = stores.images(SCOPE).get(name)
    assert (recorded.target.digest, dict(recorded.labels)) == (image.digest, {"k": "v"})
    assert len(list(stores.snapshots(SCOPE, "overlayfs").walk())) >= len(image.layer_digests)


def test_a_name_of_its_own_and_further_ones(
    client: Client, stores: RemoteStores, image: Image, tmp_path: Path
) -> None:
    with registry.running(tmp_path) as address:
        registry.push(address, "some/box", "1", image)
        store = ImageStore(name="mine", extra_references=[ImageReference(name="also")])
        pull(client, f"{address}/some/box:1", store)
        assert {i.name for i in stores.images(SCOPE).list()} == {"mine", "also"}
        # a further name goes with the first
        stores.images(SCOPE).delete("mine", sync=True)
        assert stores.images(SCOPE).list() == []
        with pytest.raises(NotFound, match="no image name found"):
            pull(client, f"{address}/some/box:1", ImageStore())


def test_import_export_tag_and_push(
    client: Client, stores: RemoteStores, image: Image, tmp_path: Path
) -> None:
    told: list[Progress] = []
    importing = Transfer(client)
    stream = importing.source(io.BytesIO(gzip.compress(archive(image, "foo/bar:1"))).read)
    prefix = ImageReference(name="foo/bar", is_prefix=True)
    store = ImageStore(extra_references=[prefix], platforms=[LINUX], unpacks=[UNPACK])
    importing.run(ImageImportStream(stream=stream), store, importing.progress(told.append))
    assert [p.event for p in told][:1] == ["Importing"]
    assert ("saved", "foo/bar:1") in [(p.event, p.name) for p in told]
    assert told[-1].event == "Completed import"

    written = io.BytesIO()
    exporting = Transfer(client)
    sink = exporting.sink(written.write)
    wanted = ImageStore(extra_references=[ImageReference(name="foo/bar:1")])
    exporting.run(wanted, ImageExportStream(stream=sink))
    names = [image.digest, image.config_digest, *image.layer_digests]
    assert all(name.removeprefix("sha256:").encode() in written.getvalue() for name in names)
    assert written.getvalue().endswith(b"\0" * 1024)

    with registry.running(tmp_path) as address:
        name = f"{address}/foo/copy:2"
        Transfer(client).run(ImageStore(name="foo/bar:1"), ImageStore(name=name))
        pushing = Transfer(client)
        told.clear()
        resolver = RegistryResolver(default_scheme="http")
        pushing.run(
            ImageStore(name=name),
            OCIRegistry(reference=name, resolver=resolver),
            pushing.progress(told.append),
        )
        assert ("complete", f"manifest-{image.digest}") in [(p.event, p.name) for p in told]
        assert told[-1].event == f"Completed push to OCI Registry ({name})"
        again = pull(client, name, ImageStore(name="again"))
        assert again[-1].event == f"Completed pull from OCI Registry ({name})"
    assert stores.images(SCOPE).get("again").target.digest == image.digest


def test_what_cannot_be_a_transfer(client: Client, image: Image) -> None:
    registry_, store = OCIRegistry(reference="a/b:1"), ImageStore(name="a")
    words = (
        "method Transfer not implemented for containerd.types.transfer.OCIRegistry "
        "to containerd.types.transfer.OCIRegistry"
    )
    with pytest.raises(Unimplemented, match=words):
        Transfer(client).run(registry_, registry_)
    with pytest.raises(Unimplemented, match=r"not implemented for google\.protobuf\.Empty to"):
        Transfer(client).run(Empty(), store)
    with pytest.raises(NotFound, match="stream nowhere"):
        Transfer(client).run(ImageImportStream(stream="nowhere"), store)
    with pytest.raises(NotFound, match="stream nowhere"):
        Transfer(client).run(store, store, "nowhere")
    with pytest.raises(NotFound):
        Transfer(client).run(store, ImageStore(name="b"))
    exporting = Transfer(client)
    with pytest.raises(NotFound):
        exporting.run(store, ImageExportStream(stream=exporting.sink(lambda _: None)))


def test_what_breaks_on_the_clients_side_is_what_it_hears(
    client: Client, stores: RemoteStores, image: Image
) -> None:
    def broken(_: int) -> bytes:
        raise OSError("the disk is gone")

    importing = Transfer(client)
    store = ImageStore(extra_references=[ImageReference(name="foo", is_prefix=True)])
    with pytest.raises(OSError, match="the disk is gone"):
        importing.run(ImageImportStream(stream=importing.source(broken)), store)


def test_the_client_is_asked_who_the_user_is(
    client: Client, stores: RemoteStores, image: Image, tmp_path: Path
) -> None:
    (tmp_path / "htpasswd").write_text(PASSWORDS)
    auth = f"auth: {{htpasswd: {{realm: test, path: {tmp_path / 'htpasswd'}}}}}\n"
    asked: list[str] = []

    def moved(answer: AuthResponse, source: Callable[[OCIRegistry], None]) -> None:
        def tell(host: str) -> AuthResponse:
            asked.append(host)
            return answer

        transfer = Transfer(client)
        resolver = RegistryResolver(default_scheme="http", auth_stream=transfer.credentials(tell))
        end = OCIRegistry(reference=f"{address}/a/b:1", resolver=resolver)
        source(end)

    with registry.running(tmp_path, auth) as address:
        alice = AuthResponse(authType=AuthType.CREDENTIALS, username="alice", secret="secret")
        importing = Transfer(client)
        stream = importing.source(io.BytesIO(archive(image, "x/y:1")).read)
        named = [ImageReference(name="x/y", is_prefix=True)]
        importing.run(ImageImportStream(stream=stream), ImageStore(extra_references=named))
        moved(alice, lambda end: Transfer(client).run(ImageStore(name="x/y:1"), end))
        assert set(asked) == {address}
        header = AuthResponse(authType=AuthType.HEADER, secret="Basic YWxpY2U6c2VjcmV0")
        for good in (alice, header):
            moved(good, lambda end: Transfer(client).run(end, ImageStore(name="z:1")))
        for bad in (AuthResponse(), AuthResponse(authType=1, username="alice", secret="guess")):
            with pytest.raises(Unauthenticated):
                moved(bad, lambda end: Transfer(client).run(end, ImageStore(name="z:1")))


def test_a_client_that_ends_ends_its_pull(daemon: Daemon, stores: RemoteStores) -> None:
    image = build([layer([Entry("seen", b"by no other test")])])
    stalls, go_on = threading.Event(), threading.Event()
    serve = Repository(dict(image.blobs), {"1": image.digest})
    serve.media_types[image.digest] = str(image.manifest["mediaType"])

    def behaviour(asked: Asked) -> Answer:
        if asked.path.endswith(image.layer_digests[0]):
            stalls.set()
            go_on.wait(60)
        return serve(asked)

    def run(client: Client, name: str) -> None:
        with pytest.raises(Error):
            pull(client, name, ImageStore(name="box:1", unpacks=[UNPACK]))

    with serving(behaviour) as web, Client(daemon.address) as client:
        try:
            name = f"{web.url.removeprefix('http://')}/box:1"
            thread = threading.Thread(target=run, args=(client, name))
            thread.start()
            assert stalls.wait(SECONDS)
            assert len(stores.leases(SCOPE).list()) == 1
            client.close()
            thread.join(SECONDS)
            assert not thread.is_alive()
            # the registry still says nothing
            until(lambda: not stores.leases(SCOPE).list())
            assert stores.images(SCOPE).list() == []
        finally:
            go_on.set()


def test_one_that_waits_for_anothers_download_ends_at_once(
    daemon: Daemon, stores: RemoteStores
) -> None:
    """The other's goes on: it is complete although who waited for it left."""
    image = build([layer([Entry("seen", b"by nobody but this test")])])
    asked, go_on = threading.Semaphore(0), threading.Event()
    serve = Repository(dict(image.blobs), {"1": image.digest})
    serve.media_types[image.digest] = str(image.manifest["mediaType"])

    def behaviour(request: Asked) -> Answer:
        if request.path.endswith(image.layer_digests[0]):
            asked.release()
            go_on.wait(60)
        return serve(request)

    def run(client: Client, name: str, failed: bool) -> None:
        with pytest.raises(Error) if failed else contextlib.nullcontext():
            pull(client, f"{web.host}/{name}", ImageStore(name=name, unpacks=[UNPACK]))

    with (
        serving(behaviour) as web,
        Client(daemon.address) as first,
        Client(daemon.address) as second,
    ):
        try:
            loads = threading.Thread(target=run, args=(first, "loads:1", False))
            loads.start()
            assert asked.acquire(timeout=SECONDS)
            waits = threading.Thread(target=run, args=(second, "waits:1", True))
            waits.start()
            until(lambda: len(stores.leases(SCOPE).list()) == 2)
            time.sleep(0.5)
            second.close()
            waits.join(SECONDS)
            until(lambda: len(stores.leases(SCOPE).list()) == 1)
            assert not go_on.is_set()
            assert not asked.acquire(blocking=False)
        finally:
            go_on.set()
        loads.join(SECONDS)
        assert not loads.is_alive()
        assert [i.name for i in stores.images(SCOPE).list()] == ["loads:1"]


def test_a_client_that_reads_no_progress_holds_nothing_up(
    daemon: Daemon, client: Client, stores: RemoteStores, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = build([layer([Entry(f"f{n}", b"x")]) for n in range(300)])
    serve = Repository(dict(image.blobs), {"1": image.digest})
    serve.media_types[image.digest] = str(image.manifest["mediaType"])
    # as Go's clients: no more than 64 KiB are on their way to who reads nothing
    monkeypatch.setattr("kontti.wire.http2.OUR_WINDOW", 66_000)
    with serving(serve) as web, Client(daemon.address) as silent:
        stream = silent.duplex(STREAM)
        stream.send(pack(StreamInit(id="unread")))
        assert stream.receive(Any) is not None
        name = f"{web.url.removeprefix('http://')}/box:1"
        resolver = RegistryResolver(default_scheme="http")
        end = OCIRegistry(reference=name, resolver=resolver)
        Transfer(client).run(end, ImageStore(name="box:1"), "unread")
        assert stores.images(SCOPE).get("box:1").target.digest == image.digest
        told = []
        while (message := stream.receive(Any, timeout=SECONDS)) is not None:
            told.append(unpack(message, Progress).event)
    assert told
    assert "saved" not in told


def test_unpack_config_says_what_is_unpacked(image: Image) -> None:
    more = (
        '[plugins."io.containerd.transfer.v1.local"]\n'
        '[[plugins."io.containerd.transfer.v1.local".unpack_config]]\n'
        'platform = "linux/amd64"\nsnapshotter = "native"\n'
    )
    with short_folder() as folder, daemons.running("kontti", folder, more) as it:
        stores = RemoteStores(it.address)
        for snapshotter, count in (("overlayfs", 0), ("native", 2), ("", 2)):
            with Client(it.address, namespace=f"n{snapshotter}") as client:
                transfer = Transfer(client)
                stream = transfer.source(io.BytesIO(archive(image, "a/b:1")).read)
                store = ImageStore(
                    extra_references=[ImageReference(name="a/b", is_prefix=True)],
                    unpacks=[UnpackConfiguration(platform=LINUX, snapshotter=snapshotter)],
                )
                if count:
                    transfer.run(ImageImportStream(stream=stream), store)
                else:
                    with pytest.raises(InvalidArgument, match="no unpack platforms defined"):
                        transfer.run(ImageImportStream(stream=stream), store)
            scope = Scope(f"n{snapshotter}")
            assert bool(list(stores.content(scope).walk())) == bool(count)
            for name in ("overlayfs", "native"):
                found = len(list(stores.snapshots(scope, name).walk()))
                assert found == (count if name == "native" else 0), (snapshotter, name)
        stores.close()


def test_unpack_config_without_entries_has_nothing_unpacked(image: Image, tmp_path: Path) -> None:
    more = '[plugins."io.containerd.transfer.v1.local"]\nunpack_config = []\n'
    path = tmp_path / "in.tar"
    path.write_bytes(archive(image, "a/b:1"))
    serve = Repository(dict(image.blobs), {"1": image.digest})
    serve.media_types[image.digest] = str(image.manifest["mediaType"])
    with (
        serving(serve) as web,
        short_folder() as folder,
        daemons.running("kontti", folder, more) as it,
    ):
        for words in (("import", str(path)), ("pull", "--plain-http", f"{web.host}/box:1")):
            done = it.ctr("ours", "images", words[0], *words[1:])
            assert done.returncode == 1, done
            assert b"no unpack platforms defined: invalid argument" in done.stderr
            assert it.ctr("ours", "images", "ls", "-q").stdout == b""
        done = it.ctr("ours", "images", "import", "--no-unpack", str(path))
        assert done.returncode == 0, done
        assert it.ctr("ours", "images", "ls", "-q").stdout != b""


def test_unpack_config_says_what_applies_layers(image: Image, tmp_path: Path) -> None:
    more = (
        '[proxy_plugins.lazy]\ntype = "diff"\naddress = "/no/such.sock"\n'
        '[[plugins."io.containerd.transfer.v1.local".unpack_config]]\n'
        'platform = "linux/amd64"\nsnapshotter = "native"\ndiffer = "lazy"\n'
        '[[plugins."io.containerd.transfer.v1.local".unpack_config]]\n'
        'platform = "linux/amd64"\nsnapshotter = "overlayfs"\ndiffer = "walking"\n'
    )
    (tmp_path / "in.tar").write_bytes(archive(image, "a/b:1"))
    with short_folder() as folder, daemons.running("kontti", folder, more) as it:
        for snapshotter, code in (("native", 1), ("overlayfs", 0)):
            path = str(tmp_path / "in.tar")
            done = it.ctr("ours", "images", "import", "--snapshotter", snapshotter, path)
            assert (done.returncode, b"/no/such.sock" in done.stderr) == (code, bool(code)), done


def test_image_verifiers_are_asked_before_anything_is_fetched(
    image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier = tmp_path / "verifier"
    verifier.write_text('#!/bin/sh\ncase "$2" in *trusted*) ;; *) echo who; exit 1;; esac\n')
    verifier.chmod(0o755)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "v").symlink_to(verifier)
    more = f'[plugins."io.containerd.image-verifier.v1.bindir"]\nbin_dir = "{tmp_path}/bin"\n'
    serve = Repository(dict(image.blobs), {"1": image.digest})
    serve.media_types[image.digest] = str(image.manifest["mediaType"])
    with (
        serving(serve) as web,
        short_folder() as folder,
        daemons.running("kontti", folder, more) as it,
    ):
        with Client(it.address) as client:
            with pytest.raises(Error) as refused:
                pull(client, f"{web.host}/other:1", ImageStore(name="other:1"))
            assert refused.value.message == (
                f"image verifier bindir blocked pull of {web.host}/other:1 with digest "
                f"{image.digest} for reason: verifier v rejected image (exit code 1): who"
            )
            # it was resolved, and that is all
            assert all(asked.method == "HEAD" for asked in web.asked), web.paths()
            pull(client, f"{web.host}/trusted:1", ImageStore(name="trusted:1"))
        assert it.ctr("ours", "images", "ls", "-q").stdout == b"trusted:1\n"
        rows = it.ctr("ours", "plugins", "ls", "id==bindir").stdout
        assert b"io.containerd.image-verifier.v1" in rows
        # with no daemon the same
        judged = partial(StoreSettings, verifiers=(BinDir(f"{tmp_path}/bin"),))
        monkeypatch.setattr("kontti.engine.embedded.StoreSettings", judged)
        with Engine(str(folder / "r"), str(folder / "s")) as engine:
            with pytest.raises(Error, match="rejected image"):
                engine.pull(f"{web.host}/other:1", plain_http=True)
            assert engine.pull(f"{web.host}/trusted:1", plain_http=True).name.endswith("trusted:1")


def test_ctr_moves_images_by_the_service_and_without_it(
    daemon: Daemon, stores: RemoteStores, image: Image, tmp_path: Path
) -> None:
    (tmp_path / "in.tar").write_bytes(archive(image, "foo/bar:1"))
    outputs = []
    for flags in ((), ("--local",)):
        done = daemon.ctr("ours", "images", "import", *flags, str(tmp_path / "in.tar"))
        assert done.returncode == 0, done.stderr
        written = daemon.ctr("ours", "images", "export", *flags, "-", "foo/bar:1")
        assert written.returncode == 0, written.stderr
        outputs.append((done.stdout, contents(written.stdout)))
        with registry.running(tmp_path) as address:
            name = f"{address}/foo/bar:{len(outputs)}"
            for command in (
                ("tag", "--force", *flags, "foo/bar:1", name),
                ("push", *flags, name),
                ("pull", *flags, name),
            ):
                done = daemon.ctr("ours", "images", *command)
                assert done.returncode == 0, (command, done.stderr)
            assert f"Completed pull from OCI Registry ({name})".encode() in done.stdout
    assert outputs[0] == outputs[1]
    assert outputs[0][0] == f"unpacking foo/bar:1 ({image.digest})...done\n".encode()
    # without --force, what has the name keeps it
    refused = daemon.ctr("ours", "images", "tag", "foo/bar:1", name)
    assert refused.returncode == 1
    assert b"already exists" in refused.stderr
