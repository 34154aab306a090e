"""Between a shim's sandbox messages and the values of sandboxes.base."""

from __future__ import annotations

from kontti.metadata.base import Sandbox
from kontti.runtime.bundle import Bootstrap, Bundle
from kontti.runtime.manager import Start
from kontti.sandboxes.base import CreateOptions, Ended, Started, Status
from kontti.tasks.base import Metric
from kontti.tasks.convert import from_any, timestamp, to_any, to_ns
from kontti.values import Platform
from kontti.wire.messages.runtime.sandbox.v1 import sandbox as api
from kontti.wire.messages.types.mount import Mount

__all__ = [
    "create_request",
    "ended",
    "metric",
    "platform",
    "start",
    "started",
    "status",
    "timestamp",
]


def start(sandbox: Sandbox) -> Start:
    """What a sandbox's shim is started with."""
    options = sandbox.runtime_options
    return Start(
        spec=sandbox.spec.value if sandbox.spec else None,
        runtime=sandbox.runtime,
        options=to_any(options).encode() if options else b"",
    )


def create_request(bundle: Bundle, options: CreateOptions) -> api.CreateSandboxRequest:
    """CreateSandbox of the shim protocol."""
    return api.CreateSandboxRequest(
        sandbox_id=bundle.id,
        bundle_path=bundle.path,
        rootfs=[
            Mount(type=m.type, source=m.source, target=m.target, options=m.options)
            for m in options.rootfs
        ],
        options=to_any(options.options) if options.options else None,
        netns_path=options.netns_path,
        annotations=options.annotations,
    )


def started(id: str, answer: api.StartSandboxResponse, bootstrap: Bootstrap) -> Started:
    """A sandbox that is up."""
    return Started(
        id=id,
        pid=answer.pid,
        created_at=to_ns(answer.created_at),
        address=_address(bootstrap),
        version=bootstrap.version,
        spec=from_any(answer.spec),
    )


def status(answer: api.SandboxStatusResponse, bootstrap: Bootstrap) -> Status:
    """What a sandbox is doing."""
    return Status(
        id=answer.sandbox_id,
        pid=answer.pid,
        state=answer.state,
        info=dict(answer.info),
        created_at=to_ns(answer.created_at),
        exited_at=to_ns(answer.exited_at),
        extra=from_any(answer.extra),
        address=_address(bootstrap),
        version=bootstrap.version,
    )


def _address(bootstrap: Bootstrap) -> str:
    """``ttrpc+unix:///path``, as clients hand it on to tasks."""
    return f"{bootstrap.protocol}+{bootstrap.address}"


def ended(answer: api.WaitSandboxResponse) -> Ended:
    """How it ended."""
    return Ended(answer.exit_status, to_ns(answer.exited_at))


def platform(answer: api.PlatformResponse) -> Platform:
    """What runs in it."""
    found = answer.platform
    if found is None:
        return Platform()
    return Platform(
        found.os, found.architecture, found.variant, found.os_version, tuple(found.os_features)
    )


def metric(answer: api.SandboxMetricsResponse) -> Metric | None:
    """Its figures, None for a shim that has none."""
    found = answer.metrics
    data = from_any(found.data) if found is not None else None
    if found is None or data is None:
        return None
    return Metric(found.id, to_ns(found.timestamp), data)
