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


@dataclass(frozen=True, slots=True)
class Options:
    """How a container is made.

    ``mounts`` are ``source:target`` or ``source:target:ro``; ``user`` a name or number of the
    image's own, with ``:group``; ``memory`` bytes and ``cpus`` a share of processors, 0 for no
    limit. Seccomp's default profile is in force unless ``privileged``. ``log_driver`` is ``cri``
    or ``none``; ``log_options`` are max-size (``10m``), max-file and compress.
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
    runtime: str = "io.containerd.kontti.v1"
    log_driver: str = "cri"
    log_options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ExecOptions:
    """How a command is run in a container: what is empty is as the container's own."""

    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = ""
    user: str = ""
    terminal: bool = False
