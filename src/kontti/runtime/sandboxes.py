"""Which shims are sandboxes: kept without a task, and joined by the sandbox's name."""

from __future__ import annotations

from collections.abc import Callable


class SandboxShims:
    """Addresses of sandboxes' shims. ``recorded`` tells whether there is a record of a sandbox."""

    def __init__(self) -> None:
        self._addresses: dict[tuple[str, str], str] = {}
        self.recorded: Callable[[str, str], bool] = lambda _namespace, _id: False

    def hold(self, namespace: str, id: str, address: str) -> None:
        """A sandbox has the shim at ``address``: it is not ended while it has no task."""
        self._addresses[namespace, id] = address

    def let_go(self, namespace: str, id: str) -> None:
        """It has none any more."""
        self._addresses.pop((namespace, id), None)

    def address(self, namespace: str, id: str) -> str:
        """Where its shim listens, "" for none."""
        return self._addresses.get((namespace, id), "")

    def holds(self, address: str) -> bool:
        """Whether a sandbox has the shim there."""
        return address in self._addresses.values()
