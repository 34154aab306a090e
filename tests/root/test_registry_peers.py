"""Debian's docker-registry behind bad networks, passwords and tokens; pulls that are killed."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kontti.errors import Unauthenticated
from kontti.namespaces import Scope
from kontti.registry.auth import Credentials
from kontti.registry.credentials import docker_config, only_for
from kontti.registry.hosts import HostOptions, configured
from kontti.registry.parallel import Chunking
from kontti.registry.pusher import Pusher
from kontti.registry.reference import Reference
from kontti.registry.resolver import Resolver
from kontti.registry.session import Session
from kontti.transfer.push import push
from kontti.transfer.referrers import referrers
from kontti.values import Descriptor, Digest
from tests.support import registry
from tests.support.cutter import cutting
from tests.support.images import Image, build, digest_of
from tests.support.raw import read_head, talking
from tests.support.stores import MemoryStores
from tests.support.tokens import TokenServer, certificate
from tests.support.web import Answer, Asked, Repository, serving

pytestmark = pytest.mark.root

PLAIN = HostOptions(plain_http=True)
ALICE = Credentials("alice", "secret")
PASSWORDS = "alice:$2b$04$tv114WrPnSRmNmw/c90Q9OEd8bqQQZZawUHHQnCZ396BrzYlTco1i\n"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
BLOB = random.Random(3).randbytes(12 << 20)
BIG = Descriptor(LAYER, Digest(digest_of(BLOB)), len(BLOB))


@contextmanager
def opened(path: Path, offset: int) -> Iterator[object]:
    with path.open("rb") as file:
        file.seek(offset)
        yield file


def upload(address: str, blob: Path) -> None:
    with Session(configured(PLAIN)) as session:
        pusher = Pusher(session, Reference.parse(f"{address}/a/b:1"))
        pusher.push_blob(BIG, lambda offset: opened(blob, offset))  # type: ignore[arg-type,return-value]


def fetch(address: str, chunking: Chunking | None = None) -> bytes:
    with Session(configured(PLAIN)) as session:
        fetcher = Resolver(session).fetcher(Reference.parse(f"{address}/a/b:1"), chunking)
        return b"".join(fetcher.fetch(BIG))


def test_a_push_and_a_pull_over_a_line_that_is_cut(tmp_path: Path) -> None:
    """This registry cannot resume within a request, so a blob's upload begins anew."""
    (tmp_path / "blob").write_bytes(BLOB)
    with registry.running(tmp_path) as real:
        with cutting(real, 5 << 20, 2) as (address, up):
            upload(address, tmp_path / "blob")
        with cutting(real, 5 << 20, 2) as (address, down):
            assert fetch(address) == BLOB
        with cutting(real, 1 << 20, 5) as (address, chunks):
            assert fetch(address, Chunking(2 << 20, 4)) == BLOB
        assert (up.cuts, down.cuts, chunks.cuts) == (2, 2, 5)


def test_a_registry_that_refuses_large_bodies(tmp_path: Path) -> None:
    """As nginx before a registry does."""
    (tmp_path / "blob").write_bytes(BLOB)
    refused = []

    with registry.running(tmp_path) as real:

        def forward(asked: Asked) -> Answer:
            if len(asked.body) > 9 << 20:
                refused.append(asked.method)
                return Answer(413)
            return forwarded(real, asked)

        with serving(forward) as web:
            upload(web.host, tmp_path / "blob")
        assert refused == ["PUT"]
        assert fetch(real) == BLOB


def forwarded(address: str, asked: Asked) -> Answer:
    """What the registry at ``address`` answers to it."""
    import http.client

    connection = http.client.HTTPConnection(address, timeout=20)
    connection.request(asked.method, asked.target, asked.body or None, dict(asked.headers))
    response = connection.getresponse()
    headers = {k: v for k, v in response.getheaders() if k.lower() != "content-length"}
    body = response.read()
    connection.close()
    return Answer(response.status, headers, body)


def stores_with(image: Image) -> tuple[MemoryStores, Descriptor]:
    stores = MemoryStores()
    for blob in image.blobs.values():
        stores.content_store.put(blob)
    target = Descriptor(MANIFEST, Digest(image.digest), len(image.blobs[image.digest]))
    return stores, target


def pushed(session: Session, name: str, image: Image) -> None:
    stores, target = stores_with(image)
    push(stores, Scope("default"), session, name, target)


def test_dockers_config_opens_a_registry(tmp_path: Path) -> None:
    (tmp_path / "htpasswd").write_text(PASSWORDS)
    auth = f"auth: {{htpasswd: {{realm: test, path: {tmp_path / 'htpasswd'}}}}}\n"
    config = tmp_path / "config.json"
    with registry.running(tmp_path, auth) as address:
        source, name = docker_config(str(config)), f"{address}/a/b:1"
        with Session(configured(PLAIN), fallback=source) as session:
            with pytest.raises(Unauthenticated):
                pushed(session, name, build([b"x"]))
            config.write_text(json.dumps({"auths": {address: {"auth": "YWxpY2U6c2VjcmV0"}}}))
            # no new session: a file that was changed is in force
            pushed(session, name, build([b"x"]))


def test_hosts_toml_opens_a_mirror(tmp_path: Path) -> None:
    (tmp_path / "htpasswd").write_text(PASSWORDS)
    auth = f"auth: {{htpasswd: {{realm: test, path: {tmp_path / 'htpasswd'}}}}}\n"
    image = build([b"x"])
    with registry.running(tmp_path, auth) as address:
        with Session(configured(PLAIN), only_for(address, ALICE)) as session:
            pushed(session, f"{address}/a/b:1", image)
        place = tmp_path / "certs.d" / "_default"
        place.mkdir(parents=True)
        (place / "password").write_text("secret\n")
        (place / "hosts.toml").write_text(
            f'[host."http://{address}"]\ncapabilities = ["pull", "resolve"]\n'
            f'[host."http://{address}".auth]\nusername = "alice"\npassword_file = "password"\n'
        )
        options = HostOptions(directories=(str(tmp_path / "certs.d"),))
        with Session(configured(options)) as session:
            found = Resolver(session).resolve(Reference.parse("far.example/a/b:1"))[1]
    assert found.digest == image.digest


def test_a_mount_across_repositories_with_tokens(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    image = build([b"layer" * 1000])
    stores, target = stores_with(image)
    with serving(TokenServer(cert, key)) as tokens:
        auth = (
            f"auth: {{token: {{realm: '{tokens.url}/token', service: registry, issuer: issuer, "
            f"rootcertbundle: {cert}}}}}\n"
        )
        with (
            registry.running(tmp_path, auth) as address,
            serving(lambda asked: forwarded(address, asked)) as web,
            Session(configured(PLAIN), only_for(web.host, ALICE)) as session,
        ):
            for name in ("first", "second"):
                push(stores, Scope("default"), session, f"{web.host}/{name}:1", target)
        scopes = {scope for asked in tokens.asked for scope in asked.query["scope"]}
    assert {"repository:first:pull", "repository:second:pull,push"} <= scopes
    puts = [a.path for a in web.asked if a.method == "PUT" and "/second/" in a.path]
    assert puts == ["/v2/second/manifests/1"]


def test_an_artifact_is_found_by_its_subject(tmp_path: Path) -> None:
    """docker-registry 2 has no referrers API: the tag stands in."""
    image = build([b"x"])
    stores, target = stores_with(image)
    config = b"{}"
    stores.content_store.put(config)
    artifact = json.dumps({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "example/sbom",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json",
                   "digest": digest_of(config), "size": len(config)},
        "layers": [],
        "subject": {"mediaType": MANIFEST, "digest": target.digest, "size": target.size},
    }).encode()  # fmt: skip
    digest = stores.content_store.put(artifact)
    with registry.running(tmp_path) as address, Session(configured(PLAIN)) as session:
        name = Reference.parse(f"{address}/a/b:1")
        push(stores, Scope("default"), session, str(name), target)
        assert referrers(session, name, target.digest) == ()
        wanted = Descriptor(MANIFEST, digest, len(artifact))
        for _ in range(2):
            push(stores, Scope("default"), session, f"{address}/a/b:sbom", wanted)
        (found,) = referrers(session, name, target.digest, "example/sbom")
    assert (found.digest, found.artifact_type) == (digest, "example/sbom")


def test_tls_through_a_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cert, key = certificate(tmp_path)
    image, asked = build([b"x"]), []
    with registry.running(tmp_path, http=f", tls: {{certificate: {cert}, key: {key}}}") as real:

        def connect(client: socket.socket) -> None:
            asked.append(read_head(client).partition(b"\r\n")[0])
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            host, _, port = real.rpartition(":")
            with socket.create_connection((host, int(port))) as server:
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=relay, args=pair, daemon=True).start()
                ended.wait(20)

        ended = threading.Event()
        place = tmp_path / "certs.d" / "registry.example"
        place.mkdir(parents=True)
        (place / "hosts.toml").write_text("skip_verify = true\n")
        options = HostOptions(directories=(str(tmp_path / "certs.d"),))
        with talking(connect) as (proxy, _), Session(configured(options)) as session:
            monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy}")
            monkeypatch.delenv("NO_PROXY", raising=False)
            monkeypatch.delenv("no_proxy", raising=False)
            pushed(session, "registry.example/a/b:1", image)
            name = Reference.parse("registry.example/a/b:1")
            assert Resolver(session).resolve(name)[1].digest == image.digest
            ended.set()
    assert {line.rpartition(b" ")[0] for line in asked} == {b"CONNECT registry.example:443"}


def relay(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass


# processes of their own

PULL = r"""
import re, sys
from kontti.engine.engine import Engine
from kontti.namespaces import Scope
from kontti.registry.hosts import HostOptions, configured
from kontti.registry.resolver import Resolver
from kontti.registry.session import Session
from kontti.transfer.base import PullOptions
from kontti.transfer.pull import pull
base, name, buffer = sys.argv[1:]
with Engine(f"{base}/root", f"{base}/state") as engine:
    with Session(configured(HostOptions(plain_http=True))) as session:
        options = PullOptions(unpack=None, concurrent_layer_fetch_buffer=int(buffer))
        parts = engine._stores.transfer_parts()
        pull(parts, Scope("default"), Resolver(session), name, options)
# not getrusage(2): that counts what was there before exec(2)
print(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read()).group(1))
"""


def pulling(base: Path, name: str, buffer: int = 0) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-c", PULL, str(base), name, str(buffer)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True)


def served(size: int) -> tuple[Repository, str]:
    """An image of one layer that does not compress; its layer's digest."""
    image = build([random.Random(size).randbytes(size)])
    kinds = {image.digest: MANIFEST}
    return Repository(dict(image.blobs), {"1": image.digest}, kinds), image.layer_digests[0]


def ingested(base: Path) -> int:
    """How much of the largest blob under way is on disk."""
    files = base.glob("root/io.containerd.content.v1.content/ingest/*/data")
    return max((f.stat().st_size for f in files), default=0)


def test_a_pull_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    repository, layer = served(6 << 20)
    half, hold = len(repository.blobs[layer]) // 2, threading.Event()

    def halting(asked: Asked) -> Answer:
        answer = repository(asked)
        if not asked.path.endswith(layer) or asked.method != "GET" or hold.is_set():
            return answer
        if "range" in asked.headers:
            hold.wait(60)
        return Answer(answer.status, answer.headers, answer.body[:half], len(answer.body))

    with serving(halting) as web:
        name = f"{web.host}/a/b:1"
        first = pulling(tmp_path, name)
        deadline = time.monotonic() + 60
        while ingested(tmp_path) < half and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(first.pid, signal.SIGKILL)
        first.communicate(timeout=30)
        kept = ingested(tmp_path)
        assert kept == half
        hold.set()
        web.asked.clear()
        again = pulling(tmp_path, name)
        again.communicate(timeout=60)
        assert again.returncode == 0
        ranges = [a.headers.get("range") for a in web.asked if a.path.endswith(layer)]
    assert ranges == [f"bytes={kept}-"]
    blob = tmp_path / "root/io.containerd.content.v1.content/blobs/sha256" / layer[7:]
    assert blob.read_bytes() == repository.blobs[layer]


@pytest.mark.parametrize("buffer", [0, 2 << 20])
def test_memory_does_not_grow_with_the_image(tmp_path: Path, buffer: int) -> None:
    peaks = []
    for size in (4 << 20, 64 << 20):
        repository, _ = served(size)
        base = tmp_path / str(size)
        with serving(repository) as web:
            process = pulling(base, f"{web.host}/a/b:1", buffer)
            out, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        peaks.append(int(out))
        size_on_disk = sum(f.stat().st_size for f in base.rglob("blobs/sha256/*"))
        assert size_on_disk > size
    assert peaks[1] - peaks[0] < 20 << 10
