"""Between a shim's messages and the values of tasks.base."""

from __future__ import annotations

import json

from kontti.errors import InvalidArgument
from kontti.metadata.base import Container
from kontti.runtime.bundle import Bootstrap, Bundle
from kontti.runtime.manager import Start
from kontti.tasks.base import CreateOptions, ExecOptions, Exit, Process, ProcessInfo, Status, Stdio
from kontti.values import AnyValue
from kontti.wire.messages.google import Any, Timestamp
from kontti.wire.messages.runtime.task.v2 import shim as api
from kontti.wire.messages.types.mount import Mount
from kontti.wire.messages.types.runc.options.oci import CheckpointOptions, Options
from kontti.wire.typeurl import name_of

GROUP_ANNOTATIONS = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id")


def start(container: Container, options: CreateOptions) -> Start:
    """What the container's shim is started with."""
    spec = container.spec.value if container.spec else b""
    packed = options.options or container.runtime_options
    return Start(
        spec=spec,
        runtime=container.runtime,
        path=options.runtime_path,
        options=to_any(packed).encode() if packed else b"",
        group=group(spec) or container.sandbox,
        sandbox=container.sandbox,
        api=task_api(options),
    )


def task_api(options: CreateOptions) -> Bootstrap | None:
    """Where the task's API is to be had, if the caller says; raises InvalidArgument.

    ``protocol+unix:///path``, or the address alone for ttrpc.
    """
    if not options.task_api_address:
        return None
    protocol, plus, address = options.task_api_address.partition("+")
    if not plus:
        protocol, address = "ttrpc", options.task_api_address
    if protocol not in ("ttrpc", "grpc") or not address.startswith("unix:///"):
        raise InvalidArgument(f"task API address {options.task_api_address!r:.80}")
    if options.task_api_version not in (0, 2, 3):
        raise InvalidArgument(f"task API version {options.task_api_version}")
    return Bootstrap(address, options.task_api_version or 2, protocol)


def group(spec: bytes) -> str:
    """The group whose shim the task shares, by the spec's annotations; "" for none."""
    # most specs have none of them, and parsing one costs more than the rest of this
    if not any(name.encode() in spec for name in GROUP_ANNOTATIONS):
        return ""
    try:
        annotations = json.loads(spec).get("annotations") or {}
        return next((str(annotations[n]) for n in GROUP_ANNOTATIONS if n in annotations), "")
    except (ValueError, AttributeError, TypeError):
        return ""


def create_request(
    bundle: Bundle, container: Container, options: CreateOptions, image: str
) -> api.CreateTaskRequest:
    """Task.Create of the shim protocol; ``image`` is a checkpoint's directory, "" for none."""
    stdio = options.stdio
    packed = options.options or container.runtime_options
    return api.CreateTaskRequest(
        id=bundle.id,
        bundle=bundle.path,
        rootfs=[
            Mount(type=m.type, source=m.source, target=m.target, options=m.options)
            for m in options.rootfs
        ],
        terminal=stdio.terminal,
        stdin=stdio.stdin,
        stdout=stdio.stdout,
        stderr=stdio.stderr,
        checkpoint=image,
        options=to_any(packed) if packed else None,
    )


def criu_image(options: AnyValue | None) -> str:
    """The directory of a checkpoint that a task's own options name, "" for none."""
    if options is None or name_of(options.type_url) != Options.NAME:
        return ""
    return Options.decode(options.value).criu_image_path


def checkpoint_path(options: AnyValue | None) -> str:
    """Where a checkpoint is to be left, "" for nowhere; raises InvalidArgument."""
    if options is None:
        return ""
    if name_of(options.type_url) != CheckpointOptions.NAME:
        raise InvalidArgument(f"invalid task checkpoint option {options.type_url:.200}")
    return CheckpointOptions.decode(options.value).image_path


def exec_request(id: str, options: ExecOptions) -> api.ExecProcessRequest:
    """Task.Exec of the shim protocol."""
    stdio = options.stdio
    return api.ExecProcessRequest(
        id=id,
        exec_id=options.exec_id,
        terminal=stdio.terminal,
        stdin=stdio.stdin,
        stdout=stdio.stdout,
        stderr=stdio.stderr,
        spec=to_any(options.spec),
    )


def to_any(value: AnyValue) -> Any:
    """google.protobuf.Any of the small codec."""
    return Any(type_url=value.type_url, value=value.value)


def from_any(value: Any | None) -> AnyValue | None:
    """Back from it."""
    return AnyValue(value.type_url, value.value) if value is not None else None


def to_ns(stamp: Timestamp | None) -> int:
    """ns since the epoch, 0 for none."""
    return stamp.seconds * 10**9 + stamp.nanos if stamp else 0


def timestamp(ns: int) -> Timestamp:
    """google.protobuf.Timestamp."""
    return Timestamp(seconds=ns // 10**9, nanos=ns % 10**9)


def exit_of(id: str, ended: api.DeleteResponse) -> Exit:
    """How a deleted process ended."""
    return Exit(id, ended.pid, ended.exit_status, to_ns(ended.exited_at))


def process(id: str, state: api.StateResponse) -> Process:
    """What a shim says of a process."""
    known = state.status in Status.__members__.values()
    return Process(
        container_id=id,
        exec_id=state.exec_id,
        pid=state.pid,
        status=Status(state.status) if known else Status.UNKNOWN,
        stdio=Stdio(state.stdin, state.stdout, state.stderr, state.terminal),
        exit_status=state.exit_status,
        exited_at=to_ns(state.exited_at),
    )


def process_infos(found: api.PidsResponse) -> list[ProcessInfo]:
    """The processes in a container."""
    return [ProcessInfo(p.pid, from_any(p.info)) for p in found.processes]
