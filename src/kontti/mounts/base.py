"""What a mount manager is: mounts that the kernel cannot make by themselves, made and remembered.

A list of mounts may name types that a handler makes (``loop``, ``erofs``), and types that are
first filled in by what was mounted before them (``format/``), or have directories (``mkdir/``) or
an image (``mkfs/``) made for them. Activation mounts what has to be, and gives the rest back for
the system to mount as ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kontti.namespaces import Scope
from kontti.values import EMPTY, Mount


@dataclass(frozen=True, slots=True)
class ActiveMount:
    """A mount that the manager made; ``mounted_at`` in ns since the epoch."""

    mount: Mount
    mount_point: str
    mounted_at: int
    data: Mapping[str, str] = field(default_factory=lambda: EMPTY)


@dataclass(frozen=True, slots=True)
class Activation:
    """What was mounted for a name, and what is left for the system to mount: a bind at least."""

    name: str
    active: tuple[ActiveMount, ...] = ()
    system: tuple[Mount, ...] = ()
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)


@dataclass(frozen=True, slots=True)
class ActivateOptions:
    """``temporary``: mount all, and give one bind back. Whoever asks makes ``allowed`` types
    himself; ``format/*`` allows whatever follows."""

    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    temporary: bool = False
    allowed: tuple[str, ...] = ()


class Handler(Protocol):
    """Makes mounts of one type. Methods raise OSError, Error."""

    def mount(self, mount: Mount, target: str) -> Mount:
        """Make it at ``target``, which is not there yet; the mount as it was made."""
        ...

    def unmount(self, target: str) -> None:
        """Undo it; one that is not there is no error."""
        ...


class Transformer(Protocol):
    """Prepares a mount, given those made before it. Raises OSError, Error."""

    def __call__(self, mount: Mount, active: Sequence[ActiveMount], /) -> Mount: ...


class Mounts(Protocol):
    """Activations by name, in the scope's namespace."""

    def activate(
        self,
        scope: Scope,
        name: str,
        mounts: Sequence[Mount],
        options: ActivateOptions | None = None,
    ) -> Activation:
        """Raises Unimplemented where the system can make all of ``mounts``, AlreadyExists."""
        ...

    def deactivate(self, scope: Scope, name: str) -> None:
        """Unmount; raises NotFound, FailedPrecondition where it is in use."""
        ...

    def info(self, scope: Scope, name: str) -> Activation:
        """Raises NotFound."""
        ...

    def update(self, scope: Scope, activation: Activation, paths: Sequence[str] = ()) -> Activation:
        """Change labels; raises NotFound, InvalidArgument for anything else."""
        ...

    def list(self, scope: Scope, filters: Sequence[str] = ()) -> Sequence[Activation]:
        """Those that match by ``name`` and ``labels``, by name."""
        ...
