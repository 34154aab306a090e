"""What ``ctr shim exec`` makes of its flags: the process, and the FIFOs of its streams."""

from __future__ import annotations

import json
import os
import stat

from kontti.cmd.ctr.grammar import UsageError
from kontti.cmd.ctr.stdio import Fifos
from kontti.errors import InvalidArgument
from kontti.oci.flags import merge_env

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kontti.cmd.ctr.grammar import Call


def read_spec(command: Call) -> bytes:
    """The OCI process in the file that --spec names, with what the flags change.

    Raises OSError, InvalidArgument.
    """
    path = command.str("spec")
    if not path:
        raise UsageError("a file with the process must be provided (--spec)")
    with open(path, "rb") as file:
        try:
            process = json.load(file)
        except (ValueError, RecursionError) as problem:
            raise InvalidArgument(f"failed to parse process spec: {problem}") from None
    if not isinstance(process, dict):
        raise InvalidArgument("failed to parse process spec: it is no object")
    process["terminal"] = command.bool("tty")
    if command.str("cwd"):
        process["cwd"] = command.str("cwd")
    if command.list("env"):
        process["env"] = merge_env(_texts(process.get("env")), command.list("env"))
    return json.dumps(process).encode()


def _texts(value: object) -> list[str]:
    if not isinstance(value, list):
        return []
    return [text for text in value if isinstance(text, str)]


def streams(command: Call) -> Fifos:
    """The FIFOs that the flags name, made where they are not there. Raises OSError, Error."""
    tty = command.bool("tty")
    # a terminal's errors are in its output
    names = ("stdin", "stdout") if tty else ("stdin", "stdout", "stderr")
    paths = {name: command.str(name) for name in names}
    for path in filter(None, paths.values()):
        ensure_fifo(path)
    return Fifos(paths["stdin"], paths["stdout"], paths.get("stderr", ""), tty=tty)


def ensure_fifo(path: str) -> None:
    """Make a FIFO at ``path``, if nothing is there; raises InvalidArgument for another thing."""
    try:
        os.mkfifo(path, 0o700)
    except FileExistsError:
        if not stat.S_ISFIFO(os.stat(path).st_mode):
            raise InvalidArgument(f"{path} is no FIFO") from None
