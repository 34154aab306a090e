"""How long a call waits while garbage is collected: 100,000 blobs and 10,000 snapshots."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from kontti.engine.stores import CONTENT_DIR, Stores, StoreSettings
from kontti.metadata.base import Container
from kontti.metadata.scheduler import Policy
from kontti.namespaces import Scope
from kontti.server.daemon import SWITCH_SECONDS
from kontti.values import AnyValue

BLOBS, SNAPSHOTS, FAMILY = 100_000, 10_000, 10
QUIET = Policy(0, 0, 0, schedule_delay=1e9, startup_delay=1e9)
BETWEEN_SECONDS = 0.005
SCOPE = Scope.of("default")


@dataclass(frozen=True)
class Pauses:
    """Milliseconds that `Containers.Create` took, and the seconds of the collection."""

    median: float
    p99: float
    worst: float
    collection: float


def measure(disk: Path) -> Pauses:
    """Create containers, one after another, while half of all blobs and all snapshots go."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    stores = Stores(StoreSettings(str(disk / "pauses"), gc=QUIET))
    try:
        stores.gc.stop()
        fill(stores)
        return collect(stores)
    finally:
        stores.close()
        sys.setswitchinterval(before)


def fill(stores: Stores) -> None:
    """Families of ten blobs, of which one refers to the others; every other one is an image's."""
    folder = os.path.join(stores.settings.root, CONTENT_DIR, "blobs", "sha256")
    rows, images = [], []
    for number in range(BLOBS):
        name = hashlib.sha256(str(number).encode()).hexdigest()
        Path(folder, name).touch()
        labels = {}
        if number % FAMILY == FAMILY - 1:
            others = rows[1 - FAMILY :]
            labels = {f"containerd.io/gc.ref.content.l.{n}": r[1] for n, r in enumerate(others)}
        digest = f"sha256:{name}"
        rows.append(("default", digest, 0, json.dumps(labels), 1, 1))
        if number % (2 * FAMILY) == 2 * FAMILY - 1:
            target = json.dumps(["application/vnd.oci.image.manifest.v1+json", digest, 1, {}])
            images.append(("default", f"image-{number}", digest, target, "{}", 1, 1))
    parents = [f"s{n - 1}" if n % FAMILY else "" for n in range(SNAPSHOTS)]
    snapshots = [
        ("default", "overlayfs", f"s{n}", f"default/{n}/s", parent, "{}", 1, 1)
        for n, parent in enumerate(parents)
    ]
    with stores.metadata._backing.database.write() as connection:  # noqa: SLF001 - a bench
        connection.execute("INSERT OR IGNORE INTO namespaces VALUES ('default', '{}')")
        connection.executemany("INSERT INTO blobs VALUES (?, ?, ?, ?, ?, ?)", rows)
        connection.executemany("INSERT INTO images VALUES (?, ?, ?, ?, ?, ?, ?)", images)
        connection.executemany("INSERT INTO snapshots VALUES (?, ?, ?, ?, ?, ?, ?, ?)", snapshots)


def collect(stores: Stores) -> Pauses:
    """One collection, with somebody beside it."""
    done = threading.Event()
    waits: list[float] = []

    def create() -> None:
        containers = stores.metadata.containers(SCOPE)
        while not done.is_set():
            record = Container(f"c{len(waits)}", runtime="r", spec=AnyValue("spec", b"{}"))
            began = time.perf_counter()
            containers.create(record)
            waits.append(1000 * (time.perf_counter() - began))
            time.sleep(BETWEEN_SECONDS)

    beside = threading.Thread(target=create)
    beside.start()
    collected = stores.metadata.collect()
    done.set()
    beside.join()
    waits.sort()
    at = waits[int(len(waits) * 0.99)]
    return Pauses(waits[len(waits) // 2], at, waits[-1], collected.seconds)
