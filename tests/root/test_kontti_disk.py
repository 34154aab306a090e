"""``kontti tag``, ``save``, ``history``, ``df``, ``prune`` and the filters of ``images``."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench.fixtures import fresh_ext4

from kontti import Engine
from kontti.errors import InvalidArgument
from tests.support import daemons, images
from tests.support.dockerd import docker
from tests.support.images import Entry
from tests.support.kontti_cli import BACKENDS, Cli, cli
from tests.support.shims import short_folder

pytestmark = pytest.mark.root
FIRST, SECOND = "docker.io/library/busybox:test", "registry.example/team/tool:1.2"
MARKED = {**images.DEFAULT_CONFIG, "Labels": {"team": "a"}}


def second() -> images.Image:
    """Another image on the same first layer."""
    extra = images.layer([Entry("etc/extra", os.urandom(1 << 16) * 4)])
    return images.build([images.base_layer(), extra], MARKED)


@pytest.fixture
def kontti() -> Iterator[Cli]:
    with cli("embedded") as made:
        add_second(made)
        yield made


@pytest.fixture(params=BACKENDS)
def either(request: pytest.FixtureRequest) -> Iterator[Cli]:
    """With no daemon, and with one that has the root."""
    with cli(request.param) as made:
        add_second(made)
        yield made


def add_second(made: Cli) -> None:
    archive = made.folder / "one.tar"
    archive.write_bytes(images.archive(second(), SECOND))
    made("load", "-i", str(archive))


@pytest.fixture(scope="module")
def two() -> Iterator[Engine]:
    """An engine with both images, in this process."""
    with short_folder() as folder, Engine(str(folder / "root"), str(folder / "state")) as engine:
        for name, image in ((FIRST, images.build()), (SECOND, second())):
            engine.import_image(io.BytesIO(images.archive(image, name)))
        yield engine


def tool(*argv: object) -> str:
    return subprocess.run(
        [str(word) for word in argv], check=True, capture_output=True, text=True, timeout=60
    ).stdout


def usage(kontti: Cli) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(kontti("df", "--format", "json").stdout)
    return found


def names(kontti: Cli, *filters: str) -> list[str]:
    asked = [word for text in filters for word in ("--filter", text)]
    return kontti("images", "-q", *asked).stdout.split()


def blob_bytes(folder: Path) -> dict[str, int]:
    blobs = folder / "root/io.containerd.content.v1.content/blobs/sha256"
    return {f"sha256:{path.name}": path.stat().st_size for path in blobs.iterdir()}


def test_df_counts_shared_and_unique_once(kontti: Cli) -> None:
    found = usage(kontti)
    by_name = {image["name"]: image for image in found["images"]}
    first, base = images.build(), images.build().layer_digests[0]
    sizes = blob_bytes(kontti.folder)
    assert by_name[FIRST]["compressed"] == sum(sizes[digest] for digest in first.blobs)
    unpacked = by_name[FIRST]["unpacked"]["overlayfs"]
    assert unpacked > images.BUSYBOX.stat().st_size
    for image in found["images"]:
        whole = image["compressed"] + sum(image["unpacked"].values())
        assert image["shared"] + image["unique"] == whole
        assert image["shared"] > sizes[base] + images.BUSYBOX.stat().st_size
        assert image["reclaimable"] == image["unique"]
    totals = {(t["kind"], t["snapshotter"]): t for t in found["totals"]}
    assert totals["blobs", ""]["size"] == sum(sizes.values())
    assert totals["layers", "overlayfs"]["count"] == 3
    # the indexes of the archives are nobody's: the collector may still come
    assert totals["layers", "overlayfs"]["reclaimable"] == totals["layers", "overlayfs"]["size"]


def test_df_says_what_removal_frees(kontti: Cli) -> None:
    reclaimable = {i["name"]: i["reclaimable"] for i in usage(kontti)["images"]}[SECOND]
    kontti("prune", "-f")
    before = sum(t["size"] for t in usage(kontti)["totals"])
    kontti("rmi", SECOND)
    assert before - sum(t["size"] for t in usage(kontti)["totals"]) == reclaimable


def test_df_of_a_container(either: Cli) -> None:
    write = "dd if=/dev/urandom of=/big bs=65536 count=16; true"
    either("run", "--name", "writer", FIRST, "sh", "-c", write)
    found = usage(either)
    image = next(i for i in found["images"] if i["name"] == FIRST)
    assert (image["containers"], image["reclaimable"]) == (1, 0)
    (container,) = found["containers"]
    assert container["id"] == "writer"
    assert container["size"] >= 1 << 20
    shown = either("df").stdout.split("\n\n")
    assert [part.split()[0] for part in shown] == ["TYPE", "IMAGE", "CONTAINER"]
    assert "OVERLAYFS" in shown[1].splitlines()[0].split()
    either("rm", "writer")


def test_a_second_name_makes_everything_shared(kontti: Cli) -> None:
    assert kontti("tag", FIRST, "again", "mine:2").stdout.split() == [
        "docker.io/library/again:latest",
        "docker.io/library/mine:2",
    ]
    image = next(i for i in usage(kontti)["images"] if i["name"] == FIRST)
    assert image["unique"] == image["reclaimable"] == 0
    kontti("tag", SECOND, "again")
    digests = {i["name"]: i["digest"] for i in json.loads(kontti("images", "--format=json").stdout)}
    assert digests["docker.io/library/again:latest"] == digests[SECOND]
    assert digests["docker.io/library/mine:2"] == digests[FIRST]


def test_a_tag_that_is_wrong_makes_none(kontti: Cli) -> None:
    before = names(kontti)
    assert "must be lowercase" in kontti("tag", FIRST, "fine:1", "Not:OK", code=1).stderr
    assert "not found" in kontti("tag", "nosuch", "x:1", code=1).stderr
    assert names(kontti) == before


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        ([], [FIRST, SECOND]),
        (["reference=busybox"], [FIRST]),
        (["reference=busybox:t*"], [FIRST]),
        (["reference=*/team/*"], [SECOND]),
        (["label=team"], [SECOND]),
        (["label=team=a"], [SECOND]),
        (["label=team=b"], []),
        (["dangling=true"], []),
        (["dangling=false", "reference=busybox"], [FIRST]),
        ([f"since={FIRST}"], [SECOND]),
        ([f"before={SECOND}"], [FIRST]),
    ],
)
def test_filters(two: Engine, filters: list[str], wanted: list[str]) -> None:
    assert [image.name for image in two.images(filters)] == wanted


@pytest.mark.parametrize("wrong", ["colour=red", "dangling=maybe", "reference", "", "since=*"])
def test_a_wrong_filter_is_refused(two: Engine, wrong: str) -> None:
    with pytest.raises(InvalidArgument):
        two.images([wrong])


def test_flags_of_images(kontti: Cli) -> None:
    assert names(kontti, "label=team") == [SECOND]
    assert images.build().digest in kontti("images", "--digests").stdout
    assert "are known" in kontti("images", "--filter", "colour=red", code=1).stderr


def test_history(kontti: Cli, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    tool("skopeo", "copy", f"oci-archive:{kontti.folder / 'one.tar'}:1.2", f"oci:{layout}:1")
    words = "RUN \x1b[31m" + "very long " * 20
    tool("umoci", "config", "--image", f"{layout}:1", "--history.created_by", words,
         "--history.comment", "by hand", "--config.user", "7")  # fmt: skip
    packed = tmp_path / "packed.tar"
    with tarfile.open(packed, "w") as tar:
        tar.add(layout, arcname=".")
    (loaded,) = [line.split()[0] for line in kontti("load", "-i", str(packed)).stdout.splitlines()]
    steps = json.loads(kontti("history", "--format", "json", loaded).stdout)
    assert [s["layer"] for s in steps if s["layer"]][-1] == second().layer_digests[0]
    told = next(s for s in steps if s["comment"] == "by hand")
    assert (told["created_by"], told["layer"], told["size"]) == (words, "", 0)
    shown = kontti("history", loaded).stdout
    assert "\x1b" not in shown
    assert "…" in shown
    assert len(kontti("history", "-q", loaded).stdout.split()) == 2


def test_what_save_writes_docker_tools_read_back(kontti: Cli, tmp_path: Path) -> None:
    archive = tmp_path / "saved.tar"
    assert kontti("save", "-o", str(archive), "busybox:test", SECOND).stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["saved.tar"]
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "layout", filter="data")
    layout = tmp_path / "layout"
    wanted = {i["name"]: i["digest"] for i in json.loads(kontti("images", "--format=json").stdout)}
    for name, form in ((FIRST, "test"), (SECOND, "1.2")):
        seen = json.loads(tool("skopeo", "inspect", f"oci-archive:{archive}:{form}"))
        assert seen["Digest"] == wanted[name]
        tool("umoci", "unpack", "--image", f"{layout}:{form}", tmp_path / f"bundle-{form}")
        assert (tmp_path / f"bundle-{form}/rootfs/bin/busybox").exists()
    config = json.loads(
        tool("skopeo", "inspect", "--raw", f"docker-archive:{archive}:busybox:test")
    )["config"]["digest"]
    assert config == images.build().config_digest


def test_save_to_a_pipe_and_load_again(either: Cli) -> None:
    argv = [*either.argv, "save", FIRST]
    data = subprocess.run(argv, check=True, capture_output=True, timeout=30).stdout
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert {"oci-layout", "index.json", "manifest.json"} <= set(tar.getnames())
    either("rmi", FIRST)
    argv = [*either.argv, "load"]
    done = subprocess.run(argv, input=data, check=True, capture_output=True, timeout=30)
    assert done.stdout.decode() == f"{FIRST} {images.build().digest}\n"


def test_docker_loads_what_save_writes(kontti: Cli) -> None:
    archive = kontti.folder / "saved.tar"
    kontti("save", "-o", str(archive), FIRST)
    with (
        short_folder() as base,
        fresh_ext4(base, 2) as disk,
        daemons.running("kontti", base / "k") as daemon,
        docker(base, disk, daemon.address) as dock,
    ):
        dock.out("rmi", "busybox:test")
        assert "busybox:test" in dock.out("load", "-i", str(archive))
        seen = dock.out("images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}")
    assert seen == f"busybox:test {images.build().config_digest}\n"


def test_a_save_that_fails_leaves_what_was_there(kontti: Cli, tmp_path: Path) -> None:
    old = tmp_path / "old.tar"
    old.write_text("old")
    assert "not found" in kontti("save", "-o", str(old), FIRST, "nosuch", code=1).stderr
    assert old.read_text() == "old"
    blob = images.build().layer_digests[0].removeprefix("sha256:")
    root = kontti.folder / "root/io.containerd.content.v1.content/blobs/sha256"
    with (root / blob).open("r+b") as file:
        file.write(b"damaged")
    assert "is damaged" in kontti("save", "-o", str(old), FIRST, code=1).stderr
    assert old.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["old.tar"]


def test_prune_without_all_takes_only_what_no_tag_names(kontti: Cli) -> None:
    digest = images.build().digest
    kontti("tag", FIRST, f"busybox@{digest}")
    assert "0 images" in kontti("prune").stdout
    kontti("rmi", FIRST)
    assert names(kontti, "dangling=true") == [f"docker.io/library/busybox@{digest}"]
    before = sum(blob_bytes(kontti.folder).values())
    done = json.loads(kontti("prune", "--format", "json").stdout)
    assert done["images"] == [f"docker.io/library/busybox@{digest}"]
    assert done["containers"] == []
    assert done["freed"] >= before - sum(blob_bytes(kontti.folder).values()) > 0
    assert names(kontti) == [SECOND]


def test_prune_all_leaves_what_runs(either: Cli) -> None:
    either("run", "-d", "--name", "lives", FIRST, "sleep", "60")
    either("run", "--name", "ended", SECOND, "true")
    shown = either("prune", "-a").stdout.splitlines()
    assert shown[:2] == ["removed container ended", f"removed image {SECOND}"]
    assert shown[2].startswith("1 containers, 1 images: ")
    assert names(either) == [FIRST]
    assert either.status("lives") == "running"
    either("rm", "-f", "lives")


@pytest.mark.parametrize(("answer", "code", "left"), [("n", 1, 2), ("y", 0, 0)])
def test_prune_asks_on_a_terminal(kontti: Cli, answer: str, code: int, left: int) -> None:
    master, slave = pty.openpty()
    try:
        with subprocess.Popen(
            [*kontti.argv, "prune", "-a"],
            stdin=slave,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            os.write(master, f"{answer}\n".encode())
            _, err = process.communicate(timeout=30)
            assert process.returncode == code
    finally:
        os.close(master)
        os.close(slave)
    assert "Remove these 0 containers and 2 images? [y/N]" in err.decode()
    assert len(names(kontti)) == left
