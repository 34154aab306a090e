"""Specifications that no runtime can run, by the API alone: it is said why, and nothing is left."""

from __future__ import annotations

import contextlib
import json
import re
import uuid
from collections.abc import Iterator

import pytest

from kontti.errors import Error, NotFound
from tests.support.api import KINDS, Api, connected
from tests.support.figures import steady
from tests.support.leftovers import CGROUPS, Place, place, unchanged

pytestmark = pytest.mark.root
SLACK = 64 << 10


@pytest.fixture(scope="module", params=(("kontti", "ours"), ("containerd", "debian")))
def at(request: pytest.FixtureRequest) -> Iterator[Place]:
    with place(*request.param) as made:
        yield made


@pytest.fixture(scope="module")
def link(at: Place) -> Iterator[Api]:
    with connected(at.daemon.address, at.namespace, at.base) as made:
        made.run("warm", "sleep", "1000")
        made.end("warm")
        yield made


# the original keeps the bundle of a shim that did not start, and what a runtime leaves behind
KEPT = {"kontti": frozenset[str](), "containerd": frozenset(("files", "cgroups"))}


@pytest.fixture
def api(at: Place, link: Api) -> Iterator[Api]:
    with unchanged(at, KEPT[at.daemon.kind]), steady(at.daemon.pid, SLACK):
        yield link
        link.clear()


@pytest.fixture
def id() -> str:
    """A name that nobody had."""
    return f"c{uuid.uuid4().hex[:8]}"


BYTES: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"{",
    "null": b"null",
    "a list": b"[]",
    "a number": b"12",
    "an empty object": b"{}",
    "not text": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
    "another major version": b'{"ociVersion":"2.0.0","process":{"args":["true"],"cwd":"/"}}',
    "no version": b'{"process":{"args":["true"],"cwd":"/"},"root":{"path":"rootfs"}}',
    "process is a list": b'{"ociVersion":"1.0.2","process":[],"root":{"path":"rootfs"}}',
    "args are a number": b'{"ociVersion":"1.0.2","process":{"args":7},"root":{"path":"rootfs"}}',
    "linux is text": b'{"ociVersion":"1.0.2","linux":"x","root":{"path":"rootfs"}}',
    "annotations are a list": b'{"annotations":["io.kubernetes.cri.sandbox-id"]}',
}


@pytest.mark.parametrize("name", BYTES)
def test_what_is_no_specification(api: Api, id: str, name: str) -> None:
    api.record(id, BYTES[name])
    with pytest.raises(Error) as caught:
        api.create(id)
    said = caught.value.message
    assert "Traceback" not in said
    assert len(said) < 2000
    assert id not in api.list()


def mount(**parts: object) -> dict[str, object]:
    return {"destination": "/mnt", "type": "bind", "options": ["rbind"], **parts}


# what replaces a part of the container's specification, and what is complained of
PARTS: dict[str, tuple[dict[str, object], str]] = {
    "no process": ({"process": None}, ""),
    "no command": ({"process": Api.process()}, ""),
    "empty command": ({"process": Api.process("")}, ""),
    "command that is not there": ({"process": Api.process("nosuch")}, r"nosuch"),
    "command by a path that is not there": ({"process": Api.process("/no/such")}, r"/no/such"),
    "command that is a folder": ({"process": Api.process("/proc")}, r"(?i)permission|permitted"),
    "command that is no program": ({"process": Api.process("/etc/passwd")}, r"(?i)permission"),
    "command with a zero byte": ({"process": Api.process("tr\0ue")}, ""),
    "endless command": ({"process": Api.process("true", "x" * (3 << 20))}, r"(?i)too long|too big"),
    "relative cwd": ({"process": Api.process("true", cwd="tmp")}, r"(?i)cwd|absolute"),
    "no cwd": ({"process": Api.process("true", cwd="")}, r"(?i)cwd|empty|chdir"),
    "cwd below a file": (
        {"process": Api.process("true", cwd="/etc/passwd/x")},
        r"(?i)not a directory",
    ),
    "unknown capability": (
        {"process": Api.process("true", capabilities={"bounding": ["CAP_NONE"]})},
        "",
    ),
    "unknown limit": (
        {"process": Api.process("true", rlimits=[{"type": "RLIMIT_X", "hard": 1, "soft": 1}])},
        r"RLIMIT_X",
    ),
    "limit above the hard one": (
        {"process": Api.process("true", rlimits=[{"type": "RLIMIT_NOFILE", "hard": 1, "soft": 2}])},
        r"(?i)rlimit|invalid argument",
    ),
    "user above all": ({"process": Api.process("true", user={"uid": 2**32, "gid": 0})}, ""),
    "user below all": ({"process": Api.process("true", user={"uid": -5, "gid": 0})}, ""),
    "root that is not there": ({"root": {"path": "/no/such/root"}}, r"/no/such/root"),
    "root that is a file": ({"root": {"path": "/etc/passwd"}}, r"(?i)not a directory|/etc/passwd"),
    "no root": ({"root": None}, ""),
    "mount of nothing": ({"mounts": [mount(source="/no/such")]}, r"/no/such"),
    "mount of no kind": (
        {"mounts": [mount(type="nosuch", source="x", options=[])]},
        r"mnt|nosuch",
    ),
    "mount with an unknown option": (
        {"mounts": [mount(type="tmpfs", source="tmpfs", options=["nosuch=1"])]},
        r"/mnt|nosuch|tmpfs",
    ),
    "mount on a way that is a file": (
        {"mounts": [mount(source="/etc", destination="/etc/passwd/x")]},
        r"(?i)not a directory",
    ),
    "hostname without end": ({"hostname": "x" * 100}, r"(?i)hostname|too long|invalid argument"),
}
LINUX: dict[str, tuple[dict[str, object], str]] = {
    "unknown namespace": ({"namespaces": [{"type": "nosuch"}]}, r"nosuch|namespace"),
    "namespace twice": (
        {"namespaces": [{"type": k} for k in (*KINDS, "pid")]},
        r"(?i)malformed|duplicat|already|namespace",
    ),
    "namespace of nobody": (
        {"namespaces": [{"type": "mount"}, {"type": "network", "path": "/no/such/ns"}]},
        r"/no/such/ns",
    ),
    "namespace of another kind": (
        {"namespaces": [{"type": "mount"}, {"type": "network", "path": "/proc/self/ns/mnt"}]},
        "",
    ),
    "too little memory": ({"resources": {"memory": {"limit": 1}}}, ""),
    "too many CPUs": ({"resources": {"cpu": {"cpus": "0-9999"}}}, r"(?i)cpuset|range|invalid"),
    "no such CPUs": ({"resources": {"cpu": {"cpus": "nosuch"}}}, r"(?i)cpuset|invalid"),
    "unknown setting of the kernel": (
        {"sysctl": {"kernel.nosuch.setting": "1"}},
        r"(?i)sysctl|kernel.nosuch",
    ),
    "setting of the host": ({"sysctl": {"vm.swappiness": "1"}}, r"(?i)sysctl|vm.swappiness"),
    "unknown system call action": (
        {"seccomp": {"defaultAction": "SCMP_ACT_NONE"}},
        r"(?i)seccomp|SCMP",
    ),
    "device of no kind": (
        {"devices": [{"path": "/dev/x", "type": "z", "major": 1, "minor": 1}]},
        "",
    ),
}
# a runtime may do without what it cannot do
TAKEN = {
    "kontti": {
        "unknown capability", "no command", "no root", "setting of the host", "relative cwd",
        "endless command", "namespace twice", "device of no kind",
    },
    "containerd": {"unknown capability", "endless command"},
}  # fmt: skip


def attempt(api: Api, id: str, spec: dict[str, object]) -> str:
    """Create and start: what is complained of, whichever of the two refuses; "" where neither."""
    api.record(id, {key: value for key, value in spec.items() if value is not None})
    try:
        api.create(id)
        api.start(id)
    except Error as error:
        return error.message
    return ""


def refused(at: Place, name: str, said: str, complaint: str) -> None:
    """That was the complaint, in a few words, and it was the runtime's."""
    if not said:
        assert name in TAKEN[at.daemon.kind]
        return
    assert "Traceback" not in said
    assert len(said) < 4000, len(said)
    assert re.search(complaint, said), said
    assert "OCI runtime" in said, said


@pytest.mark.parametrize("name", PARTS)
def test_parts_that_cannot_be(at: Place, api: Api, id: str, name: str) -> None:
    changes, complaint = PARTS[name]
    refused(at, name, attempt(api, id, api.spec(id, "true", **changes)), complaint)


@pytest.mark.parametrize("name", LINUX)
def test_parts_of_linux_that_cannot_be(at: Place, api: Api, id: str, name: str) -> None:
    changes, complaint = LINUX[name]
    spec = api.spec(id, "true", linux=api.linux(id, **changes))
    refused(at, name, attempt(api, id, spec), complaint)


@pytest.mark.parametrize("path", ["/../../../NAME", "NAME/../../..", "/" + "x" * 300, "\0"])
def test_groups_that_are_elsewhere(api: Api, id: str, path: str) -> None:
    """A group's path cannot lead out of the hierarchy: refused, or taken for one inside."""
    path = path.replace("NAME", id)
    said = attempt(api, id, api.spec(id, "true", linux=api.linux(id, cgroupsPath=path)))
    assert "Traceback" not in said
    if not said:
        assert api.wait(id).code == 0
        api.delete(id)
    assert list(CGROUPS.rglob(f"*{id}*")) == []


EXECS: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"{",
    "null": b"null",
    "a list": b"[]",
    "no command": b'{"args":[],"cwd":"/"}',
    "args are text": b'{"args":"true","cwd":"/"}',
    "command that is not there": b'{"args":["/no/such"],"cwd":"/"}',
    "cwd that is a file": b'{"args":["/bin/true"],"cwd":"/etc/passwd"}',
    "user below all": b'{"args":["/bin/true"],"cwd":"/","user":{"uid":-1,"gid":0}}',
    "endless command": json.dumps({"args": ["/bin/true", "x" * (3 << 20)], "cwd": "/"}).encode(),
}


@pytest.mark.parametrize("name", EXECS)
def test_execs_that_cannot_be(api: Api, id: str, name: str) -> None:
    """The container goes on, and the exec can be deleted and made again."""
    api.run(id, "sleep", "1000")
    for _ in range(2):
        said = ""
        try:
            api.exec_spec(id, "e", EXECS[name])
            api.start(id, "e")
        except Error as error:
            said = error.message
        if not said:
            # a runtime that goes away before its child has become the command
            assert api.wait(id, "e").code != 0
        assert "Traceback" not in said
        assert len(said) < 4000
        with contextlib.suppress(NotFound):  # it may have been refused before it was one
            api.delete_exec(id, "e")
    assert api.run_exec(id, "good", "sh", "-c", "exit 3") == 3
    assert api.end(id).code == 137
