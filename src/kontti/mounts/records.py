"""What is activated, on disk: a directory each, so that a crash leaves nothing unknown.

<state>/io.containerd.mount-manager.v1.bolt/t/
    <number>/            one activation
        <n>              where its n-th mount from the end is made
        <n>-type         who made it, written before it is made
        activation.json  what it is; there only while all of it is mounted
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from kontti.linux import fs
from kontti.mounts.base import Activation, ActiveMount
from kontti.values import Mount

RECORD = "activation.json"


@dataclass(frozen=True, slots=True)
class Record:
    """An activation with its namespace, its lease and the number of its directory."""

    namespace: str
    number: int
    lease: str
    activation: Activation


class Records:
    """Directories below ``path``."""

    def __init__(self, path: str) -> None:
        self.path = path
        os.makedirs(path, mode=0o700, exist_ok=True)

    def folder(self, number: int) -> str:
        """An activation's directory."""
        return os.path.join(self.path, str(number))

    def numbers(self) -> list[int]:
        """Those that are there; what has another name is nobody's of ours."""
        return sorted(int(name) for name in os.listdir(self.path) if name.isdecimal())

    def write(self, record: Record) -> None:
        """All of it is mounted."""
        data = json.dumps(_plain(record)).encode()
        # the state directory does not outlive a crash of the machine: nothing to sync
        fs.atomic_write(os.path.join(self.folder(record.number), RECORD), data, 0o600, sync=False)

    def forget(self, number: int) -> None:
        """From here on it is being unmounted."""
        os.unlink(os.path.join(self.folder(number), RECORD))

    def read(self, number: int) -> Record | None:
        """One, None where it is not all mounted or what is written cannot be read."""
        try:
            with open(os.path.join(self.folder(number), RECORD), "rb") as file:
                return replace(_record(json.load(file)), number=number)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def steps(self, number: int) -> Iterator[tuple[str, str]]:
        """Target and handler of each mount that was begun, the last one first."""
        folder = self.folder(number)
        names = [n.removesuffix("-type") for n in os.listdir(folder) if n.endswith("-type")]
        for name in sorted((n for n in names if n.isdecimal()), key=int):
            with open(os.path.join(folder, f"{name}-type")) as file:
                yield os.path.join(folder, name), file.read()


def _plain(record: Record) -> dict[str, Any]:
    found = record.activation
    active = [
        {**_plain_mount(a.mount), "mount_point": a.mount_point, "at": a.mounted_at}
        | {"data": dict(a.data)}
        for a in found.active
    ]
    return {
        "namespace": record.namespace,
        "lease": record.lease,
        "name": found.name,
        "labels": dict(found.labels),
        "active": active,
        "system": [_plain_mount(mount) for mount in found.system],
    }


def _plain_mount(mount: Mount) -> dict[str, Any]:
    options = list(mount.options)
    return {"type": mount.type, "source": mount.source, "target": mount.target, "options": options}


def _record(plain: dict[str, Any]) -> Record:
    active = tuple(
        ActiveMount(_mount(a), a["mount_point"], a["at"], a["data"]) for a in plain["active"]
    )
    system = tuple(_mount(m) for m in plain["system"])
    activation = Activation(plain["name"], active, system, plain["labels"])
    return Record(plain["namespace"], 0, plain["lease"], activation)


def _mount(plain: dict[str, Any]) -> Mount:
    return Mount(plain["type"], plain["source"], tuple(plain["options"]), plain["target"])
