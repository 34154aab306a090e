"""``make bench``: kontti against Debian's containerd, interleaved. Writes bench/RESULTS.md."""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support import images
from tests.support.daemons import Daemon

from bench import crowd, peers
from bench.diffs import diff_rows
from bench.fixtures import fresh_ext4, many_files_layer
from bench.measure import Comparison, Sample, interleaved, metered, timed, timed_together
from bench.memory import Footprint, daemon_pss, footprint, pss, shims_of
from bench.pauses import measure as pauses_of
from bench.peaks import pull_peaks
from bench.peers import Pair, Peers
from bench.pulls import pull_rows
from bench.report import render
from bench.transfers import transfer_rows
from kontti.diff.workers import IDLE_SECONDS

SMALL = "docker.io/library/busybox:bench"
LARGE = "docker.io/library/files:bench"
RESULTS = Path(__file__).with_name("RESULTS.md")


def run_one(pair: Pair, rounds: int) -> Comparison:
    def measure(daemon: Daemon, number: int) -> float:
        return timed(daemon, "run", "--rm", SMALL, f"one-{number}", "true")

    command = "ctr run --rm IMAGE ID true"
    return interleaved("one container, start to end", command, 2.0, rounds, measure, pair)


def run_ten(pair: Pair, rounds: int) -> Comparison:
    def measure(daemon: Daemon, number: int) -> float:
        lines = [("run", "--rm", SMALL, f"ten-{number}-{i}", "true") for i in range(10)]
        return timed_together(daemon, lines)

    command = "ten times `ctr run --rm IMAGE ID true` at once"
    return interleaved("ten containers at a time", command, 2.5, rounds, measure, pair)


def import_large(peers: Peers, rounds: int, archive: Path) -> Comparison:
    def measure(daemon: Daemon, _number: int) -> Sample:
        sample = metered(daemon, "images", "import", str(archive))
        timed(daemon, "images", "rm", "--sync", LARGE)
        subprocess.run(["sync"], check=True)
        return sample

    pair, theirs = peers.quicker(measure)
    command = f"ctr images import files.tar ({archive.stat().st_size >> 20} MiB); {theirs}"
    return interleaved("import of 250 MB in 30,000 files", command, 2.0, rounds, measure, pair)


# two daemons' containers of one name would share the OCI runtime's state
def exec_one(pair: Pair, rounds: int) -> Comparison:
    for daemon in pair:
        timed(daemon, "run", "-d", "--null-io", SMALL, f"held-{daemon.kind}", "sleep", "100000")

    def measure(daemon: Daemon, number: int) -> float:
        return timed(
            daemon, "tasks", "exec", "--exec-id", f"exec-{number}", f"held-{daemon.kind}", "true"
        )

    command = "ctr tasks exec --exec-id ID held true"
    return interleaved("a command in a running container", command, 3.0, rounds, measure, pair)


def start_many(pair: Pair, count: int) -> list[Footprint]:
    """Have ``count`` containers running on both; what their shims hold."""
    each = {}
    for daemon in pair:
        for number in range(count):
            timed(
                daemon,
                "run",
                "-d",
                "--null-io",
                SMALL,
                f"many-{daemon.kind}-{number}",
                "sleep",
                "100000",
            )
        listed = daemon.ctr("debian", "tasks", "list").stdout.decode().splitlines()[1:]
        shims = shims_of([int(line.split()[1]) for line in listed])
        each[daemon.kind] = sum(pss(pid) for pid in shims) / len(shims)
    return [footprint(f"a container's shim, of {count}", each)]


def list_many(pair: Pair, rounds: int, count: int) -> Comparison:
    def measure(daemon: Daemon, _number: int) -> float:
        return timed(daemon, "tasks", "list")

    name = f"list of {count} running containers"
    return interleaved(name, "ctr tasks list", 1.0, rounds, measure, pair)


def machine() -> str:
    """What this ran on, in one line."""
    with open("/proc/cpuinfo") as cpuinfo:
        cpus = [
            line.partition(": ")[2].strip() for line in cpuinfo if line.startswith("model name")
        ]
    with open("/proc/meminfo") as meminfo:
        memory = int(meminfo.readline().split()[1]) >> 20
    return (
        f"{len(cpus)} cores ({cpus[0] if cpus else platform.machine()}), {memory} GiB, "
        f"Linux {platform.release()}, Python {platform.python_version()}"
    )


def version_of(*argv: str) -> str:
    """The first line that a program prints of itself."""
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0].strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40, help="rounds of the quick comparisons")
    parser.add_argument("--imports", type=int, default=5, help="rounds of the import")
    parser.add_argument("--pulls", type=int, default=3, help="rounds of each pull")
    parser.add_argument("--transfers", type=int, default=5, help="rounds of export, push, diff")
    parser.add_argument("--scale", type=float, default=1.0, help="size of what is moved")
    parser.add_argument("--many", type=int, default=50, help="containers for lists and memory")
    parser.add_argument("--crowd", type=int, default=500, help="containers for a restart")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kontti-bench-", dir="/var/tmp") as temporary:
        base = Path(temporary)
        print("making the images")
        small, large = base / "small.tar", base / "large.tar"
        small.write_bytes(images.archive(images.build(), SMALL))
        files, megabytes = int(30_000 * options.scale), int(250 * options.scale)
        image = images.build([many_files_layer(files, megabytes)])
        large.write_bytes(images.archive(image, LARGE))
        with fresh_ext4(base) as disk:
            results, footprints = compare(disk, small, large, options)
            print("collection")
            pauses = pauses_of(disk)
    programs = [
        version_of("containerd", "--version"),
        version_of("pigz", "--version"),
        version_of("runc", "--version"),
        version_of("crun", "--version"),
    ]
    RESULTS.write_text(render(results, footprints, machine(), programs, pauses))
    print(RESULTS.read_text())


def compare(
    disk: Path, small: Path, large: Path, options: argparse.Namespace
) -> tuple[list[Comparison], list[Footprint]]:
    """All comparisons, with both daemons up on ``disk``."""
    with peers.running(disk) as found:
        pair = found.pair
        for daemon in pair:
            timed(daemon, "images", "import", str(small))
        # long enough for what is kept ready after work to be let go
        time.sleep(IDLE_SECONDS + 5)
        footprints = [footprint("the daemon, idle", {d.kind: daemon_pss(d) for d in pair})]
        results = []
        print("one container at a time")
        results.append(run_one(pair, options.rounds))
        print("ten at a time")
        results.append(run_ten(pair, max(3, options.rounds // 4)))
        print("import")
        results.append(import_large(found, options.imports, large))
        if options.pulls:
            results += pull_rows(found, disk.parent, disk, options.pulls, options.scale)
        if options.transfers:
            rounds, scale = options.transfers, options.scale
            results += transfer_rows(pair, disk.parent, disk, rounds, scale)
            results += diff_rows(pair, disk.parent, rounds, large, LARGE)
        print("exec")
        results.append(exec_one(pair, options.rounds))
        print("many containers")
        footprints += start_many(pair, options.many)
        results.append(list_many(pair, options.rounds, options.many + 1))
        remove_all(pair)
    if options.pulls:
        print("peak memory")
        footprints += pull_peaks(disk, options.scale)
    print("a crowd")
    crowd_results, crowd_footprints = crowd.measure(
        disk, small, SMALL, options.crowd, options.rounds
    )
    return results + crowd_results, footprints + crowd_footprints


def remove_all(pair: Pair) -> None:
    """End every container, so that nothing outlives the daemons."""
    for daemon in pair:
        for id in daemon.ctr("debian", "tasks", "list", "-q").stdout.decode().split():
            timed(daemon, "tasks", "kill", "-s", "KILL", id)
            timed(daemon, "tasks", "delete", "--force", id)
            timed(daemon, "containers", "delete", id)


if __name__ == "__main__":
    main()
