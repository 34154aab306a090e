"""What a sandbox controller is: the running side of sandboxes. Asynchronous: its waits are long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kontti.metadata.base import Sandbox
from kontti.namespaces import Scope
from kontti.tasks.base import Metric
from kontti.values import EMPTY, AnyValue, Mount, Platform

READY, NOT_READY = "SANDBOX_READY", "SANDBOX_NOTREADY"


@dataclass(frozen=True, slots=True)
class CreateOptions:
    """What ``create`` takes beside the sandbox's own record."""

    rootfs: Sequence[Mount] = ()
    options: AnyValue | None = None
    netns_path: str = ""
    annotations: Mapping[str, str] = field(default_factory=lambda: EMPTY)


@dataclass(frozen=True, slots=True)
class Started:
    """A sandbox that is up; ``address`` and ``version`` are of the Task service in it."""

    id: str
    pid: int
    created_at: int
    address: str = ""
    version: int = 0
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    spec: AnyValue | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """How a sandbox ended. ``exited_at`` in ns since the epoch."""

    status: int
    exited_at: int


@dataclass(frozen=True, slots=True)
class Status:
    """What a sandbox is doing. ``state`` is SANDBOX_READY or SANDBOX_NOTREADY."""

    id: str
    pid: int = 0
    state: str = ""
    info: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    created_at: int = 0
    exited_at: int = 0
    extra: AnyValue | None = None
    address: str = ""
    version: int = 0


class Controller(Protocol):
    """Sandboxes by id; raises NotFound where there is none, unless a method says otherwise."""

    async def create(self, scope: Scope, sandbox: Sandbox, options: CreateOptions) -> None:
        """Have what the sandbox needs, not up yet; raises AlreadyExists."""
        ...

    async def start(self, scope: Scope, id: str) -> Started:
        """Bring a created sandbox up."""
        ...

    async def platform(self, scope: Scope, id: str) -> Platform: ...
    async def stop(self, scope: Scope, id: str, timeout: int = 0) -> None:
        """End all that is in it, in ``timeout`` seconds or by force; none there is no error."""
        ...

    async def wait(self, scope: Scope, id: str) -> Ended:
        """Until it has ended."""
        ...

    async def status(self, scope: Scope, id: str, *, verbose: bool = False) -> Status:
        """What it is doing; one that is not there has ended now."""
        ...

    async def shutdown(self, scope: Scope, id: str) -> None:
        """Take it away with all that is in it."""
        ...

    async def metrics(self, scope: Scope, id: str) -> Metric | None: ...
    async def update(
        self, scope: Scope, id: str, sandbox: Sandbox, fields: Sequence[str] = ()
    ) -> None:
        """Take up changes of the record."""
        ...
