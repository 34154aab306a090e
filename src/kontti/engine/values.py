"""What the Python API gives and takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

Sink = Callable[[bytes], object]
"""Takes output as it comes."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a process ended. ``stdout`` and ``stderr`` are empty where sinks were given."""

    id: str
    exit_code: int
    stdout: bytes = b""
    stderr: bytes = b""


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """A stored image. ``size`` in bytes, compressed, for this host's platform."""

    name: str
    digest: str
    size: int
    platforms: tuple[str, ...]
    created_at: int


@dataclass(frozen=True, slots=True)
class ContainerInfo:
    """A container. ``status`` is ``created``, ``running``, ``paused``, ``stopped`` or, with no
    task, ``none``; ``created_at`` in ns since the epoch."""

    id: str
    image: str
    status: str
    pid: int
    exit_code: int
    created_at: int
    command: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a container has used by the time ``sampled_at``, in ns since the epoch.

    ``memory_bytes`` are without the page cache that can be dropped; a limit of 0 is none.
    """

    id: str
    sampled_at: int
    cpu_ns: int
    memory_bytes: int
    memory_limit_bytes: int
    pids: int
    pids_limit: int
    block_read_bytes: int
    block_write_bytes: int


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    """A process of a container: ``pid`` is the host's, ``user`` the container's name for it.

    ``cpu_percent`` is of one processor, over the process's life.
    """

    pid: int
    ppid: int
    user: str
    state: str
    cpu_percent: float
    cpu_seconds: float
    memory_bytes: int
    command: str


@dataclass(frozen=True, slots=True)
class Options:
    """How a container is made.

    ``mounts`` are ``source:target`` or ``source:target:ro``; ``user`` a name or number of the
    image's own, with ``:group``; ``memory`` bytes and ``cpus`` a share of processors, 0 for no
    limit. Seccomp's default profile is in force unless ``privileged``. ``restart`` is ``always``,
    ``unless-stopped`` or ``on-failure[:most]``, for a daemon to see to. ``runtime`` "" is the
    built-in one. ``log_driver`` is ``cri`` or ``none``; ``log_options`` are max-size (``10m``),
    max-file and compress.
    """

    name: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = ""
    user: str = ""
    mounts: Sequence[str] = ()
    hostname: str = ""
    network: str = ""
    read_only: bool = False
    privileged: bool = False
    memory: int = 0
    cpus: float = 0
    terminal: bool = False
    snapshotter: str = "overlayfs"
    runtime: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    restart: str = ""
    log_driver: str = "cri"
    log_options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ExecOptions:
    """How a command is run in a container: what is empty is as the container's own."""

    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = ""
    user: str = ""
    terminal: bool = False
