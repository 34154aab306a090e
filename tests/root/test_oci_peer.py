"""Our specs are those that Debian's ctr 1.6 makes of the same flags, but for what 2.x changed."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from kontti.oci import flags, options, resources, security
from kontti.oci.base import Context, build
from kontti.oci.encode import encode
from tests.support import images
from tests.support.daemons import Daemon, running

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kontti.oci.base import Option

pytestmark = pytest.mark.root
NAME = "example.com/library/busybox:1"
# masked since 2.0
NEWLY_MASKED = "/sys/devices/virtual/powercap"


@dataclass(frozen=True)
class Config:
    user: str = ""
    env: Sequence[str] = ()
    entrypoint: Sequence[str] = ()
    cmd: Sequence[str] = ()
    working_dir: str = ""


IMAGE = Config("alice", ("PATH=/bin:/usr/bin", "GREETING=hello"), ("/bin/sh",), ("-l",), "/home")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running("containerd", tmp_path_factory.mktemp("peer")) as daemon:
        config = {
            "User": IMAGE.user,
            "Env": list(IMAGE.env),
            "Entrypoint": list(IMAGE.entrypoint),
            "Cmd": list(IMAGE.cmd),
            "WorkingDir": IMAGE.working_dir,
        }
        archive = images.archive(images.build(config=config), NAME)
        result = daemon.ctr("debian", "images", "import", "-", stdin=archive)
        assert result.returncode == 0, result.stderr
        yield daemon


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rootfs")
    with tarfile.open(fileobj=io.BytesIO(images.base_layer())) as tar:
        tar.extractall(path, filter="fully_trusted")
    return path


def theirs(daemon: Daemon, id: str, *args: str) -> dict[str, object]:
    made = daemon.ctr("debian", "containers", "create", *args)
    assert made.returncode == 0, made.stderr
    try:
        shown = daemon.ctr("debian", "containers", "info", "--spec", id)
        assert shown.returncode == 0, shown.stderr
    finally:
        daemon.ctr("debian", "containers", "delete", id)
    spec: dict[str, object] = json.loads(shown.stdout)
    return spec


def ours(id: str, rootfs: Path, chosen: Sequence[Option]) -> dict[str, object]:
    context = Context("default", id, lambda: contextlib.nullcontext(str(rootfs)))
    spec = build(context, [resources.with_default_unix_devices(), *chosen])
    decoded: dict[str, object] = json.loads(encode(spec))
    return decoded


def comparable(spec: Mapping[str, object]) -> dict[str, object]:
    """Without what 2.x has anew, and what depends on the version."""
    changed = {**spec}
    changed.pop("ociVersion")
    linux = changed["linux"]
    assert isinstance(linux, dict)
    masked = [path for path in linux.get("maskedPaths") or [] if path != NEWLY_MASKED]
    return {**changed, "linux": {**linux, "maskedPaths": masked}}


def env_file(tmp_path: Path) -> str:
    path = tmp_path / "env"
    path.write_text("FROM_FILE=1\nGREETING=file\n")
    return str(path)


CASES: dict[str, tuple[list[str], list[Option]]] = {
    "plain": ([], []),
    "env": (
        ["--env", "A=1", "--env", "GREETING=changed"],
        [options.with_env(["A=1", "GREETING=changed"])],
    ),
    "tty": (["--tty"], [options.with_tty()]),
    "cwd": (["--cwd", "/tmp"], [options.with_cwd("/tmp")]),
    "annotation": (["--annotation", "a=b"], [options.with_annotations({"a": "b"})]),
    "mount": (
        ["--mount", "type=bind,src=/tmp,dst=/host,options=rbind:ro"],
        [options.with_mounts([flags.parse_mount("type=bind,src=/tmp,dst=/host,options=rbind:ro")])],
    ),
    "with-ns": (
        ["--with-ns", "network:/run/netns/x", "--with-ns", "cgroup:/proc/1/ns/cgroup"],
        [
            options.with_namespace("network", "/run/netns/x"),
            options.with_namespace("cgroup", "/proc/1/ns/cgroup"),
        ],
    ),
    "read-only": (["--read-only"], [options.with_readonly_root()]),
    "allow-new-privs": (["--allow-new-privs"], [security.with_new_privileges()]),
    "memory-limit": (["--memory-limit", "16777216"], [resources.with_memory_limit(16 << 20)]),
    "cpu": (
        ["--cpu-quota", "20000", "--cpu-period", "100000"],
        [resources.with_cpu({"quota": 20000, "period": 100000})],
    ),
    "capabilities": (
        ["--cap-add", "CAP_SYS_ADMIN", "--cap-add", "CAP_CHOWN", "--cap-drop", "CAP_MKNOD"],
        [
            security.with_added_capabilities(["CAP_SYS_ADMIN", "CAP_CHOWN"]),
            security.with_dropped_capabilities(["CAP_MKNOD"]),
        ],
    ),
    "device": (["--device", "/dev/fuse"], [resources.with_device("/dev/fuse")]),
    "propagation": (
        ["--rootfs-propagation", "rshared"],
        [options.with_rootfs_propagation("rshared")],
    ),
    "privileged": (
        ["--privileged"],
        [security.with_privileged(), resources.with_host_devices()],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rootfs_and_flags(daemon: Daemon, rootfs: Path, name: str) -> None:
    args, chosen = CASES[name]
    peer = theirs(daemon, "c1", "--rootfs", *args, str(rootfs), "c1", "true", "x")
    mine = [options.with_root_path(str(rootfs)), options.with_args(["true", "x"]), *chosen]
    assert comparable(ours("c1", rootfs, mine)) == comparable(peer)


def test_users_by_name_and_number(daemon: Daemon, rootfs: Path) -> None:
    for user in ("0", "1000", "1000:50", "alice:staff", "alice", "4242", "root:staff", "7:7"):
        config = {"User": user, "Cmd": ["true"]}
        name = f"example.com/users:{user.replace(':', '-')}"
        archive = images.archive(images.build(config=config), name)
        imported = daemon.ctr("debian", "images", "import", "-", stdin=archive)
        assert imported.returncode == 0, imported.stderr
        peer = theirs(daemon, "c3", name, "c3")
        mine = ours("c3", rootfs, [options.with_image_config(Config(user, cmd=("true",)))])
        assert mine["process"] == peer["process"], user


IMAGE_CASES: dict[str, tuple[list[str], list[str], list[Option]]] = {
    "user of the image": ([], [], []),
    "command": ([], ["echo", "x"], []),
    "env over the image's": (
        ["--env", "GREETING=x", "--env", "PATH"],
        [],
        [options.with_env(["GREETING=x", "PATH"])],
    ),
}


@pytest.mark.parametrize("name", IMAGE_CASES)
def test_image_config(daemon: Daemon, rootfs: Path, name: str) -> None:
    args, command, before = IMAGE_CASES[name]
    peer = theirs(daemon, "c2", *args, NAME, "c2", *command)
    # ctr's command takes the place of the entrypoint as well
    after = [options.with_args(command)] if command else []
    mine = [*before, options.with_image_config(IMAGE), *after]
    assert comparable(ours("c2", rootfs, mine)) == comparable(peer)
