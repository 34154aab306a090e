"""What an embedded engine does, in a process of its own: wall and CPU seconds.

As a program: ``engine.py ROOT ACTION ARGUMENT...`` prints them.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.measure import Sample
from kontti import Engine
from kontti.engine.registries import open_session
from kontti.namespaces import DEFAULT, Scope
from kontti.registry.resolver import Resolver
from kontti.transfer.base import PullOptions, Unpacking
from kontti.transfer.pull import pull

LIMIT_SECONDS = 600
Times = tuple[float, float]


def measured(root: Path, action: str, *args: str) -> Sample:
    """Wall and CPU seconds of ``action`` by an engine that was opened before; then a sync."""
    command = [sys.executable, "-m", "bench.engine", str(root), action, *args]
    base = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, cwd=base, timeout=LIMIT_SECONDS
    )
    subprocess.run(["sync"], check=True)
    seconds, cpu = json.loads(done.stdout)
    return Sample(float(seconds), float(cpu))


def main() -> None:
    root, action, *args = sys.argv[1:]
    with Engine(root, state=f"{root}-state") as engine:
        print(json.dumps(ACTIONS[action](engine, *args)))


def _measure(work: Callable[[], object]) -> Times:
    start, before = time.perf_counter(), _cpu()
    work()
    return time.perf_counter() - start, _cpu() - before


def _cpu() -> float:
    """Of this process and of those that it has started, once they have ended."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    used = [resource.getrusage(each) for each in who]
    return sum(u.ru_utime + u.ru_stime for u in used)


def _pull(engine: Engine, name: str) -> Times:
    found = _measure(lambda: engine.pull(name, plain_http=True))
    engine.remove_image(name)
    return found


def _pull_with(engine: Engine, name: str, snapshotter: str) -> Times:
    """What ``Engine.pull`` does, for a snapshotter that one cannot ask it for."""
    options = PullOptions(unpack=Unpacking(snapshotter))

    def work() -> None:
        with open_session(name, plain_http=True) as session:
            parts, resolver = engine._core.transfer_parts(), Resolver(session)  # noqa: SLF001
            pull(parts, Scope.of(DEFAULT), resolver, name, options=options)

    found = _measure(work)
    engine.remove_image(name)
    return found


def _save(engine: Engine, name: str, path: str) -> Times:
    with Path(path).open("wb") as file:
        return _measure(lambda: engine.save([name], file.write))


def _push(engine: Engine, name: str, source: str) -> Times:
    return _measure(lambda: engine.push(name, source, plain_http=True))


def _import(engine: Engine, path: str) -> Times:
    return _measure(lambda: engine.import_image(path))


ACTIONS: dict[str, Callable[..., Times]] = {
    "pull": _pull,
    "pull-with": _pull_with,
    "save": _save,
    "push": _push,
    "import": _import,
}

if __name__ == "__main__":
    main()
