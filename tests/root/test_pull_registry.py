"""Pull from and push to Debian's docker-registry: open, with a password, with tokens, over TLS."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kontti.errors import Error, NotFound, Unauthenticated
from kontti.namespaces import Scope
from kontti.registry.auth import Credentials, CredentialSource, no_credentials
from kontti.registry.hosts import HostOptions, configured
from kontti.registry.http import Tls
from kontti.registry.resolver import Resolver
from kontti.registry.session import Session
from kontti.transfer.base import Pulled
from kontti.transfer.parts import Parts
from kontti.transfer.pull import pull
from kontti.transfer.push import push
from kontti.values import Descriptor
from tests.support import registry
from tests.support.images import Image, archive, build
from tests.support.stores import MemoryApplier, MemoryStores
from tests.support.tokens import TokenServer, certificate
from tests.support.web import serving

pytestmark = pytest.mark.root

SCOPE = Scope("default")
ALICE = Credentials("alice", "secret")
PASSWORDS = "alice:$2b$04$tv114WrPnSRmNmw/c90Q9OEd8bqQQZZawUHHQnCZ396BrzYlTco1i\n"
PLAIN = HostOptions(plain_http=True)


def who(credentials: Credentials | None) -> CredentialSource:
    return lambda host: credentials


@dataclass
class Client:
    """Someone with stores of their own."""

    session: Session
    stores: MemoryStores

    def pull(self, name: str) -> Pulled:
        applier = MemoryApplier(self.stores)
        parts = Parts(self.stores, lambda scope: applier)
        return pull(parts, SCOPE, Resolver(self.session), name)

    def push(self, name: str, image: Image) -> None:
        for blob in image.blobs.values():
            self.stores.content_store.put(blob)
        kind, size = str(image.manifest["mediaType"]), len(image.blobs[image.digest])
        target = Descriptor(kind, self.stores.content_store.put(image.blobs[image.digest]), size)
        push(self.stores, SCOPE, self.session, name, target)


@contextmanager
def client(
    options: HostOptions = PLAIN, credentials: CredentialSource = no_credentials
) -> Iterator[Client]:
    with Session(configured(options), credentials) as session:
        yield Client(session, MemoryStores())


@pytest.fixture(scope="module")
def image() -> Image:
    return build()


def test_what_one_pushes_another_pulls(tmp_path: Path, image: Image) -> None:
    with registry.running(tmp_path) as address, client() as one, client() as other:
        name = f"{address}/some/busybox:1"
        one.push(name, image)
        pulled = other.pull(name)
        again = other.pull(f"{address}/some/busybox@{image.digest}")
    assert pulled.image.target.digest == again.image.target.digest == image.digest
    assert other.stores.content_store.blobs == image.blobs


def test_a_blob_is_mounted_from_another_repository(tmp_path: Path, image: Image) -> None:
    with registry.running(tmp_path) as address, client() as one:
        one.push(f"{address}/first:1", image)
        one.push(f"{address}/second:1", image)
        with client() as other:
            assert other.pull(f"{address}/second:1").image.target.digest == image.digest


def test_nothing_by_that_name(tmp_path: Path) -> None:
    with registry.running(tmp_path) as address, client() as one:
        name = f"{address}/none:1"
        with pytest.raises(NotFound) as caught:
            one.pull(name)
        assert str(caught.value) == f'failed to resolve reference "{name}": {name}: not found'


def test_what_skopeo_put_there(tmp_path: Path, image: Image) -> None:
    (tmp_path / "image.tar").write_bytes(archive(image, "busybox:1"))
    with registry.running(tmp_path) as address, client() as one:
        subprocess.run(
            ["skopeo", "copy", "--insecure-policy", "--dest-tls-verify=false", "--format=v2s2",
             f"oci-archive:{tmp_path}/image.tar", f"docker://{address}/by/skopeo:1"],
            check=True, capture_output=True, timeout=60,
        )  # fmt: skip
        pulled = one.pull(f"{address}/by/skopeo:1")
    assert "docker" in pulled.image.target.media_type
    assert len(pulled.unpacked) == 1


def test_what_we_put_there_for_skopeo(tmp_path: Path, image: Image) -> None:
    with registry.running(tmp_path) as address, client() as one:
        one.push(f"{address}/ours:1", image)
        out = subprocess.run(
            ["skopeo", "inspect", "--tls-verify=false", f"docker://{address}/ours:1"],
            check=True, capture_output=True, timeout=60,
        )  # fmt: skip
    inspected = json.loads(out.stdout)
    assert inspected["Digest"] == image.digest
    assert inspected["Layers"] == list(image.layer_digests)


def test_a_password(tmp_path: Path, image: Image) -> None:
    (tmp_path / "htpasswd").write_text(PASSWORDS)
    auth = f"auth: {{htpasswd: {{realm: test, path: {tmp_path / 'htpasswd'}}}}}\n"
    with registry.running(tmp_path, auth) as address:
        name = f"{address}/a/b:1"
        with client(credentials=who(ALICE)) as alice:
            alice.push(name, image)
            assert alice.pull(name).image.target.digest == image.digest
        with client() as nobody, pytest.raises(Unauthenticated, match="no basic auth credentials"):
            nobody.pull(name)
        wrong = Credentials("alice", "guess")
        with client(credentials=who(wrong)) as mallory, pytest.raises(Unauthenticated):
            mallory.pull(name)


def test_tokens(tmp_path: Path, image: Image) -> None:
    cert, key = certificate(tmp_path)
    with serving(TokenServer(cert, key)) as tokens:
        auth = (
            f"auth: {{token: {{realm: '{tokens.url}/token', service: registry, issuer: issuer, "
            f"rootcertbundle: {cert}}}}}\n"
        )
        with registry.running(tmp_path, auth) as address:
            name = f"{address}/a/b:1"
            with client(credentials=who(ALICE)) as alice:
                alice.push(name, image)
                assert alice.pull(name).image.target.digest == image.digest
            scopes = {scope for asked in tokens.asked for scope in asked.query["scope"]}
            assert scopes == {"repository:a/b:pull", "repository:a/b:pull,push"}
            assert len(tokens.asked) <= 4
            with client() as nobody, pytest.raises(Unauthenticated, match="oauth token"):
                nobody.pull(name)


def test_tls(tmp_path: Path, image: Image) -> None:
    cert, key = certificate(tmp_path)
    with registry.running(tmp_path, http=f", tls: {{certificate: {cert}, key: {key}}}") as address:
        name = f"{address}/a/b:1"
        with client(HostOptions(tls=Tls(ca=(str(cert),)))) as one:
            one.push(name, image)
            assert one.pull(name).image.target.digest == image.digest
        with client(HostOptions(tls=Tls(skip_verify=True))) as careless:
            assert careless.pull(name).image.target.digest == image.digest
        with client(HostOptions()) as careful, pytest.raises(Error, match="tls: "):
            careful.pull(name)
        with client(PLAIN) as plain, pytest.raises(Error):
            plain.pull(name)


def test_tls_of_a_configured_directory(tmp_path: Path, image: Image) -> None:
    cert, key = certificate(tmp_path)
    with registry.running(tmp_path, http=f", tls: {{certificate: {cert}, key: {key}}}") as address:
        place = tmp_path / "certs.d" / "mirrored.example"
        place.mkdir(parents=True)
        (place / "hosts.toml").write_text(
            'server = "https://mirrored.example"\n'
            f'[host."https://{address}"]\ncapabilities = ["pull", "resolve"]\nca = "{cert}"\n'
        )
        with client(HostOptions(tls=Tls(ca=(str(cert),)))) as one:
            one.push(f"{address}/a/b:1", image)
        with client(HostOptions(directories=(str(tmp_path / "certs.d"),))) as mirrored:
            pulled = mirrored.pull("mirrored.example/a/b:1")
    assert pulled.image.name == "mirrored.example/a/b:1"
    assert pulled.image.target.digest == image.digest
