"""A shim's loop that is turned by hand: no clock, no signals."""

from __future__ import annotations

from collections.abc import Callable


class Hand:
    """A loop that is turned by hand."""

    def __init__(self) -> None:
        self.watched: dict[int, Callable[[], None]] = {}
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def watch(self, fd: int, _events: int, callback: Callable[[], None]) -> None:
        self.watched[fd] = callback

    def forget(self, fd: int) -> None:
        self.watched.pop(fd, None)

    def later(self, seconds: float, callback: Callable[[], None]) -> None:
        self.timers.append((seconds, callback))

    def turn(self) -> None:
        """Say that everything is ready."""
        for callback in list(self.watched.values()):
            callback()

    def tick(self) -> float:
        """Let the next timer run; how long it would have taken."""
        seconds, callback = self.timers.pop(0)
        callback()
        return seconds
