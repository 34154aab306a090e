"""Every command's flags: those of the original, and those that make a container."""

from __future__ import annotations

import hashlib
import json
import os
from importlib import import_module
from pathlib import Path

import pytest

from kontti.cmd.ctr.flags import CREATE, DEFAULT_RUNTIME, RUN
from kontti.cmd.ctr.grammar import Call, Command, Flag, UsageError, parse
from kontti.cmd.ctr.main import GLOBAL_FLAGS, GROUPS
from kontti.cmd.ctr.remap import Mapping, on_host
from kontti.cmd.ctr.runtimes import runtime_options
from kontti.cmd.ctr.specs import check_arguments, make_spec
from kontti.errors import Error, InvalidArgument, Unimplemented
from kontti.oci.flags import parse_id_mapping
from kontti.oci.spec import IdMapping
from kontti.wire.messages.types.runc.options.oci import Options
from kontti.wire.messages.types.runtimeoptions.v1.api import Options as GenericOptions

# long names of flags that scripts written for the original use, by command
ORIGINAL = {
    "run": (
        "rm null-io log-uri detach fifo-dir cgroup platform config cwd env env-file "
        "label annotation mount net-host privileged read-only tty with-ns pid-file "
        "allow-new-privs memory-limit cap-add cap-drop seccomp seccomp-profile "
        "apparmor-profile hostname user rootfs no-pivot cpu-quota cpu-period "
        "rootfs-propagation device cpus cpu-shares cpuset-cpus cpuset-mems rlimit-nofile "
        "uidmap gidmap snapshotter snapshotter-label runtime runtime-config-path "
        "runc-binary runc-root runc-systemd-cgroup cni sync-fs dump-config remap-labels "
        "privileged-without-host-devices gpus apparmor-default-profile blockio-config-file "
        "blockio-class rdt-class sandbox"
    ),
    "tasks checkpoint": "exit image-path work-path",
    "containers checkpoint": "rw image task",
    "containers restore": "rw live",
    "tasks exec": "cwd tty detach exec-id fifo-dir log-uri user",
    "tasks start": "no-pivot null-io log-uri fifo-dir pid-file detach",
    "tasks kill": "signal exec-id all",
    "tasks delete": "force exec-id",
    "tasks list": "quiet",
    "tasks metrics": "format",
    "images pull": "label platform all-platforms skip-verify plain-http user hosts-dir snapshotter",
    "images push": "manifest manifest-type platform skip-verify plain-http user",
    "images import": "base-name digests index-name all-platforms platform no-unpack snapshotter",
    "images export": "platform all-platforms skip-manifest-json",
    "images delete": "sync",
    "images tag": "force",
    "content ingest": "expected-size expected-digest",
    "leases create": "id expires",
    "snapshots mounts": "temp",
    "snapshots prepare": "target mounts",
    "containers delete": "keep-snapshot",
    "containers info": "spec",
    "namespaces remove": "cgroup",
    "sandboxes run": "runtime",
    "sandboxes list": "filters",
    "sandboxes remove": "force",
}


def leaves() -> dict[str, Command]:
    """Every command by its whole name."""
    found = {}
    for name, _, _, module in GROUPS:
        commands = import_module(f"kontti.cmd.ctr.{module}").COMMANDS
        if isinstance(commands, Command):
            found[name] = commands
        else:
            found.update({f"{name} {command.name}": command for command in commands})
    return found


def groups() -> dict[str, tuple[Flag, ...]]:
    return {n: getattr(import_module(f"kontti.cmd.ctr.{m}"), "FLAGS", ()) for n, _, _, m in GROUPS}


LEAVES = leaves()


@pytest.mark.parametrize("name", LEAVES)
def test_no_flag_is_named_twice(name: str) -> None:
    names = [n for flag in LEAVES[name].flags for n in flag.names]
    assert len(names) == len(set(names))
    assert not {"help", "h"} & set(names)
    assert all(not n.startswith("-") and n == n.lower() for n in names)


@pytest.mark.parametrize("name", LEAVES)
def test_every_default_is_a_value_of_its_kind(name: str) -> None:
    values, _, given = parse(
        [*LEAVES[name].flags, Flag("help,h", "bool")], ["-h"], passthrough=False
    )
    assert given == {"help"}
    call = Call(values, ())
    for flag in LEAVES[name].flags:
        getattr(
            call, {"string": "str", "uint": "int", "duration": "float"}.get(flag.kind, flag.kind)
        )(flag.names[0])


def test_no_command_has_another_ones_name() -> None:
    for path, command in LEAVES.items():
        group = path.partition(" ")[0]
        others = [c for p, c in LEAVES.items() if p.partition(" ")[0] == group and c is not command]
        taken = {n for other in others for n in (other.name, *other.aliases)}
        assert not {command.name, *command.aliases} & taken
    names = [n for name, aliases, _, _ in GROUPS for n in (name, *aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", ORIGINAL)
def test_the_originals_flags_are_there(name: str) -> None:
    group = groups().get(name.partition(" ")[0], ())
    ours = {flag.names[0] for flag in (*LEAVES[name].flags, *group)}
    assert set(ORIGINAL[name].split()) <= ours


def test_short_names() -> None:
    short = {flag.names[0]: flag.names[1] for flag in (*RUN, *GLOBAL_FLAGS) if len(flag.names) > 1}
    assert short == {
        "config": "c", "tty": "t", "user": "u", "detach": "d",
        "address": "a", "namespace": "n", "help": "h", "version": "v",
    }  # fmt: skip


# --- from flags to a spec


def call(*words: str, create: bool = False) -> Call:
    values, args, given = parse(CREATE if create else RUN, words, passthrough=True)
    outer = Call(parse(GLOBAL_FLAGS, ["-n", "blue"], passthrough=True)[0], ())
    return Call(values, args, given, outer)


def spec(*words: str) -> dict[str, dict[str, object]]:
    made: dict[str, dict[str, object]] = json.loads(
        make_spec(call(*words), "one", ["true"], None, None, run=True)
    )
    return made


def test_the_process() -> None:
    process = spec("--cwd", "/etc", "--env", "A=b", "--env", "C=d,e", "-t", "--hostname", "ship")[
        "process"
    ]
    assert (process["args"], process["cwd"], process["terminal"]) == (["true"], "/etc", True)
    assert {"A=b", "C=d,e"} <= set(process["env"])  # type: ignore[call-overload]
    assert process["noNewPrivileges"] is True


def test_what_it_may_do() -> None:
    process = spec("--cap-add", "CAP_SYS_ADMIN", "--cap-drop", "CAP_CHOWN", "--allow-new-privs")[
        "process"
    ]
    bounding = process["capabilities"]["bounding"]  # type: ignore[index]
    assert "CAP_SYS_ADMIN" in bounding
    assert "CAP_CHOWN" not in bounding
    assert "noNewPrivileges" not in process or process["noNewPrivileges"] is False


def test_what_it_may_use() -> None:
    linux = spec("--memory-limit", "67108864", "--cpu-shares", "512", "--cpuset-cpus", "0-1")[
        "linux"
    ]
    resources: dict[str, dict[str, object]] = linux["resources"]  # type: ignore[assignment]
    assert resources["memory"]["limit"] == 67108864
    assert (resources["cpu"]["shares"], resources["cpu"]["cpus"]) == (512, "0-1")
    assert linux["cgroupsPath"] == "/blue/one"


def test_cpus_is_a_quota_of_a_period() -> None:
    cpu = spec("--cpus", "0.5")["linux"]["resources"]["cpu"]  # type: ignore[index]
    assert cpu["quota"] / cpu["period"] == 0.5
    for other in (("--cpu-quota", "1000"), ("--cpu-period", "1000")):
        with pytest.raises(UsageError, match="cpus and quota/period should be used separately"):
            spec("--cpus", "0.5", *other)


def test_mounts_and_namespaces() -> None:
    made = spec(
        "--mount", "type=bind,src=/a,dst=/b,options=rbind:ro",
        "--net-host", "--with-ns", "ipc:/proc/1/ns/ipc",
    )  # fmt: skip
    mounts: list[dict[str, object]] = made["mounts"]  # type: ignore[assignment]
    bound = next(m for m in mounts if m["destination"] == "/b")
    assert (bound["type"], bound["source"], bound["options"]) == ("bind", "/a", ["rbind", "ro"])
    namespaces: list[dict[str, str]] = made["linux"]["namespaces"]  # type: ignore[assignment]
    kinds = {n["type"]: n.get("path") for n in namespaces}
    assert "network" not in kinds
    assert kinds["ipc"] == "/proc/1/ns/ipc"


@pytest.mark.parametrize(
    "words",
    [
        ("--mount", "nonsense"), ("--mount", "type=bind,src"), ("--with-ns", "net"),
        ("--with-ns", "net:"), ("--cap-add", "SYS_ADMIN"), ("--rlimit-nofile", "x"),
        ("--cpus", "-1"), ("--device", "/nonexistent"), ("--seccomp-profile", "/nonexistent"),
        ("--uidmap", "1:2", "--gidmap", "1:2"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises((Error, UsageError)):
        spec(*words)


def test_a_file_of_variables(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("A=from file\nB=c\n")
    env = spec("--env-file", str(file), "--env", "A=from flag")["process"]["env"]
    assert [e for e in env if str(e).startswith("A=")] == ["A=from flag"]  # type: ignore[attr-defined]
    assert "B=c" in env  # type: ignore[operator]


def test_the_runtimes_options() -> None:
    packed = runtime_options(
        call(
            "--runc-binary",
            "/bin/x",
            "--runc-root",
            "/r",
            "--runc-systemd-cgroup",
            "--cgroup",
            "a:b:c",
        )
    )
    assert packed is not None
    options = Options.decode(packed.value)
    assert (options.binary_name, options.root, options.systemd_cgroup) == ("/bin/x", "/r", True)
    kata = ("--runtime", "io.containerd.kata.v2")
    assert runtime_options(call(*kata)) is None
    packed = runtime_options(call(*kata, "--runtime-config-path", "/etc/kata.toml"))
    assert packed is not None
    assert packed.type_url == GenericOptions.NAME
    assert GenericOptions.decode(packed.value).config_path == "/etc/kata.toml"
    for flag in (("--runc-binary", "x"), ("--runc-systemd-cgroup",)):
        with pytest.raises(UsageError, match="only supported for"):
            runtime_options(call(*kata, *flag))
    with pytest.raises(UsageError, match="requires --cgroup"):
        runtime_options(call("--runc-systemd-cgroup"))
    assert call().str("runtime") == DEFAULT_RUNTIME


def test_what_must_be_named() -> None:
    check_arguments(call("image", "id"))
    check_arguments(call("--config", "f", "id"))
    for words in ((), ("image",), ("", "id"), ("image", ""), ("--config", "f")):
        with pytest.raises(UsageError, match="must be provided"):
            check_arguments(call(*words))
    with pytest.raises(InvalidArgument, match="only container id should be provided"):
        check_arguments(call("--config", "f", "image", "id", create=True))


def test_labels_are_annotations_too() -> None:
    made = spec("--annotation", "a=b", "--label", "c=d")
    assert made["annotations"] == {"a": "b", "c": "d"}


def test_what_is_given_where_nothing_is_said() -> None:
    made = spec()
    assert made["linux"]["resources"]["cpu"] == {"shares": 1024}  # type: ignore[index]
    assert "shares" not in str(spec("--cpu-shares", "0"))
    env = spec("--net-host")["process"]["env"]
    assert f"HOSTNAME={os.uname().nodename}" in env  # type: ignore[operator]


def test_a_class_of_the_resource_director() -> None:
    assert spec("--rdt-class", "gold")["linux"]["intelRdt"] == {"closID": "gold"}


def test_a_privileged_container_without_the_hosts_devices() -> None:
    made = spec("--privileged", "--privileged-without-host-devices")
    assert "devices" not in made["linux"]
    assert "CAP_SYS_ADMIN" in made["process"]["capabilities"]["bounding"]  # type: ignore[index]
    assert made["linux"]["resources"]["devices"][0] == {"allow": False, "access": "rwm"}  # type: ignore[index]
    assert spec("--privileged")["linux"]["devices"]
    with pytest.raises(UsageError, match="without 'privileged'"):
        check_arguments(call("--privileged-without-host-devices", "image", "id"))


@pytest.mark.parametrize(
    "words",
    [("--gpus", "0"), ("--blockio-class", "x"), ("--blockio-config-file", "x")],
)
def test_what_nothing_stands_behind_is_said_to_be_so(words: tuple[str, ...]) -> None:
    with pytest.raises(Unimplemented, match=f"flag {words[0]}"):
        check_arguments(call(*words, "image", "id"))


def test_profiles_of_apparmor_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="conflicts"):
        check_arguments(
            call("--apparmor-profile", "a", "--apparmor-default-profile", "b", "image", "id")
        )


# --- owners in a user namespace


def id_maps(*texts: str) -> list[IdMapping]:
    return [parse_id_mapping(text) for text in texts]


def test_owners_are_mapped_as_the_namespace_says() -> None:
    maps = id_maps("1000:5000:10", "0:100000:1000")
    mapping = Mapping(maps, maps)
    assert [on_host(n, mapping.uids) for n in (0, 999, 1000, 1009)] == [100000, 100999, 5000, 5009]
    with pytest.raises(InvalidArgument, match="id 1010"):
        on_host(1010, mapping.uids)
    assert set(mapping.labels().values()) == {"0:100000:1000,1000:5000:10"}


def test_a_mapped_copy_has_the_name_that_containerds_client_gives_it() -> None:
    maps = id_maps("0:100000:65536")
    document = (
        '{"Parent":"sha256:p","IDMap":{"UidMap":[{"containerID":0,"hostID":100000,"size":65536}],'
        '"GidMap":[{"containerID":0,"hostID":100000,"size":65536}]}}'
    )
    expected = f"sha256:{hashlib.sha256(document.encode()).hexdigest()}"
    assert Mapping(maps, maps).key("sha256:p") == expected
