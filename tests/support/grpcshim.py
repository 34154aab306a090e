"""A shim that speaks gRPC: its calls are done by our own shim, which it starts and asks by ttrpc.

``start`` and ``delete`` are the shim protocol's; ``serve`` is what ``start`` leaves running. Which
JSON it prints and which version of the Task service it serves, GRPC_SHIM_VERSION says.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio

from kontti.errors import Error
from kontti.runtime.ttrpc import TtrpcClient
from kontti.wire.protobuf import Message

STATUS = {status.value[0]: status for status in grpc.StatusCode}
METHODS = (
    "State", "Create", "Start", "Delete", "Pids", "Pause", "Resume", "Checkpoint", "Kill", "Exec",
    "ResizePty", "CloseIO", "Update", "Wait", "Stats", "Connect", "Shutdown",
)  # fmt: skip
SECONDS = 20.0
ROOT = Path(__file__).parent.parent.parent
SHIM = Path(sys.executable).parent / "containerd-shim-kontti-v1"
NOTES = "grpc-shim.calls"


class Raw(Message):
    """A message that is passed on as it is."""

    NAME = "raw"
    FIELDS = ()
    __slots__ = ("data",)

    def __init__(self, data: bytes = b"") -> None:
        self.data = data

    def encode(self) -> bytes:
        """Its bytes."""
        return self.data

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> Self:
        """Of these bytes."""
        return cls(bytes(data))


def install(folder: Path, version: int = 3) -> Path:
    """The binary, as a runtime's path; what it is asked is noted beside it."""
    binary = folder / f"containerd-shim-grpc-v{version}"
    binary.write_text(
        f"#!/bin/sh\nexport PYTHONPATH={shlex.quote(str(ROOT))} GRPC_SHIM_VERSION={version}"
        f" GRPC_SHIM_NOTES={shlex.quote(str(folder / NOTES))}\n"
        f'exec {shlex.quote(sys.executable)} -m tests.support.grpcshim "$@"\n'
    )
    binary.chmod(0o755)
    return binary


def start(argv: list[str]) -> None:
    """Have our shim started, leave a server before it, say where it is."""
    done = subprocess.run([SHIM, *argv], capture_output=True, check=True, stdin=sys.stdin)
    inner = json.loads(done.stdout)["address"]
    path = f"{inner.removeprefix('unix://')}.grpc"
    with open("log.grpc", "wb") as log:
        serving = [sys.executable, "-m", "tests.support.grpcshim", "serve", inner, path]
        null = subprocess.DEVNULL
        subprocess.Popen(serving, stdin=null, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + SECONDS
    while not accepts(path):
        assert time.monotonic() < deadline, Path("log.grpc").read_text()
        time.sleep(0.01)
    version = int(os.environ["GRPC_SHIM_VERSION"])
    answer = {"version": version, "address": f"unix://{path}", "protocol": "grpc"}
    sys.stdout.write(json.dumps(answer))


def accepts(path: str) -> bool:
    """Whether somebody listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(path)
        except OSError:
            return False
        return True


def note(method: str) -> None:
    """Write down what was asked."""
    with open(os.environ["GRPC_SHIM_NOTES"], "a") as notes:
        notes.write(f"{method}\n")


async def serve(inner: str, path: str) -> None:
    """Pass every call on until one says to shut down."""
    client = await TtrpcClient.connect(inner, os.environ.get("NAMESPACE", ""), SECONDS)
    over = asyncio.Event()
    client.on_lost = over.set

    def handler(method: str) -> Any:
        async def do(request: bytes, context: Any) -> bytes:
            note(method)
            try:
                call = f"containerd.task.v3.Task/{method}"
                return (await client.call(call, Raw(request), Raw, None)).data
            except Error as error:
                await context.abort(STATUS[error.code], error.message)
                raise
            finally:
                if method == "Shutdown":
                    asyncio.get_running_loop().call_later(0.1, over.set)

        return grpc.unary_unary_rpc_method_handler(do)

    service = f"containerd.task.v{os.environ['GRPC_SHIM_VERSION']}.Task"
    handlers = {method: handler(method) for method in METHODS}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    await over.wait()
    await server.stop(0)


def main() -> None:
    """Do what the command line asks."""
    argv = sys.argv[1:]
    if argv[0] == "serve":
        asyncio.run(serve(argv[1], argv[2]))
    elif argv[-1] == "start":
        start(argv)
    else:
        sys.exit(subprocess.run([SHIM, *argv], check=False).returncode)


if __name__ == "__main__":
    main()
