"""Signals that this process gets, dealt with outside of their handlers."""

from __future__ import annotations

import os
import signal
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType


class Signals:
    """Has ``deal`` called with each signal, in their order and in a thread of its own."""

    def __init__(self, deal: Callable[[int], None]) -> None:
        self._deal = deal
        self._before: dict[int, object] = {}
        self._read = self._write = -1

    def start(self, numbers: Iterable[int]) -> None:
        """Take over the signals ``numbers``. From the main thread, once."""
        self._read, self._write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._write, False)
        threading.Thread(target=self._run, name="signals", daemon=True).start()
        for number in numbers:
            self._before[number] = signal.signal(number, self.note)

    def note(self, number: int, _frame: FrameType | None = None) -> None:
        """The handler: a call made from here could wait for the very call that it interrupts."""
        try:
            os.write(self._write, bytes((number,)))
        except BlockingIOError:
            return  # thousands of them wait already

    def _run(self) -> None:
        while data := os.read(self._read, 4096):
            for number in data:
                self._deal(number)
        os.close(self._read)

    def stop(self) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # type: ignore[arg-type]
        self._before.clear()
        if self._write >= 0:
            # the thread ends when it has dealt with what was noted
            os.close(self._write)
            self._write = -1
