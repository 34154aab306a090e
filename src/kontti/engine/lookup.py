"""Finding containers: by what they are called, how they are, and their labels."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from kontti.engine.values import ContainerInfo
from kontti.errors import InvalidArgument, NotFound
from kontti.metadata.base import Container, Containers
from kontti.tasks.base import Process, Status

COMMAND_LABEL = "kontti.io/command"
STOP_SIGNAL_LABEL = "io.containerd.image.config.stop-signal"
LIVE = ("created", "running", "paused")
STATES = ("created", "running", "paused", "pausing", "stopped", "unknown", "none")
SHOWN = 5


def info(record: Container, task: Process | None) -> ContainerInfo:
    """A container by its record and its first process."""
    status = Status(task.status).name.lower() if task else "none"
    found = ContainerInfo(
        record.id,
        record.image,
        status,
        task.pid if task else 0,
        task.exit_status if task else 0,
        record.created_at,
        record.labels.get(COMMAND_LABEL, ""),
        dict(record.labels),
    )
    return found if status in LIVE else replace(found, pid=0)


def details(record: Container, found: ContainerInfo, log: str) -> dict[str, object]:
    """All that is recorded of a container, its OCI spec included."""
    return {
        "id": record.id,
        "image": record.image,
        "status": found.status,
        "pid": found.pid,
        "exit_code": found.exit_code,
        "runtime": record.runtime,
        "snapshotter": record.snapshotter,
        "snapshot_key": record.snapshot_key,
        "labels": dict(record.labels),
        "created_at": record.created_at,
        "log": log,
        "spec": json.loads(record.spec.value) if record.spec else None,
    }


def wants_terminal(record: Container) -> bool:
    """Whether a container's spec has a terminal."""
    spec = json.loads(record.spec.value) if record.spec else {}
    return bool((spec.get("process") or {}).get("terminal"))


def resolve(containers: Containers, name: str) -> str:
    """The id that ``name`` is, or that alone begins so; raises NotFound, InvalidArgument."""
    ids = sorted(record.id for record in containers.list())
    if name in ids:
        return name
    found = [id for id in ids if name and id.startswith(name)]
    if not found:
        raise NotFound(f"container {name}")
    if len(found) > 1:
        shown = ", ".join(found[:SHOWN]) + (", …" if len(found) > SHOWN else "")
        raise InvalidArgument(f"container {name} is ambiguous: {shown} begin so")
    return found[0]


def matcher(filters: Iterable[str]) -> Callable[[ContainerInfo], bool]:
    """Whether a container passes ``status=``, ``name=`` and ``label=name[=value]``.

    Any of the states and of the names is enough; labels are all wanted. Raises InvalidArgument.
    """
    wanted: dict[str, list[str]] = {}
    for text in filters:
        kind, separator, value = text.partition("=")
        if not separator or kind not in _TESTS:
            raise InvalidArgument(f"filter {text!r} is not status=, name= or label=")
        if kind == "status" and value not in STATES:
            raise InvalidArgument(f"filter {text!r}: a status is one of {', '.join(STATES)}")
        wanted.setdefault(kind, []).append(value)

    def passes(container: ContainerInfo) -> bool:
        found = {
            kind: [_TESTS[kind](container, value) for value in values]
            for kind, values in wanted.items()
        }
        return all(all(f) if kind == "label" else any(f) for kind, f in found.items())

    return passes


def _has_label(container: ContainerInfo, text: str) -> bool:
    name, separator, value = text.partition("=")
    return name in container.labels and (not separator or container.labels[name] == value)


_TESTS: dict[str, Callable[[ContainerInfo, str], bool]] = {
    "status": lambda container, value: container.status == value,
    "name": lambda container, value: value in container.id,
    "label": _has_label,
}


def select(
    found: Sequence[ContainerInfo], filters: Iterable[str], *, all: bool
) -> list[ContainerInfo]:
    """Those that pass; of those that do not run none, unless ``all`` or a status is asked for."""
    filters = list(filters)
    passes = matcher(filters)
    all = all or any(text.startswith("status=") for text in filters)
    return [c for c in found if (all or c.status in ("running", "paused")) and passes(c)]
