"""The mount manager on a real kernel: loop devices, EROFS, ext4 and overlays of them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kontti.client.client import Client
from kontti.errors import (
    AlreadyExists,
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unimplemented,
)
from kontti.linux import loop as loops
from kontti.linux import mounts as linux_mounts
from kontti.metadata.gc import Type
from kontti.mounts.base import ActivateOptions, Activation
from kontti.mounts.handlers import ErofsHandler
from kontti.mounts.manager import STATE_DIR, MountManager
from kontti.namespaces import Scope
from kontti.values import Mount
from kontti.wire.messages.google import Empty, FieldMask
from kontti.wire.messages.services.mounts.v1 import mounts as api
from kontti.wire.messages.services.tasks.v1 import tasks
from kontti.wire.messages.types import mount as types
from tests.support import daemons
from tests.support.host import Host, host
from tests.support.metadata import open_stores
from tests.support.shims import short_folder

pytestmark = pytest.mark.root
SCOPE = Scope("default")
MOUNTS = "containerd.services.mounts.v1.Mounts/"
TASKS = "containerd.services.tasks.v1.Tasks/"
TEMPORARY = ActivateOptions(temporary=True)


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory with nothing mounted in it at the end, and no loop device on its files."""
    with short_folder() as folder:
        path = Path(folder).resolve()
        for name in ("root", "state"):
            (path / name).mkdir()
        yield path
        left = daemons.mounts(path)
        devices = backing(path)
        daemons.clean(path)
        for device in devices:
            subprocess.run(["losetup", "-d", device], check=False)
        assert left == []
        assert devices == []


def backing(path: Path) -> list[str]:
    """Loop devices whose files are below ``path``."""
    found = []
    for entry in Path("/sys/block").glob("loop*"):
        with contextlib.suppress(OSError):
            if (entry / "loop" / "backing_file").read_text().startswith(f"{path}/"):
                found.append(f"/dev/{entry.name}")
    return found


@pytest.fixture
def manager(base: Path) -> Iterator[MountManager]:
    made = opened(base)
    yield made
    for scope in (SCOPE, Scope("other")):
        for found in made.list(scope):
            made.deactivate(scope, found.name)
    made.close()


def opened(base: Path) -> MountManager:
    return MountManager(str(base / "root"), str(base / "state"))


def targets(base: Path) -> list[str]:
    """Directories of activations."""
    return sorted(p.name for p in (base / "state" / STATE_DIR / "t").iterdir())


def erofs(base: Path, name: str, **files: str) -> str:
    """An image with ``files``."""
    tree = base / f"{name}.tree"
    tree.mkdir()
    for file, text in files.items():
        (tree / file).write_text(text)
    path = base / f"{name}.erofs"
    subprocess.run(["mkfs.erofs", "--quiet", str(path), str(tree)], check=True, capture_output=True)
    shutil.rmtree(tree)
    return str(path)


def ext4(base: Path, name: str = "image.ext4") -> str:
    path = base / name
    with path.open("wb") as file:
        file.truncate(4 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(path)], check=True)
    return str(path)


def mounted(mounts: tuple[Mount, ...]) -> linux_mounts.mounted:
    return linux_mounts.mounted(mounts)


def test_a_loop_device_lives_as_long_as_its_activation(base: Path, manager: MountManager) -> None:
    image = ext4(base)
    made = manager.activate(
        SCOPE, "one", [Mount("loop", image), Mount("format/ext4", "{{mount 0}}")]
    )
    assert [a.mount for a in made.active] == [Mount("loop", image)]
    assert made.active[0].mounted_at > 0
    assert made.system == (Mount("ext4", made.active[0].mount_point),)
    (device,) = backing(base)
    assert os.readlink(made.active[0].mount_point) == device
    with mounted(made.system) as path:
        (Path(path) / "file").write_text("kept")
    assert backing(base) == [device]
    manager.deactivate(SCOPE, "one")
    assert backing(base) == []
    assert targets(base) == []
    again = manager.activate(SCOPE, "one", [Mount("loop", image, ("ro",)), *made_ext4()])
    with mounted(again.system) as path:
        assert (Path(path) / "file").read_text() == "kept"


def made_ext4() -> list[Mount]:
    return [Mount("format/ext4", "{{ mount 0 }}", ("ro",))]


def test_a_readonly_loop_device_cannot_be_written(base: Path, manager: MountManager) -> None:
    image = ext4(base)
    made = manager.activate(SCOPE, "one", [Mount("loop", image, ("ro",))])
    device = os.path.basename(os.readlink(made.active[0].mount_point))
    assert Path(f"/sys/block/{device}/ro").read_text() == "1\n"


@pytest.mark.parametrize("devices", [False, True])
def test_an_overlay_of_erofs_images(
    base: Path, manager: MountManager, devices: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if devices:
        refuse_files(monkeypatch)
    low, high = erofs(base, "low", a="low", b="low"), erofs(base, "high", b="high")
    upper = base / "root" / "upper"
    upper.mkdir()
    options = (
        f"X-containerd.mkdir.path={upper}/fs:0755",
        f"X-containerd.mkdir.path={upper}/work:0711",
        "lowerdir={{ overlay 1 0 }}",
        f"upperdir={upper}/fs",
        f"workdir={upper}/work",
    )
    wanted = [
        Mount("erofs", low, ("ro",)),
        Mount("erofs", high, ("ro", "loop")),
        Mount("format/mkdir/overlay", "overlay", options),
    ]
    made = manager.activate(SCOPE, "one", wanted)
    assert len(made.active) == 2
    assert bool(backing(base)) == devices
    with mounted(made.system) as path:
        assert [(Path(path) / n).read_text() for n in "ab"] == ["low", "high"]
        (Path(path) / "c").write_text("new")
    assert (upper / "fs" / "c").read_text() == "new"
    manager.deactivate(SCOPE, "one")
    assert backing(base) == []


def refuse_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a kernel before 6.12 answers."""
    real = linux_mounts.mount_one

    def mount_one(mount: linux_mounts.MountLike, target: str) -> None:
        if mount.type == "erofs" and not mount.source.startswith("/dev/"):
            raise OSError(15, "Block device required")
        real(mount, target)

    monkeypatch.setattr(linux_mounts, "mount_one", mount_one)


def test_dmverity_is_refused(base: Path, manager: MountManager) -> None:
    image = erofs(base, "one", a="a")
    with pytest.raises(Unimplemented, match="dm-verity"):
        manager.activate(SCOPE, "one", [Mount("erofs", image, ("X-containerd.dmverity=/x",))])
    assert targets(base) == []
    ErofsHandler().unmount(str(base / "none"))


def test_an_image_is_made_mounted_and_put_under_an_overlay(
    base: Path, manager: MountManager
) -> None:
    image = base / "root" / "rw.img"
    low = erofs(base, "low", a="low")
    wanted = [
        Mount("mkfs/loop", str(image), ("X-containerd.mkfs.size=4M", "X-containerd.mkfs.fs=ext4")),
        Mount("format/ext4", "{{ mount 0 }}"),
        Mount("erofs", low, ("ro",)),
        Mount(
            "format/mkdir/overlay",
            "overlay",
            (
                "X-containerd.mkdir.path={{ mount 1 }}/upper:0755",
                "X-containerd.mkdir.path={{ mount 1 }}/work:0755",
                "lowerdir={{ mount 2 }}",
                "upperdir={{ mount 1 }}/upper",
                "workdir={{ mount 1 }}/work",
            ),
        ),
    ]
    made = manager.activate(SCOPE, "one", wanted)
    assert [a.mount.type for a in made.active] == ["loop", "ext4", "erofs"]
    with mounted(made.system) as path:
        (Path(path) / "b").write_text("new")
    manager.deactivate(SCOPE, "one")
    again = manager.activate(SCOPE, "one", wanted)
    with mounted(again.system) as path:
        assert [(Path(path) / n).read_text() for n in "ab"] == ["low", "new"]


def test_a_temporary_activation_is_one_bind(base: Path, manager: MountManager) -> None:
    image = erofs(base, "one", a="text")
    made = manager.activate(SCOPE, "one", [Mount("erofs", image, ("ro",))], TEMPORARY)
    assert made.system == (Mount("bind", made.active[0].mount_point, ("rbind",)),)
    with mounted(made.system) as path:
        assert (Path(path) / "a").read_text() == "text"
    plain = base / "plain"
    plain.mkdir()
    bound = manager.activate(SCOPE, "two", [Mount("bind", str(plain), ("rbind",))], TEMPORARY)
    (plain / "x").touch()
    assert os.listdir(bound.system[0].source) == ["x"]


def test_names_are_a_namespaces_own(base: Path, manager: MountManager) -> None:
    image = ext4(base)
    labels = ActivateOptions({"color": "red"})
    manager.activate(SCOPE, "a/b:c", [Mount("loop", image)], labels)
    with pytest.raises(AlreadyExists, match='mount "a/b:c": already exists'):
        manager.activate(SCOPE, "a/b:c", [Mount("loop", image)])
    manager.activate(Scope("other"), "a/b:c", [Mount("loop", image, ("ro",))])
    assert [a.name for a in manager.list(SCOPE)] == ["a/b:c"]
    assert [a.name for a in manager.list(SCOPE, ["labels.color==red"])] == ["a/b:c"]
    assert manager.list(SCOPE, ["name==x"]) == []
    assert manager.info(SCOPE, "a/b:c").labels == {"color": "red"}
    updated = manager.update(SCOPE, Activation("a/b:c", labels={"x": "1"}), ["labels.x"])
    assert updated.labels == {"color": "red", "x": "1"}
    assert manager.info(SCOPE, "a/b:c") == updated
    with pytest.raises(InvalidArgument, match='cannot update "system" field'):
        manager.update(SCOPE, updated, ["system"])
    for name in ("", "x" * 1025):
        with pytest.raises(InvalidArgument):
            manager.activate(SCOPE, name, [Mount("loop", image)])
    for act in (manager.info, manager.deactivate):
        with pytest.raises(NotFound, match='mount "none": not found'):
            act(SCOPE, "none")


def test_what_fails_half_way_is_undone(base: Path, manager: MountManager) -> None:
    image = ext4(base)
    broken = base / "broken"
    broken.write_bytes(bytes(1 << 20))
    for last in (
        Mount("erofs", str(broken)),
        Mount("loop", "/nowhere"),
        Mount("format/loop", "{{x}}"),
    ):
        with pytest.raises(Error):
            manager.activate(
                SCOPE, "one", [Mount("loop", image), Mount("format/ext4", "{{mount 0}}"), last]
            )
        assert targets(base) == []
        assert backing(base) == []
    with pytest.raises(NotFound):
        manager.info(SCOPE, "one")


def test_what_is_in_use_keeps_its_name(base: Path, manager: MountManager) -> None:
    image = erofs(base, "one", a="text")
    made = manager.activate(SCOPE, "one", [Mount("erofs", image, ("ro",))])
    with open(os.path.join(made.active[0].mount_point, "a")):
        with pytest.raises(FailedPrecondition, match="is in use"):
            manager.deactivate(SCOPE, "one")
        assert manager.info(SCOPE, "one") == made
    manager.deactivate(SCOPE, "one")


def test_a_new_manager_has_what_is_active_and_undoes_the_rest(base: Path) -> None:
    image, other = ext4(base), ext4(base, "other.ext4")
    first = opened(base)
    kept = first.activate(SCOPE, "kept", [Mount("loop", image)], ActivateOptions({"a": "b"}))
    lost = first.activate(
        SCOPE, "lost", [Mount("loop", other), Mount("format/ext4", "{{mount 0}}")], TEMPORARY
    )
    assert len(backing(base)) == 2
    folder = Path(lost.active[0].mount_point).parent
    # as a crash leaves it, before all of it was mounted or while it was unmounted
    (folder / "activation.json").unlink()
    (folder.parent / "stranger").mkdir()
    second = opened(base)
    assert second.list(SCOPE) == [kept]
    assert len(backing(base)) == 1
    assert not folder.exists()
    again = second.activate(SCOPE, "lost", [Mount("loop", other)])
    assert (
        Path(again.active[0].mount_point).parent.name > Path(kept.active[0].mount_point).parent.name
    )
    second.deactivate(SCOPE, "kept")
    second.deactivate(SCOPE, "lost")
    (folder.parent / "stranger").rmdir()
    second.close()


def test_a_record_that_cannot_be_read_is_undone(base: Path) -> None:
    image = ext4(base)
    made = opened(base).activate(SCOPE, "one", [Mount("loop", image)])
    (Path(made.active[0].mount_point).parent / "activation.json").write_text("{}")
    second = opened(base)
    assert second.list(SCOPE) == []
    assert backing(base) == []
    second.close()


def test_what_nobody_refers_to_is_collected(base: Path, manager: MountManager) -> None:
    image = erofs(base, "one", a="text")
    mount = [Mount("erofs", image, ("ro",))]
    with open_stores(base / "root") as stores:
        metadata = stores.metadata
        metadata.collect_with(Type.MOUNT, manager)
        metadata.leases(SCOPE).create("l")
        back = ActivateOptions({"containerd.io/gc.bref.snapshot.memory": "s"})
        metadata.snapshots(SCOPE, "memory").prepare("s", labels={"containerd.io/gc.root": "1"})
        manager.activate(Scope("default", "l"), "leased", mount)
        manager.activate(SCOPE, "referring", mount, back)
        manager.activate(SCOPE, "referred", mount)
        manager.activate(SCOPE, "free", mount)
        labels = {"containerd.io/gc.root": "1", "containerd.io/gc.ref.mount": "referred"}
        metadata.snapshots(SCOPE, "memory").prepare("other", labels=labels)
        metadata.collect()
        assert [a.name for a in manager.list(SCOPE)] == ["leased", "referred", "referring"]
        metadata.leases(SCOPE).delete("l")
        metadata.snapshots(SCOPE, "memory").remove("s")
        metadata.collect()
        assert [a.name for a in manager.list(SCOPE)] == ["referred"]
        metadata.snapshots(SCOPE, "memory").remove("other")
        metadata.collect()
        assert manager.list(SCOPE) == []
        assert targets(base) == []


def test_devices_are_taken_by_many_at_once(base: Path) -> None:
    files = [ext4(base, f"{n}.ext4") for n in range(3)]
    attached = [loops.attach(file, readonly=True) for file in files * 2]
    assert len({device.path for device in attached}) == 6
    for device in attached:
        device.close()
    assert backing(base) == []


def test_the_option_loop_has_a_device_for_the_mount(base: Path) -> None:
    with mounted((Mount("ext4", ext4(base), ("loop", "ro")),)) as path:
        assert os.path.isdir(os.path.join(path, "lost+found"))
        assert len(backing(base)) == 1
    assert backing(base) == []
    broken = base / "broken"
    broken.write_bytes(bytes(1 << 20))
    with pytest.raises(OSError, match="mount"), mounted((Mount("ext4", str(broken), ("loop",)),)):
        pass
    assert backing(base) == []


@pytest.fixture
def here() -> Iterator[Host]:
    with host() as made:
        yield made


class Remote:
    """A client of the service."""

    def __init__(self, here: Host, lease: str = "") -> None:
        self._here, self._lease = here, lease

    def _open(self) -> Client:
        return Client(self._here.address, namespace=self._here.namespace, lease=self._lease)

    def activate(self, name: str, *mounts: types.Mount, **more: object) -> types.ActivationInfo:
        request = api.ActivateRequest(name=name, mounts=mounts, **more)  # type: ignore[arg-type]
        with contextlib.closing(self._open()) as client:
            answer = client.unary(MOUNTS + "Activate", request, api.ActivateResponse)
        assert answer.info is not None
        return answer.info

    def deactivate(self, name: str) -> None:
        with contextlib.closing(self._open()) as client:
            client.unary(MOUNTS + "Deactivate", api.DeactivateRequest(name=name), Empty)

    def info(self, name: str) -> types.ActivationInfo | None:
        with contextlib.closing(self._open()) as client:
            return client.unary(MOUNTS + "Info", api.InfoRequest(name=name), api.InfoResponse).info

    def update(self, info: types.ActivationInfo, *paths: str) -> types.ActivationInfo | None:
        request = api.UpdateRequest(info=info, update_mask=FieldMask(paths=paths))
        with contextlib.closing(self._open()) as client:
            return client.unary(MOUNTS + "Update", request, api.UpdateResponse).info

    def names(self, *filters: str) -> list[str]:
        request = api.ListRequest(filters=filters)
        with contextlib.closing(self._open()) as client:
            found = list(client.stream(MOUNTS + "List", request, api.ListMessage))
        return [message.info.name for message in found if message.info is not None]


def test_over_grpc_and_a_killed_daemon(here: Host) -> None:
    image = ext4(here.base)
    remote = Remote(here)
    loop = types.Mount(type="loop", source=image)
    fmt = types.Mount(type="format/ext4", source="{{ mount 0 }}")
    here.out("leases", "create", "--id", "l")
    leased = Remote(here, "l")
    with pytest.raises(Unimplemented):
        remote.activate("none", types.Mount(type="ext4", source=image))
    made = leased.activate("one", loop, fmt, labels={"a": "b"})
    assert made.labels == {"a": "b"}
    assert made.active[0].mounted_at is not None
    assert made.system[0].source == made.active[0].mount_point
    with pytest.raises(AlreadyExists):
        remote.activate("one", loop)
    here.kill()
    assert len(backing(here.base)) == 1
    here.start()
    assert remote.info("one") == made
    assert remote.names() == ["one"]
    assert remote.names("labels.a==c") == []
    made.labels["a"] = "c"
    assert remote.update(made, "labels") == made
    here.out("leases", "rm", "--sync", "l")
    assert remote.names() == []
    assert backing(here.base) == []
    with pytest.raises(NotFound):
        remote.deactivate("one")
    held = remote.activate("two", loop, fmt, temporary=True, labels={"containerd.io/gc.root": "1"})
    assert held.system[0].type == "bind"
    remote.deactivate("two")
    assert here.stop() == 0
    assert daemons.mounts(here.base) == []
    assert backing(here.base) == []


def test_ctr_mounts_a_snapshot_in_the_daemon(here: Host) -> None:
    here.out("snapshots", "prepare", "one")
    for _ in range(2):
        line = here.out("snapshots", "mounts", "--temp", "/target", "one")
        words = line.split()
        assert (words[:3], words[4:]) == (["mount", "-t", "bind"], ["/target", "-o", "rbind"])
        assert words[3].startswith(str(here.base / "state"))
    assert Remote(here).names() == ["ctrone"]
    assert str(here.base / "root") in here.out("snapshots", "mounts", "/target", "one")
    here.out("snapshots", "rm", "one")
    # a lease that goes has the garbage collected
    here.out("leases", "create", "--id", "l")
    here.out("leases", "rm", "--sync", "l")
    assert Remote(here).names() == []


def test_a_task_on_a_file_system_in_an_image(here: Host) -> None:
    """The mounts live as long as the task, for a shim that was there before them as well."""
    remote = Remote(here)
    tree = here.base / "tree"
    for name in ("bin", "dev", "proc"):
        (tree / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", tree / "bin" / "sh")
    image = here.base / "image.erofs"
    subprocess.run(["mkfs.erofs", "--quiet", image, tree], check=True, capture_output=True)
    config = here.base / "pod.json"
    config.write_text("{}")
    here.out("sandboxes", "run", str(config), "pod")
    for id, sandbox in (("one", ""), ("two", "pod")):
        made = create_task(here, id, sandbox, str(image))
        assert remote.names() == [id]
        info = remote.info(id)
        assert info is not None
        assert info.labels == {"containerd.io/gc.bref.container": id}
        assert made > 0
        with contextlib.closing(Client(here.address, namespace=here.namespace)) as client:
            client.unary(TASKS + "Start", tasks.StartRequest(container_id=id), tasks.StartResponse)
        here.until(id, "STOPPED")
        assert (here.base / "root" / id / "fs" / "written").exists()
        here.out("tasks", "rm", id)
        assert remote.names() == []
        here.out("containers", "rm", id)
    here.out("sandboxes", "rm", "pod")
    assert backing(here.base) == []


def create_task(here: Host, id: str, sandbox: str, image: str) -> int:
    """A container without a snapshot, and its task on an overlay of an EROFS image."""
    folder = here.base / "root" / id
    spec = {
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["sh", "-c", "echo > /written"],
                    "cwd": "/", "env": ["PATH=/bin"]},
        "root": {"path": "rootfs"},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}]},
    }  # fmt: skip
    (here.base / "spec.json").write_text(json.dumps(spec))
    flags = ["--sandbox", sandbox] if sandbox else []
    here.out("containers", "create", *flags, "--config", str(here.base / "spec.json"), id)
    options = [
        f"X-containerd.mkdir.path={folder}:0755",
        f"X-containerd.mkdir.path={folder}/fs:0755",
        f"X-containerd.mkdir.path={folder}/work:0711",
        "lowerdir={{ mount 0 }}",
        f"upperdir={folder}/fs",
        f"workdir={folder}/work",
    ]
    rootfs = [
        types.Mount(type="erofs", source=image, options=["ro"]),
        types.Mount(type="format/mkdir/overlay", source="overlay", options=options),
    ]
    with contextlib.closing(Client(here.address, namespace=here.namespace)) as client:
        request = tasks.CreateTaskRequest(container_id=id, rootfs=rootfs)
        return client.unary(TASKS + "Create", request, tasks.CreateTaskResponse).pid
