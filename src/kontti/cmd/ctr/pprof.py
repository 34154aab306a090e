"""``ctr pprof``: what a daemon's debug socket tells."""

from __future__ import annotations

import socket
import sys

from kontti.cmd.ctr.grammar import DURATION, INT, Call, Command, Flag
from kontti.errors import Error, Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 60.0


def fetch(path: str, name: str, seconds: float | None, debug: int) -> None:
    """Copy a profile from the server at ``path`` to stdout; one of now has no ``seconds``."""
    import shutil
    from http.client import HTTPConnection, HTTPException

    query = f"debug={debug}" + ("" if seconds is None else f"&seconds={seconds:g}")
    connection = HTTPConnection("localhost")
    try:
        connection.sock = _dial(path, ANSWER_SECONDS + (seconds or 0))
        connection.request("GET", f"/debug/pprof/{name}?{query}")
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


def _dial(path: str, seconds: float) -> socket.socket:
    """A connection on which each wait may take ``seconds``; raises OSError."""
    peer = socket.socket(socket.AF_UNIX)
    try:
        peer.settimeout(CONNECT_SECONDS)
        peer.connect(path)
        peer.settimeout(seconds)
    except BaseException:
        peer.close()
        raise
    return peer


def commands(socket_of: Callable[[Call], str]) -> tuple[Command, ...]:
    """The profiles of the server whose socket is at ``socket_of`` a command line."""

    def of(
        name: str, profile: str, help: str, *, seconds: float | None = None, debug: int = 0
    ) -> Command:
        def run(call: Call) -> None:
            asked = None if seconds is None else call.float("seconds")
            fetch(socket_of(call), profile, asked, call.int("debug"))

        flags = [Flag("debug", INT, "1 and more for text", default=debug)]
        if seconds is not None:
            flags.insert(0, Flag("seconds,s", DURATION, "duration for collection", default=seconds))
        return Command(name, run, help, flags=flags)

    return (
        of("block", "block", "goroutine blocking profile"),
        of("goroutines", "goroutine", "stacks of goroutines, or of threads", debug=2),
        of("heap", "heap", "heap profile"),
        of("profile", "profile", "CPU profile", seconds=30.0),
        of("threadcreate", "threadcreate", "thread creating profile"),
        of("trace", "trace", "execution trace", seconds=5.0),
    )


FLAGS = (
    Flag(
        "debug-socket,d",
        help="socket path for containerd's debug server",
        default="/run/containerd/debug.sock",
    ),
)
COMMANDS = commands(lambda call: (call.globals or call).str("debug-socket"))
