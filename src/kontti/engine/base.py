"""What an engine works on: stores and tasks, in this process or a daemon's."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from kontti.metadata.base import Containers
from kontti.namespaces import Scope
from kontti.tasks.base import Stdio, Tasks
from kontti.transfer.base import Stores

if TYPE_CHECKING:
    # quick commands transfer nothing
    from kontti.transfer.parts import Parts

if TYPE_CHECKING:
    from kontti.engine.stores import Stores as OpenStores

T = TypeVar("T")
CALL_SECONDS = 300.0


class Records(Stores, Protocol):
    """The stores of a transfer, and containers."""

    def containers(self, scope: Scope) -> Containers: ...


class Core(Protocol):
    """Raises Error where it cannot be opened; to be closed."""

    @property
    def stores(self) -> Records: ...
    @property
    def tasks(self) -> Tasks:
        """Its coroutines are for ``wait_for``."""
        ...

    @property
    def runtime(self) -> str:
        """The runtime of a container that names none."""
        ...

    @property
    def shared(self) -> bool:
        """Whether it is a daemon's: others use it meanwhile, and it goes on when this is closed."""
        ...

    @property
    def opened(self) -> OpenStores | None:
        """The stores on disk, where this process has them."""
        ...

    def snapshotters(self) -> Sequence[str]:
        """The names of those that work."""
        ...

    def is_lazy(self, snapshotter: str) -> bool:
        """Whether ``snapshotter`` may get layers from their registry by itself."""
        ...

    def transfer_parts(self) -> Parts:
        """What pull, push, import and export work on."""
        ...

    def wait_for(self, work: Coroutine[Any, Any, T], timeout: float | None = CALL_SECONDS) -> T:
        """Do ``work`` of the tasks; raises DeadlineExceeded after ``timeout`` seconds."""
        ...

    def streams(self, stdio: Stdio) -> Stdio:
        """``stdio`` as whoever has the tasks understands it: a log has a URI of our own."""
        ...

    def collect(self, scope: Scope) -> None:
        """Have what nothing needs removed before this returns."""
        ...

    def close(self) -> None:
        """Let go of everything; containers go on."""
        ...
