"""One thread, one selector: callbacks for descriptors, timers, and children that ended."""

from __future__ import annotations

import os
import selectors
import signal
import time
from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Loop:
    """Runs until ``stop``. ``on_exit`` is called with (pid, wait status) of each reaped child."""

    def __init__(self, on_exit: Callable[[int, int], None]) -> None:
        self._selector = selectors.DefaultSelector()
        self._on_exit = on_exit
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self._running = True
        self._wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # SIGCHLD must have a handler of its own, or the wake-up pipe hears nothing of it
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self.watch(self._wake_read, READ, self._drain_wake)

    def watch(self, fd: int, events: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` when ``fd`` is ready, instead of what was called before."""
        try:
            self._selector.register(fd, events, callback)
        except KeyError:
            self._selector.modify(fd, events, callback)

    def forget(self, fd: int) -> None:
        """Watch ``fd`` no more; one that is not watched is no error."""
        try:
            self._selector.unregister(fd)
        except (KeyError, ValueError):
            return

    def later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call ``callback`` once, after ``seconds``."""
        self._timers.append((time.monotonic() + seconds, callback))
        self._timers.sort(key=lambda timer: timer[0])

    def run(self) -> None:
        """Serve until stopped."""
        self.reap()
        while self._running:
            timeout = None
            if self._timers:
                timeout = max(0.0, self._timers[0][0] - time.monotonic())
            for key, _ in self._selector.select(timeout):
                # an earlier callback of this round may have closed it
                if key.fd in self._selector.get_map() and not attempt(key.data):
                    self.forget(key.fd)
            while self._timers and self._timers[0][0] <= time.monotonic():
                attempt(self._timers.pop(0)[1])

    def stop(self) -> None:
        """Leave ``run`` after this round."""
        self._running = False

    def _drain_wake(self) -> None:
        try:
            os.read(self._wake_read, 4096)
        except BlockingIOError:
            pass
        self.reap()

    def reap(self) -> None:
        """Collect every child that has ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            attempt(partial(self._on_exit, pid, status))


def attempt(callback: Callable[[], None]) -> bool:
    """Call; whether it went well. One that fails must not end the keeper of containers."""
    try:
        callback()
    except Exception as error:  # noqa: BLE001 the containers go on, and so do those who wait
        complain(f"{type(error).__name__}: {error}")
        return False
    return True


def complain(message: str) -> None:
    """Write a line to the log that stderr is; a reader that is gone is no concern of ours."""
    try:
        os.write(2, f"kontti-shim: {message}\n".encode())
    except OSError:
        return
