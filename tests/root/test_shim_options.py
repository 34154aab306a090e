"""containerd.runc.v1.Options: each is honoured by the shim, shown by its effect or its words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kontti.errors import Error
from kontti.linux import cgroups
from kontti.wire.messages.google import Any, Empty
from kontti.wire.messages.runtime.task.v2 import shim as api
from kontti.wire.messages.types.runtimeoptions.v1.api import Options as GenericOptions
from kontti.wire.typeurl import pack
from tests.support import taskshim
from tests.support.criu import StandIn, stand_in
from tests.support.shims import short_folder
from tests.support.taskshim import RESOURCES_URL, Pod, Zygote

pytestmark = pytest.mark.root
SLEEP = ("sleep", "1000")


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with short_folder() as folder, taskshim.zygote(folder) as made:
        yield made


@pytest.fixture(params=["crun", "runc"])
def pod(zygote: Zygote, request: pytest.FixtureRequest) -> Iterator[Pod]:
    with zygote.pod(request.param) as made, taskshim.leftovers(made):
        yield made


@pytest.fixture
def runtime(pod: Pod) -> StandIn:
    """Set as BinaryName."""
    made = stand_in(pod.folder / "runtime", taskshim.choice(pod.runtime).binary)
    pod.options.binary_name = str(made.path)
    return made


def global_flags(runtime: StandIn) -> list[list[str]]:
    """What stands before each command."""
    lines = [line.split("\x1f")[:-1] for line in runtime.notes.read_text().splitlines()]
    commands = ("create", "start", "delete")
    return [line[: next(i for i, w in enumerate(line) if w in commands)] for line in lines]


def test_the_binary_is_the_one_that_is_named(pod: Pod, runtime: StandIn) -> None:
    pod.run("one", *SLEEP)
    pod.end("one")
    [create] = runtime.commands("create")
    assert create == [
        "--bundle", str(pod.folder / "b" / "one"),
        "--pid-file", str(pod.folder / "b" / "one" / "init.pid"), "one",
    ]  # fmt: skip


def test_a_binary_that_is_not_there(pod: Pod) -> None:
    for name, said in (("/none/runc", "no such file"), ("no-such-runc", "not found in ")):
        pod.options.binary_name = name
        pod.bundle(Path(name).name, *SLEEP)
        request = pod.create_request(Path(name).name)
        with pytest.raises(Error, match=said):
            pod.client.call("Create", request, api.CreateTaskResponse)


def test_no_pivot_and_no_new_keyring_are_asked_for(pod: Pod, runtime: StandIn) -> None:
    pod.options.no_pivot_root = pod.options.no_new_keyring = True
    pod.run("one", *SLEEP)
    pod.end("one")
    [create] = runtime.commands("create")
    assert {"--no-pivot", "--no-new-keyring"} <= set(create)


def test_without_pivot_root_the_old_root_is_under_the_new_one(pod: Pod) -> None:
    """What chroot(2) leaves in the mount table, and pivot_root(2) does not."""
    counted = {}
    for id, wanted in (("with", False), ("without", True)):
        pod.options.no_pivot_root = wanted
        pid = pod.run(id, *SLEEP)
        counted[wanted] = len(Path(f"/proc/{pid}/mountinfo").read_text().splitlines())
        assert os.readlink(f"/proc/{pid}/root") == "/"
        pod.end(id)
    assert counted[True] >= counted[False]


def test_the_state_is_below_the_root_that_is_named(pod: Pod) -> None:
    pod.options.root = str(pod.folder / "elsewhere")
    pod.run("one", *SLEEP)
    assert (pod.folder / "elsewhere" / pod.namespace / "one").is_dir()
    pod.end("one")
    assert list((pod.folder / "elsewhere" / pod.namespace).iterdir()) == []


def test_systemd_is_asked_for_by_every_command(pod: Pod, runtime: StandIn) -> None:
    # no systemd here to do it: the stand-in keeps the word from the real runtime
    script = runtime.path.read_text()
    runtime.path.write_text(
        script.replace("    --*) head=", "    --systemd*) shift ;;\n    --*) head=")
    )
    pod.options.systemd_cgroup = True
    pod.run("one", *SLEEP)
    pod.end("one")
    found = global_flags(runtime)
    assert len(found) == 3
    assert all("--systemd-cgroup" in flags for flags in found), found


def test_streams_belong_to_whom_the_options_name(pod: Pod, runtime: StandIn) -> None:
    pod.options.io_uid, pod.options.io_gid = 1000, 2000
    out, err, given = pod.fifo("out"), pod.fifo("err"), pod.fifo("in")
    pod.create("one", *SLEEP, stdin=given.path, stdout=out.path, stderr=err.path)
    assert runtime.owners() == [["1000:2000"] * 3]
    pod.start("one")
    log = pod.folder / "exec.log"
    pod.exec("one", "e", "true", stdout=f"file://{log}")
    pod.start("one", "e")
    null = os.stat("/dev/null")
    assert runtime.owners()[-1] == [
        "1000:2000" if n == 1 else f"{null.st_uid}:{null.st_gid}" for n in range(3)
    ]
    assert pod.wait("one", "e") == 0
    pod.delete("one", "e")
    pod.end("one")


def test_without_such_options_streams_are_whose_they_were(pod: Pod, runtime: StandIn) -> None:
    out = pod.fifo("out")
    os.chown(out.path, 0, 3000)
    pod.create("one", *SLEEP, stdout=out.path)
    assert runtime.owners()[0][1] == "0:3000"
    pod.start("one")
    pod.end("one")


def test_options_of_another_runtime_are_not_ours(pod: Pod) -> None:
    """runtimeoptions.v1.Options are for shims that read a file of their own."""
    pod.bundle("one", *SLEEP)
    request = pod.create_request("one")
    request.options = pack(GenericOptions(type_url="x", config_path="/none", config_body=b"y"))
    pod.client.call("Create", request, api.CreateTaskResponse)
    pod.delete("one")


def test_resources_are_given_to_the_runtime_as_they_are(pod: Pod, runtime: StandIn) -> None:
    """Those of cgroup v2 too, which not every host could take."""
    kept = runtime.keep_resources()
    pod.run("one", *SLEEP)
    resources = b'{"cpu":{"shares":512},"unified":{"memory.high":"67108864","cpu.weight":"50"}}'
    packed = Any(type_url=RESOURCES_URL, value=resources)
    request = api.UpdateTaskRequest(id="one", resources=packed, annotations={"a": "b"})
    pod.client.call("Update", request, Empty)
    assert kept.read_bytes() == resources
    [asked] = runtime.commands("update")
    assert (asked[0], asked[2:]) == ("--resources", ["one"])
    assert not list((pod.folder / "b" / "one").glob("resources-*"))
    for nothing in (None, Any()):
        request = api.UpdateTaskRequest(id="one", resources=nothing, annotations={"a": "b"})
        pod.client.call("Update", request, Empty)
    assert len(runtime.commands("update")) == 1
    pod.end("one")


@pytest.mark.parametrize("runtime_name", ["crun", "runc"])
def test_a_shim_lives_in_the_group_that_is_named(zygote: Zygote, runtime_name: str) -> None:
    group = f"shims-{os.getpid()}"
    folders = [Path(cgroups.ROOT) / group]
    if cgroups.mode() != cgroups.UNIFIED:
        folders = [Path(cgroups.ROOT) / name / group for name in ("memory", "pids")]
    for folder in folders:
        folder.mkdir()
    try:
        with zygote.pod(runtime_name, cgroup=f"/{group}") as pod, taskshim.leftovers(pod):
            pid = pod.run("one", *SLEEP)
            for folder in folders:
                procs = (folder / "cgroup.procs").read_text().split()
                assert str(pod.pid) in procs
                assert str(pid) not in procs
            pod.end("one")
    finally:
        for folder in folders:
            folder.rmdir()


def test_a_group_that_is_not_there_starts_no_shim(zygote: Zygote) -> None:
    request = {"namespace": "n", "socket": str(zygote.folder / "s"), "cgroup": "/none/such"}
    assert "failed to load cgroup /none/such" in str(zygote.fork(request)["error"])
    request = {**request, "cgroup": "../../etc"}
    assert "failed to load cgroup" in str(zygote.fork(request)["error"])
    assert not (zygote.folder / "s").exists()
