"""A container's record and its task, as most commands need them first."""

from __future__ import annotations

from kontti.cmd.ctr.session import CONTAINERS, TASKS
from kontti.errors import NotFound
from kontti.wire.messages.services.containers.v1.containers import (
    Container,
    GetContainerRequest,
    GetContainerResponse,
)
from kontti.wire.messages.services.tasks.v1.tasks import GetRequest, GetResponse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kontti.client.client import Client
    from kontti.wire.messages.types.task.task import Process

STATUSES = ("UNKNOWN", "CREATED", "RUNNING", "STOPPED", "PAUSED", "PAUSING")
STOPPED = 3
LOG_LABEL = "kontti.io/log-uri"
STOP_SIGNAL_LABEL = "io.containerd.image.config.stop-signal"


def container(client: Client, id: str) -> Container:
    """The container's record; raises NotFound."""
    request = GetContainerRequest(id=id)
    answer = client.unary(CONTAINERS + "Get", request, GetContainerResponse)
    return answer.container or Container()


def task(client: Client, id: str, exec_id: str = "") -> Process:
    """The task's state; raises NotFound for the container or the task."""
    from kontti.wire.messages.types.task.task import Process

    container(client, id)
    request = GetRequest(container_id=id, exec_id=exec_id)
    try:
        answer = client.unary(TASKS + "Get", request, GetResponse)
    except NotFound as problem:
        raise NotFound(f"no running task found: {problem.message}") from None
    return answer.process or Process()
