"""kontti-logger: the log driver for shims that know loggers only (``binary://``).

containerd's contract: stdout and stderr are descriptors 3 and 4, 5 is closed when all is ready,
and the query of the URI is the command line, in any order: ``folder PATH max-size N …``.
"""

from __future__ import annotations

import os
import signal
import sys

from kontti.errors import Error, InvalidArgument
from kontti.linux import libc
from kontti.shim.log_writer import LogWriter
from kontti.shim.loop import Loop
from kontti.shim.pumps import LogPump
from kontti.wire.log_record import STDERR, STDOUT
from kontti.wire.log_uri import Limits, checked_folder

OUT, ERR, READY = 3, 4, 5
LOCK_SECONDS = 8.0
"""For the logger of an earlier task to end: no shim tells anybody that a logger gave up."""
TERM_SECONDS = 5.0
"""How long what still holds the streams is listened to, once the shim wants us to end."""


def main() -> int:
    """Record both streams until they end; the exit code."""
    try:
        folder, limits = read_arguments(sys.argv[1:])
        writer = LogWriter(folder, limits, LOCK_SECONDS)
    except (Error, OSError) as error:
        message = error.message if isinstance(error, Error) else str(error)
        sys.stderr.write(f"kontti-logger: {message}\n")
        return 1
    libc.prctl_set_name("kontti-logger")
    record(writer)
    writer.close()
    return 0


def read_arguments(words: list[str]) -> tuple[str, Limits]:
    """The folder and the limits; raises InvalidArgument."""
    if len(words) % 2:
        raise InvalidArgument("arguments are pairs of a name and a value")
    options = dict(zip(words[::2], words[1::2], strict=True))
    return checked_folder(options.pop("folder", "")), Limits().changed(options)


def record(writer: LogWriter) -> None:
    """Copy until both streams have ended, or for some seconds after SIGTERM."""
    for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    loop = Loop(lambda _pid, _status: None)
    # the loop wakes up for it as for any signal
    signal.signal(signal.SIGTERM, lambda _number, _frame: loop.later(TERM_SECONDS, loop.stop))
    open_streams = [OUT, ERR]

    def ended() -> None:
        open_streams.pop()
        if not open_streams:
            loop.stop()

    pumps = [LogPump(loop, OUT, STDOUT, writer, ended), LogPump(loop, ERR, STDERR, writer, ended)]
    os.close(READY)
    loop.run()
    for pump in pumps:
        pump.close()


if __name__ == "__main__":
    sys.exit(main())
