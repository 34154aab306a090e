"""Containers found by prefix and filter, and what they use as figures."""

from __future__ import annotations

import pytest

from kontti.client.tasks import Call, RemoteTasks, drive
from kontti.engine.lookup import resolve, select
from kontti.engine.usage import cpu_percent, usage
from kontti.engine.values import ContainerInfo
from kontti.errors import InvalidArgument, NotFound, Unimplemented
from kontti.metadata.base import Container
from kontti.namespaces import Scope
from kontti.tasks.base import CreateOptions, Metric, Status
from kontti.values import AnyValue
from kontti.wire.messages.cgroups.v1 import metrics as v1
from kontti.wire.messages.cgroups.v2 import metrics as v2
from kontti.wire.messages.services.tasks.v1 import tasks as api
from kontti.wire.messages.types.descriptor import Descriptor as WireDescriptor
from kontti.wire.messages.types.task.task import Process
from kontti.wire.protobuf import Message

SCOPE = Scope("default")


class Named:
    """metadata.base.Containers, as far as it is looked at."""

    def __init__(self, *ids: str) -> None:
        self._ids = ids

    def list(self) -> list[Container]:
        """Out of order."""
        return [Container(id) for id in reversed(self._ids)]


def test_resolve() -> None:
    names = Named("a", "abc", "abd", "x1")
    found = {name: resolve(names, name) for name in ("a", "abc", "abd", "x", "x1")}  # type: ignore[arg-type]
    assert found == {"a": "a", "abc": "abc", "abd": "abd", "x": "x1", "x1": "x1"}
    with pytest.raises(InvalidArgument, match="ab is ambiguous: abc, abd begin so"):
        resolve(names, "ab")  # type: ignore[arg-type]
    many = Named(*(f"n{index}" for index in range(9)))
    with pytest.raises(InvalidArgument, match="n0, n1, n2, n3, n4, … begin so"):
        resolve(many, "n")  # type: ignore[arg-type]
    for name in ("", "y", "abcd"):
        with pytest.raises(NotFound):
            resolve(names, name)  # type: ignore[arg-type]


def test_select() -> None:
    def container(id: str, status: str, **labels: str) -> ContainerInfo:
        return ContainerInfo(id, "", status, 0, 0, 0, "", labels)

    found = [container("a", "running", x="1"), container("b", "stopped"), container("c", "paused")]

    def ids(*filters: str, all: bool = False) -> str:
        return "".join(c.id for c in select(found, filters, all=all))

    assert ids() == "ac"
    assert ids(all=True) == "abc"
    assert ids("status=stopped") == "b"
    assert ids("status=stopped", "status=paused") == "bc"
    assert ids("label=x") == ids("label=x=1") == "a"
    assert ids("label=x=2") == ids("label=x", "label=y") == ""
    with pytest.raises(InvalidArgument):
        ids("id=a")


def test_the_same_figures_of_both_versions() -> None:
    unlimited = (1 << 64) - 1
    first = v1.Metrics(
        pids=v1.PidsStat(current=3),
        cpu=v1.CPUStat(usage=v1.CPUUsage(total=5_000_000_000)),
        memory=v1.MemoryStat(
            usage=v1.MemoryEntry(usage=100, limit=0x7FFFFFFFFFFFF000), total_inactive_file=30
        ),
        blkio=v1.BlkIOStat(
            io_service_bytes_recursive=[
                v1.BlkIOEntry(op="Read", value=1),
                v1.BlkIOEntry(op="read", value=4),
                v1.BlkIOEntry(op="Write", value=2),
                v1.BlkIOEntry(op="Total", value=7),
            ]
        ),
    )
    second = v2.Metrics(
        pids=v2.PidsStat(current=3, limit=unlimited),
        cpu=v2.CPUStat(usage_usec=5_000_000),
        memory=v2.MemoryStat(usage=100, inactive_file=30, usage_limit=unlimited),
        io=v2.IOStat(usage=[v2.IOEntry(rbytes=4), v2.IOEntry(rbytes=1, wbytes=2)]),
    )
    found = [
        usage(Metric("c", 7, AnyValue(prefix + m.NAME, m.encode())))
        for prefix, m in (("", first), ("type.googleapis.com/", second))
    ]
    assert found[0] == found[1]
    assert (found[0].memory_bytes, found[0].memory_limit_bytes, found[0].pids_limit) == (70, 0, 0)
    assert (found[0].block_read_bytes, found[0].block_write_bytes) == (5, 2)
    nothing = [usage(Metric("c", 7, AnyValue(m.NAME, b""))) for m in (first, second)]
    assert nothing[0] == nothing[1]
    assert cpu_percent(nothing[0], found[0]) == 0  # no time has passed
    with pytest.raises(Unimplemented):
        usage(Metric("c", 7, AnyValue("x", b"")))


def test_tasks_are_driven_call_by_call() -> None:
    calls: list[Call[Message]] = []

    def perform(call: Call[Message]) -> Message:
        calls.append(call)
        if call.method.endswith("Kill"):
            raise NotFound("process")
        return api.GetResponse(process=Process(id="c", pid=5, status=77))

    found = drive(RemoteTasks().get(SCOPE, "c", "e"), perform)
    # a state that is not known yet is none
    assert (found.container_id, found.exec_id, found.pid) == ("c", "e", 5)
    assert found.status is Status.UNKNOWN

    async def both() -> int:
        tasks = RemoteTasks()
        try:
            await tasks.kill(SCOPE, "c", 9)
        except NotFound:
            return (await tasks.get(SCOPE, "c")).pid
        return 0

    assert drive(both(), perform) == 5
    assert [call.method.rpartition("/")[2] for call in calls] == ["Get", "Kill", "Get"]


def test_checkpoints_by_descriptor_and_by_directory() -> None:
    blob = WireDescriptor(media_type="m", digest="sha256:" + "a" * 64, size=3)
    calls: list[Message] = []

    def perform(call: Call[Message]) -> Message:
        calls.append(call.request)
        if call.method.endswith("Create"):
            return api.CreateTaskResponse(pid=4)
        return api.CheckpointTaskResponse(descriptors=[blob])

    (made,) = drive(RemoteTasks().checkpoint(SCOPE, "c"), perform)
    assert (made.digest, made.size) == (blob.digest, 3)
    for options in (CreateOptions(checkpoint=made), CreateOptions(restore_path="/d")):
        assert drive(RemoteTasks().create(SCOPE, "c", options), perform) == 4
    asked = [request.checkpoint for request in calls[1:]]  # type: ignore[attr-defined]
    assert asked[0].digest == blob.digest
    assert asked[1].annotations == {"RestoreFromPath": "/d"}
