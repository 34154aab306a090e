"""``ctr`` and ``kontti`` at registries: flags, credentials, and a daemon that is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kontti.engine.engine import Engine
from tests.support import daemons, registry
from tests.support.images import Image, archive, build
from tests.support.shims import short_folder
from tests.support.tokens import certificate
from tests.support.web import Answer, Asked, Repository, serving

pytestmark = pytest.mark.root
KONTTI = str(daemons.VENV_BIN / "kontti")
PASSWORDS = "alice:$2b$04$tv114WrPnSRmNmw/c90Q9OEd8bqQQZZawUHHQnCZ396BrzYlTco1i\n"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
NAME = "docker.io/library/busybox:test"


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder


@pytest.fixture
def image() -> Image:
    return build()


def htpasswd(base: Path) -> str:
    (base / "htpasswd").write_text(PASSWORDS)
    return f"auth: {{htpasswd: {{realm: test, path: {base / 'htpasswd'}}}}}\n"


@contextmanager
def daemon(folder: Path, image: Image) -> Iterator[daemons.Daemon]:
    with daemons.running("kontti", folder / "d") as found:
        (folder / "image.tar").write_bytes(archive(image, NAME))
        done = found.ctr("ours", "images", "import", "--no-unpack", str(folder / "image.tar"))
        assert done.returncode == 0, done.stderr
        yield found


def test_ctrs_flags_at_a_registry_with_tls_and_a_password(folder: Path, image: Image) -> None:
    cert, key = certificate(folder)
    tls = f", tls: {{certificate: {cert}, key: {key}}}"
    with daemon(folder, image) as it, registry.running(folder, htpasswd(folder), tls) as address:
        name, user = f"{address}/a/b:1", ("--user", "alice:secret")

        def ctr(*args: str) -> subprocess.CompletedProcess[bytes]:
            return it.ctr("ours", *args)

        ca = ("--tlscacert", str(cert))
        pushed = ctr("images", "push", *ca, *user, "--http-dump", name, NAME)
        assert pushed.returncode == 0, pushed.stderr
        said = pushed.stderr.decode()
        assert f"PUT https://{address}/v2/a/b/manifests/1: 201" in said
        assert "> Authorization: Basic <hidden>" in said
        assert "YWxpY2U6c2VjcmV0" not in said
        pulled = ctr("images", "pull", *user, "--skip-verify", "--http-trace", name)
        assert pulled.returncode == 0, pulled.stderr
        assert f"HEAD https://{address}/v2/a/b/manifests/1: 200" in pulled.stderr.decode()
        assert b"> " not in pulled.stderr
        for flags, words in (
            ((*user, "--skip-verify", "--plain-http"), b"400"),
            # a port of this machine is plain HTTP, unless certificates are given
            (user, b"400"),
            (ca, b"no basic auth credentials"),
            ((*ca, "--user", "alice:guess"), b"authorization failed"),
        ):
            refused = ctr("images", "pull", *flags, name)
            assert refused.returncode == 1
            assert words in refused.stderr, (flags, refused.stderr)


def test_ctr_by_hosts_dir_and_dockers_config(
    folder: Path, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    with daemon(folder, image) as it, registry.running(folder, htpasswd(folder)) as address:
        place = folder / "certs.d" / "far.example"
        place.mkdir(parents=True)
        (place / "hosts.toml").write_text(f'[host."http://{address}"]\n')
        monkeypatch.setenv("DOCKER_CONFIG", str(folder))
        hosts = ("--hosts-dir", str(folder / "certs.d"))
        refused = it.ctr("ours", "images", "push", *hosts, "far.example/a/b:1", NAME)
        assert b"no basic auth credentials" in refused.stderr
        auths = {address: {"username": "alice", "password": "secret"}}
        (folder / "config.json").write_text(json.dumps({"auths": auths}))
        for verb, names in (("push", ["far.example/a/b:1", NAME]), ("pull", ["far.example/a/b:1"])):
            done = it.ctr("ours", "images", verb, *hosts, *names)
            assert done.returncode == 0, done.stderr


def test_ctr_moves_single_blobs(folder: Path, image: Image) -> None:
    with daemon(folder, image) as it, registry.running(folder) as address:

        def ctr(*args: str) -> bytes:
            done = it.ctr("ours", "content", *args)
            assert done.returncode == 0, done.stderr
            return done.stdout

        layer, kind = image.layer_digests[0], "application/vnd.oci.image.layer.v1.tar+gzip"
        for digest in image.layer_digests:
            said = ctr("push-object", f"{address}/a:1", digest, kind)
            assert said.decode() == f"Pushed {digest} {kind}\n"
        assert ctr("fetch-blob", f"{address}/a", layer) == image.blobs[layer]
        assert ctr("fetch-object", f"{address}/a@{layer}") == image.blobs[layer]
        config = "application/vnd.oci.image.config.v1+json"
        ctr("push-object", f"{address}/a:1", image.config_digest, config)
        ctr("push-object", f"{address}/a:1", image.digest, MANIFEST)
        assert ctr("fetch-object", f"{address}/a:1") == image.blobs[image.digest]


def test_kontti_pushes_and_pulls_with_dockers_config(
    folder: Path, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    (folder / "image.tar").write_bytes(archive(image, NAME))

    def kontti(*args: str, code: int = 0) -> str:
        argv = [KONTTI, "--root", str(folder / "root"), "--state", str(folder / "state"), *args]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code, (args, done.stdout, done.stderr)
        return done.stdout + done.stderr

    with registry.running(folder, htpasswd(folder)) as address:
        name = f"{address}/a/b:1"
        kontti("load", "-i", str(folder / "image.tar"))
        assert "credentials" in kontti("push", "--plain-http", name, NAME, code=1)
        kontti("push", "--plain-http", "-u", "alice:secret", name, NAME)
        auths = {address: {"username": "alice", "password": "secret"}}
        (folder / "config.json").write_text(json.dumps({"auths": auths}))
        assert image.digest in kontti("pull", "--plain-http", name)
        # what is to be pushed under its own name has it already
        kontti("push", "--plain-http", name)


def test_a_daemon_that_is_killed_in_the_middle_of_a_pull(folder: Path) -> None:
    image = build([random.Random(5).randbytes(6 << 20)])
    layer, waited = image.layer_digests[0], []
    repository = Repository(dict(image.blobs), {"1": image.digest}, {image.digest: MANIFEST})
    half = len(image.blobs[layer]) // 2

    def halting(asked: Asked) -> Answer:
        answer = repository(asked)
        if not asked.path.endswith(layer) or asked.method != "GET" or waited:
            return answer
        if "range" in asked.headers:
            # the second request: the daemon is killed now
            waited.append(kept())
            os.kill(it.pid, signal.SIGKILL)
            process.wait(20)
            return Answer(500)
        return Answer(answer.status, answer.headers, answer.body[:half], len(answer.body))

    def kept() -> int:
        deadline, found = time.monotonic() + 10, 0
        while found < half and time.monotonic() < deadline:
            files = it.root.glob("io.containerd.content.v1.content/ingest/*/data")
            found = max((f.stat().st_size for f in files), default=0)
        return found

    base = folder / "d"
    base.mkdir()
    (base / "config.toml").write_text(daemons.config("kontti"))
    it, process = daemons.start("kontti", base)
    try:
        with serving(halting) as web:
            name = f"{web.host}/a/b:1"
            broken = it.ctr("ours", "content", "fetch", "--plain-http", name, timeout=60)
            assert broken.returncode == 1
            it, process = daemons.start("kontti", base)
            web.asked.clear()
            done = it.ctr("ours", "content", "fetch", "--plain-http", name, timeout=60)
            assert done.returncode == 0, done.stderr
            ranges = [a.headers.get("range") for a in web.asked if a.path.endswith(layer)]
        assert waited == [half]
        assert ranges == [f"bytes={half}-"]
    finally:
        daemons.stop(process)
        daemons.clean(base)


def test_pulls_of_one_engine_at_once_fetch_each_blob_once(folder: Path, image: Image) -> None:
    from concurrent.futures import ThreadPoolExecutor

    repository = Repository(dict(image.blobs), {"1": image.digest}, {image.digest: MANIFEST})
    with (
        serving(repository) as web,
        Engine(str(folder / "root"), str(folder / "state")) as engine,
        ThreadPoolExecutor(6) as pool,
    ):
        name = f"{web.host}/a/b:1"
        found = list(pool.map(lambda _: engine.pull(name, plain_http=True), range(6)))
        gets = [path for path in web.paths() if path.startswith("GET")]
    assert {image_.digest for image_ in found} == {image.digest}
    assert sorted(gets) == sorted(set(gets))
