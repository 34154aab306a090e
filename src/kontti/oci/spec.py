"""The shape of an OCI runtime spec (runtime-spec, config.md and config-linux.md).

Field names are those of the JSON. Imported for its types alone, so it costs a program nothing.
Tuples are written as lists; what an option changes in place is a list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict


class User(TypedDict, total=False):
    """``process.user``."""

    uid: int
    gid: int
    umask: int
    additionalGids: Sequence[int]


class Capabilities(TypedDict, total=False):
    """``process.capabilities``."""

    bounding: Sequence[str]
    effective: Sequence[str]
    inheritable: Sequence[str]
    permitted: Sequence[str]
    ambient: Sequence[str]


class Rlimit(TypedDict):
    """One of ``process.rlimits``."""

    type: str
    hard: int
    soft: int


class Box(TypedDict):
    """``process.consoleSize``."""

    height: int
    width: int


class Process(TypedDict, total=False):
    """``process``; also what an exec is described by."""

    terminal: bool
    consoleSize: Box
    user: User
    args: Sequence[str]
    env: list[str]
    cwd: str
    capabilities: Capabilities
    rlimits: list[Rlimit]
    noNewPrivileges: bool
    apparmorProfile: str
    oomScoreAdj: int
    selinuxLabel: str


class Root(TypedDict, total=False):
    """``root``."""

    path: str
    readonly: bool


class Mount(TypedDict, total=False):
    """One of ``mounts``."""

    destination: str
    type: str
    source: str
    options: Sequence[str]


class DeviceRule(TypedDict, total=False):
    """One of ``linux.resources.devices``: a rule of the device cgroup."""

    allow: bool
    type: str
    major: int
    minor: int
    access: str


class Device(TypedDict, total=False):
    """One of ``linux.devices``: a node to make."""

    path: str
    type: str
    major: int
    minor: int
    fileMode: int
    uid: int
    gid: int


class Memory(TypedDict, total=False):
    """``linux.resources.memory``."""

    limit: int
    reservation: int
    swap: int


class Cpu(TypedDict, total=False):
    """``linux.resources.cpu``."""

    shares: int
    quota: int
    period: int
    cpus: str
    mems: str


class Pids(TypedDict):
    """``linux.resources.pids``."""

    limit: int


class Resources(TypedDict, total=False):
    """``linux.resources``."""

    devices: list[DeviceRule]
    memory: Memory
    cpu: Cpu
    pids: Pids
    unified: Mapping[str, str]


class Namespace(TypedDict, total=False):
    """One of ``linux.namespaces``."""

    type: str
    path: str


class IdMapping(TypedDict):
    """One of ``linux.uidMappings`` or ``linux.gidMappings``."""

    containerID: int
    hostID: int
    size: int


class SeccompArg(TypedDict, total=False):
    """A condition on an argument of a system call."""

    index: int
    value: int
    valueTwo: int
    op: str


class SeccompRule(TypedDict, total=False):
    """One of ``linux.seccomp.syscalls``."""

    names: Sequence[str]
    action: str
    errnoRet: int
    args: Sequence[SeccompArg]


class Seccomp(TypedDict, total=False):
    """``linux.seccomp``."""

    defaultAction: str
    defaultErrnoRet: int
    architectures: Sequence[str]
    flags: Sequence[str]
    listenerPath: str
    listenerMetadata: str
    syscalls: Sequence[SeccompRule]


class Rdt(TypedDict, total=False):
    """``linux.intelRdt``."""

    closID: str


class Linux(TypedDict, total=False):
    """``linux``."""

    uidMappings: list[IdMapping]
    gidMappings: list[IdMapping]
    sysctl: dict[str, str]
    resources: Resources
    cgroupsPath: str
    namespaces: list[Namespace]
    devices: list[Device]
    seccomp: Seccomp
    rootfsPropagation: str
    intelRdt: Rdt
    maskedPaths: Sequence[str]
    readonlyPaths: Sequence[str]


class Spec(TypedDict, total=False):
    """``config.json``."""

    ociVersion: str
    process: Process
    root: Root
    hostname: str
    mounts: list[Mount]
    annotations: dict[str, str]
    linux: Linux
