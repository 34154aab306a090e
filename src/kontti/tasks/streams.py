"""Where streams go, said so that the shim of the task understands it.

Clients say ``kontti-log:///folder`` whatever the runtime is. Our shim records it itself; any
other starts our logger, which does the same. What the URI leaves open is the daemon's default.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace

from kontti.errors import FailedPrecondition
from kontti.tasks.base import Stdio
from kontti.wire import log_uri
from kontti.wire.log_uri import Limits


def for_task(stdio: Stdio, options: Mapping[str, str], *, own: bool) -> Stdio:
    """``stdio`` for our own shim or another; raises InvalidArgument, FailedPrecondition."""
    if not log_uri.is_log(stdio.stdout) and not log_uri.is_log(stdio.stderr):
        return stdio
    limits = Limits().changed(options)
    say: Callable[[str], str]
    if own:

        def say(uri: str) -> str:
            return log_uri.for_shim(uri, limits)

    else:
        program = logger()

        def say(uri: str) -> str:
            return log_uri.for_logger(uri, limits, program)

    out, err = (say(u) if log_uri.is_log(u) else u for u in (stdio.stdout, stdio.stderr))
    return replace(stdio, stdout=out, stderr=err)


def logger() -> str:
    """The logger's program: beside us, or on PATH. Raises FailedPrecondition."""
    beside = [os.path.dirname(os.path.abspath(p)) for p in (sys.executable, sys.argv[0])]
    folders = [*beside, os.environ.get("PATH", os.defpath)]
    found = shutil.which(log_uri.LOGGER, path=os.pathsep.join(folders))
    if found is None:
        raise FailedPrecondition(
            f"{log_uri.LOGGER} is not installed: without it the output of a task whose shim is "
            "not kontti's own cannot be kept"
        )
    return found
