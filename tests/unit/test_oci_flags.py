"""Flags: mounts, namespaces, mappings, limits, devices, capabilities, profiles."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kontti.errors import FailedPrecondition, InvalidArgument, NotFound
from kontti.oci import capabilities, devices, flags, resources, seccomp, security
from kontti.oci.base import Context, build
from kontti.oci.default import CAPABILITIES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kontti.oci.base import Option
    from kontti.oci.spec import Seccomp, Spec


def made(*chosen: Option) -> Spec:
    return build(Context("default", "c1"), chosen)


def test_mount() -> None:
    assert flags.parse_mount("type=bind,src=/a=b,dst=/c,options=rbind:ro") == {
        "type": "bind",
        "source": "/a=b",
        "destination": "/c",
        "options": ["rbind", "ro"],
    }
    assert flags.parse_mount('type=bind,"source=/a,b",destination=/c')["source"] == "/a,b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bind", "expected key=val"),
        ("typ=bind,dst=/x", 'mount option "typ" not supported'),
        ("type=bind,src=/x", "no absolute destination"),
        ("type=bind,dst=x", "no absolute destination"),
        ('type=bind,dst="/x', "mount"),
        ("", "expected key=val"),
    ],
)
def test_bad_mounts(text: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        flags.parse_mount(text)


def test_namespace_to_join() -> None:
    assert flags.parse_namespace("network:/run/a:b") == {"type": "network", "path": "/run/a:b"}
    for text in ("network", "network:", "net:/x"):
        with pytest.raises(InvalidArgument, match="--with-ns"):
            flags.parse_namespace(text)


def test_id_mapping() -> None:
    assert flags.parse_id_mapping("0:1000:65536") == {
        "containerID": 0,
        "hostID": 1000,
        "size": 65536,
    }
    for text in ("0:1", "0:1:0", "a:0:1", "-1:0:1", "0:4294967295:2", "0:0:99999999999", "0:²:1"):
        with pytest.raises(InvalidArgument, match="mapping"):
            flags.parse_id_mapping(text)


def test_rlimit_takes_the_place_of_the_default() -> None:
    spec = made(resources.with_rlimit(flags.parse_rlimit("RLIMIT_NOFILE", "10:20")))
    assert spec["process"]["rlimits"] == [{"type": "RLIMIT_NOFILE", "hard": 20, "soft": 10}]
    assert flags.parse_rlimit("RLIMIT_CORE", "7") == {"type": "RLIMIT_CORE", "hard": 7, "soft": 7}
    for text in ("", "x", "20:10", "1:2:3", "-1", "9" * 5000):
        with pytest.raises(InvalidArgument):
            flags.parse_rlimit("RLIMIT_NOFILE", text)


def test_cpus() -> None:
    cpu = made(resources.with_cpus(1.5))["linux"]["resources"]["cpu"]
    assert cpu == {"quota": 150_000, "period": 100_000}
    for count in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InvalidArgument, match="cpus"):
            resources.with_cpus(count)


def test_limits_stand_beside_each_other() -> None:
    spec = made(
        resources.with_cpu({"shares": 5}),
        resources.with_cpu({"cpus": "0-1"}),
        resources.with_memory_limit(7),
        resources.with_pids_limit(3),
    )
    given = spec["linux"]["resources"]
    assert given["cpu"] == {"shares": 5, "cpus": "0-1"}
    assert (given["memory"], given["pids"]) == ({"limit": 7}, {"limit": 3})


def test_cgroup_path_and_none() -> None:
    assert made(resources.with_cgroup("/a/b"))["linux"]["cgroupsPath"] == "/a/b"
    assert "cgroupsPath" not in made(resources.with_cgroup(""))["linux"]


def test_devices_below_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no device")
    (tmp_path / "link").symlink_to("/dev/null")
    assert devices.devices_at(str(tmp_path)) == []
    with pytest.raises(InvalidArgument, match="not a device node"):
        devices.devices_at(str(tmp_path / "file"))
    with pytest.raises(NotFound):
        devices.devices_at(str(tmp_path / "absent"))


def test_a_device_under_another_name() -> None:
    linux = made(resources.with_device("/dev/null", "/dev/nil", "rw"))["linux"]
    device = linux["devices"][0]
    assert (device["path"], device["type"]) == ("/dev/nil", "c")
    assert (device["major"], device["minor"]) == (1, 3)
    assert linux["resources"]["devices"][-1] == {
        "allow": True,
        "type": "c",
        "major": 1,
        "minor": 3,
        "access": "rw",
    }
    with pytest.raises(InvalidArgument, match="device access"):
        resources.with_device("/dev/null", access="rwx")


def test_host_devices_leave_out_what_a_container_has_of_its_own() -> None:
    paths = [device["path"] for device in devices.host_devices()]
    assert "/dev/null" in paths
    assert "/dev/console" not in paths
    assert not [path for path in paths if path.startswith("/dev/pts/")]


def test_capabilities() -> None:
    spec = made(
        security.with_added_capabilities(["CAP_SYS_ADMIN", "CAP_CHOWN"]),
        security.with_dropped_capabilities(["CAP_MKNOD"]),
    )
    sets = spec["process"]["capabilities"]
    wanted = [*(name for name in CAPABILITIES if name != "CAP_MKNOD"), "CAP_SYS_ADMIN"]
    for names in (sets["bounding"], sets["effective"], sets["permitted"]):
        assert list(names) == wanted
    assert "ambient" not in sets


@pytest.mark.parametrize("name", ["SYS_ADMIN", "CAP_NONE", "cap_chown"])
def test_unknown_capabilities(name: str) -> None:
    with pytest.raises(InvalidArgument, match="capabilit"):
        security.with_added_capabilities([name])


def test_current_capabilities(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tx\nCapEff:\t0000000000000021\n")
    assert capabilities.current(str(status)) == ("CAP_CHOWN", "CAP_KILL")
    # a kernel may know more of them than we do
    status.write_text("CapEff:\tffffffffffffffff\n")
    assert capabilities.current(str(status)) == capabilities.NAMES


def host(machine: str, release: str) -> os.uname_result:
    return os.uname_result(("Linux", "h", release, "v", machine))


def allowed(profile: Seccomp) -> set[str]:
    return {
        name
        for rule in profile["syscalls"]
        if rule["action"] == seccomp.ALLOW and "args" not in rule
        for name in rule["names"]
    }


def test_default_profile() -> None:
    profile = seccomp.default_profile(CAPABILITIES, host("x86_64", "6.1.0-9"))
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    assert {"read", "ptrace", "chroot", "arch_prctl"} <= allowed(profile)
    assert not {"mount", "clone", "clone3", "bpf", "socket", "personality"} & allowed(profile)
    clone3 = [rule for rule in profile["syscalls"] if "clone3" in rule["names"]]
    assert [(rule["action"], rule["errnoRet"]) for rule in clone3] == [("SCMP_ACT_ERRNO", 38)]


def test_default_profile_follows_capabilities_kernel_and_machine() -> None:
    admin = seccomp.default_profile(("CAP_SYS_ADMIN",), host("aarch64", "4.7"))
    assert {"mount", "clone", "clone3", "cacheflush"} <= allowed(admin)
    assert not {"ptrace", "chroot", "arch_prctl"} & allowed(admin)
    assert seccomp.default_profile((), host("vax", "unheard-of"))["architectures"] == ()
    clone = [
        rule["args"][0]["index"]
        for rule in seccomp.default_profile((), host("s390x", "6.0"))["syscalls"]
        if "clone" in rule["names"]
    ]
    assert clone == [1]


def test_default_profile_is_for_the_capabilities_at_its_turn() -> None:
    added = security.with_added_capabilities(["CAP_SYS_ADMIN"])
    assert "mount" in allowed(made(added, security.with_default_seccomp())["linux"]["seccomp"])
    assert "mount" not in allowed(made(security.with_default_seccomp())["linux"]["seccomp"])


def test_profile_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["x"], "action": "y"}]}
    path.write_text(json.dumps(profile))
    assert made(security.with_seccomp_profile(str(path)))["linux"]["seccomp"] == profile


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"defaultAction":1}'])
def test_bad_profiles(tmp_path: Path, text: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(InvalidArgument, match="decoding seccomp profile failed"):
        security.with_seccomp_profile(str(path))
    with pytest.raises(InvalidArgument, match="cannot load seccomp profile"):
        security.with_seccomp_profile(str(tmp_path / "absent"))


def test_apparmor_is_refused_where_there_is_none(tmp_path: Path) -> None:
    enabled = tmp_path / "enabled"
    for text in (None, "N\n"):
        if text is not None:
            enabled.write_text(text)
        with pytest.raises(FailedPrecondition, match="the host has no AppArmor"):
            security.with_apparmor_profile("p", str(enabled))
    enabled.write_text("Y\n")
    spec = made(security.with_apparmor_profile("p", str(enabled)))
    assert spec["process"]["apparmorProfile"] == "p"


def test_privileged_undoes_what_holds_a_container_back() -> None:
    spec = made(security.with_default_seccomp(), security.with_privileged())
    linux = spec["linux"]
    assert not {"seccomp", "maskedPaths", "readonlyPaths"} & set(linux)
    sysfs = next(mount for mount in spec["mounts"] if mount["type"] == "sysfs")
    assert "rw" in sysfs["options"]
    assert "ro" not in sysfs["options"]
    assert tuple(spec["process"]["capabilities"]["bounding"]) == capabilities.current()
