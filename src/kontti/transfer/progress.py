"""How far a transfer is: what ``containerd.types.transfer.Progress`` carries."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kontti.images.media_types import kind_of
from kontti.values import Descriptor

STEP = 1 << 20


@dataclass(frozen=True, slots=True)
class Progress:
    """An event of the whole transfer (no name) or of one object, with the names it belongs to."""

    event: str
    name: str = ""
    parents: tuple[str, ...] = ()
    progress: int = 0
    total: int = 0
    descriptor: Descriptor | None = None


OnProgress = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Tells no one."""


def ref_key(descriptor: Descriptor) -> str:
    """The name of a blob in ingests and progress, as every containerd client makes it."""
    return f"{kind_of(descriptor.media_type) or 'unknown'}-{descriptor.digest}"


class Reporter:
    """Hands progress to one callback, one at a time, from any thread.

    An error that the callback raises ends the transfer: this is how a caller cancels one.
    """

    def __init__(self, callback: OnProgress = silent) -> None:
        self._callback, self._lock = callback, threading.Lock()
        self._parents: dict[str, tuple[str, ...]] = {}
        self._root: tuple[str, ...] = ()

    def tell(self, event: str, name: str = "") -> None:
        """An event without numbers."""
        self.report(Progress(event, name))

    def of_image(self, event: str, name: str, target: Descriptor) -> None:
        """An event of an image: from now on, blobs that belong to nothing else belong to it."""
        self._root = self._root or (name,)
        self.report(Progress(event, name, descriptor=target))

    def children(self, parent: Descriptor, found: Sequence[Descriptor]) -> None:
        """Have blobs that have not been told of say that they belong to ``parent``."""
        with self._lock:
            for child in found:
                self._parents.setdefault(child.digest, (ref_key(parent),))

    def blob(self, event: str, descriptor: Descriptor, done: int = 0) -> None:
        """An event of a blob, ``done`` bytes of which are there."""
        parents = self._parents.get(descriptor.digest, self._root)
        name = ref_key(descriptor)
        self.report(Progress(event, name, parents, done, descriptor.size, descriptor))

    def report(self, progress: Progress) -> None:
        """Call the callback."""
        with self._lock:
            self._callback(progress)


def waiting(
    reporter: Reporter, descriptor: Descriptor, is_stopped: Callable[[], bool]
) -> Callable[[], bool]:
    """``is_stopped`` for who waits on another's work, and tells of it whenever that is asked.

    A transfer that does nothing itself would not hear otherwise that its caller cancelled it.
    """

    def told() -> bool:
        reporter.blob("waiting", descriptor)
        return is_stopped()

    return told


class Meter:
    """Tells of a blob that arrives in small pieces, once in a mebibyte."""

    def __init__(self, reporter: Reporter, event: str, descriptor: Descriptor, done: int) -> None:
        self._reporter, self._event, self._descriptor = reporter, event, descriptor
        self.done, self._told = done, done
        reporter.blob(event, descriptor, done)

    def add(self, count: int) -> None:
        """Count bytes."""
        self.done += count
        if self.done - self._told >= STEP:
            self._told = self.done
            self._reporter.blob(self._event, self._descriptor, self.done)
