"""``ctr pprof``: what a daemon's debug socket tells."""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlencode

from kontti.cmd.ctr.grammar import DURATION, INT, Call, Command, Flag
from kontti.errors import Error, Unavailable

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 60.0


class _OverUnix(HTTPConnection):
    def __init__(self, path: str, seconds: float) -> None:
        super().__init__("localhost", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(CONNECT_SECONDS)
        self.sock.connect(self._path)
        self.sock.settimeout(self.timeout)


def fetch(call: Call, name: str, **query: object) -> None:
    """Copy a profile to stdout."""
    path = (call.globals or call).str("debug-socket")
    seconds = float(str(query.get("seconds", 0)))
    connection = _OverUnix(path, ANSWER_SECONDS + seconds)
    try:
        connection.request("GET", f"/debug/pprof/{name}?{urlencode(query)}")
        answer = connection.getresponse()
        if answer.status != 200:
            said = answer.read(1024).decode(errors="replace").strip()
            status = f"{answer.status} {answer.reason}"
            raise Error(f"http get failed with status: {status}" + (f": {said}" if said else ""))
        shutil.copyfileobj(answer, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    except (OSError, HTTPException) as error:
        raise Unavailable(f"{path}: {error}") from error
    finally:
        connection.close()


def of(name: str) -> Callable[[Call], None]:
    """The function that fetches profile ``name``."""
    return lambda call: fetch(call, name, debug=call.int("debug"))


def timed(name: str) -> Callable[[Call], None]:
    """The function that fetches profile ``name`` of some time."""

    def run(call: Call) -> None:
        fetch(call, name, seconds=f"{call.float('seconds'):g}", debug=call.int("debug"))

    return run


def _command(
    name: str, run: Callable[[Call], None], help: str, *flags: Flag, debug: int = 0
) -> Command:
    return Command(
        name, run, help, flags=[*flags, Flag("debug", INT, "1 and more for text", default=debug)]
    )


def _seconds(default: float) -> Flag:
    return Flag("seconds,s", DURATION, "duration for collection", default=default)


FLAGS = (
    Flag(
        "debug-socket,d",
        help="socket path for containerd's debug server",
        default="/run/containerd/debug.sock",
    ),
)
COMMANDS = (
    _command("block", of("block"), "goroutine blocking profile"),
    _command("goroutines", of("goroutine"), "stacks of goroutines, or of threads", debug=2),
    _command("heap", of("heap"), "heap profile"),
    _command("profile", timed("profile"), "CPU profile", _seconds(30.0)),
    _command("threadcreate", of("threadcreate"), "thread creating profile"),
    _command("trace", timed("trace"), "execution trace", _seconds(5.0)),
)
