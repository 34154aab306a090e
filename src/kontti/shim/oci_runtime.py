"""Calls of the OCI runtime's command line (runc, crun), each with a deadline."""

from __future__ import annotations

import json
import os
import signal

from kontti.errors import Error, Unavailable
from kontti.linux import process

DEADLINE = 120.0
SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULTS = ("crun", "runc")
MAX_LOG = 64 << 10


class OciRuntime:
    """``binary`` with its state under ``root``; errors are read from ``log``.

    ``executable`` is what is run where it is not the binary's own path: a sealed copy of it.
    """

    def __init__(self, binary: str, root: str, log: str, *, systemd: bool = False) -> None:
        self.binary = binary
        self.name = os.path.basename(binary)
        self._log = log
        self._root = root
        self._head = [binary, "--root", root, "--log", log, "--log-format", "json"]
        if systemd:
            self._head.append("--systemd-cgroup")
        self.executable = binary

    def run(
        self,
        *args: str,
        stdio: tuple[int | None, int | None, int | None] = (None, None, None),
    ) -> None:
        """Run one command to its end; raises Error with what the runtime logged."""
        self.finish(self.begin(*args, stdio=stdio), args[0])

    def begin(
        self,
        *args: str,
        stdio: tuple[int | None, int | None, int | None] = (None, None, None),
    ) -> int:
        """Start one command; gives its pid, for ``finish``. Raises Error."""
        stdin, stdout, stderr = stdio
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            return process.spawn(
                [self.executable, *self._head[1:], *args],
                env={"PATH": os.environ.get("PATH", SEARCH), "XDG_RUNTIME_DIR": "/run"},
                stdin=null if stdin is None else stdin,
                stdout=null if stdout is None else stdout,
                stderr=null if stderr is None else stderr,
            )
        except OSError as error:
            raise Error(f"unable to run {self.binary}: {error.strerror}") from None
        finally:
            os.close(null)

    def finish(self, pid: int, command: str) -> None:
        """Wait for a command to end; raises Error with what the runtime logged."""
        try:
            code = process.wait(pid, DEADLINE)
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            process.wait(pid, None)
            raise Unavailable(f"{self.name} {command} did not end in {DEADLINE:.0f} s") from None
        self.check(command, code)

    def check(self, command: str, code: int) -> None:
        """Raises Error for an exit code that is not 0."""
        if code:
            raise Error(f"{self.name} {command} failed: {self._complaint(code)}")

    def _complaint(self, code: int) -> str:
        """The last error in the log, or the exit code."""
        try:
            with open(self._log, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - MAX_LOG))
                lines = file.read().splitlines()
        except OSError:
            lines = []
        for line in reversed(lines):
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and entry.get("level") in ("error", "fatal"):
                return str(entry.get("msg", "")).strip()
        return f"exit code {code}"

    def knows(self, id: str) -> bool:
        """Whether it has a container ``id``."""
        return os.path.exists(os.path.join(self._root, id))

    def forget_log(self) -> None:
        """Start a new log, so that an old error is not taken for a new one's."""
        try:
            os.truncate(self._log, 0)
        except OSError:
            return


def find(name: str) -> str:
    """The path of a runtime: ``name`` on PATH and the usual places, "" for the default one.

    Raises Error where it is not installed.
    """
    if "/" in name:
        if os.access(name, os.X_OK) and os.path.isfile(name):
            return name
        raise Error(f"fork/exec {name}: no such file or directory")
    folders = [*os.environ.get("PATH", "").split(":"), *SEARCH.split(":")]
    for candidate in [name] if name else DEFAULTS:
        for folder in folders:
            path = os.path.join(folder, candidate)
            if folder and os.access(path, os.X_OK) and os.path.isfile(path):
                return path
    wanted = name or " or ".join(DEFAULTS)
    raise Error(f'exec: "{wanted}": executable file not found in $PATH')
