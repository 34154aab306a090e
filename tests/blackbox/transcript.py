"""Runs the steps and makes what they print comparable."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.blackbox.steps import GROUPS, IMAGE, TAG, Step
from tests.support import images
from tests.support.daemons import Daemon

UNTIL_SECONDS = 15.0
_SUBSTITUTIONS = (
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?( \+0000 UTC|Z|\+00:00)?"), "TIME"),
    (re.compile(r"(Less than a second|About a minute|\d+ (second|minute)s?)( ago)?"), "AGE"),
    (re.compile(r"(?m)^(\S+ +)\d+( +(CREATED|RUNNING|STOPPED|PAUSED) *)$"), r"\1PID\2"),
    (re.compile(r"(?m)^\d+( +(-|\S+) *)$"), r"PID\1"),
    # how many snapshots a client made on its way is its own business
    (re.compile(r"/snapshots/\d+/"), "/snapshots/N/"),
    (re.compile(r"[ \t]+"), " "),
    (re.compile(r"(?m) $"), ""),
    (re.compile(r'time="?TIME"? '), ""),
)


@dataclass(frozen=True)
class Outcome:
    """What one step printed and returned, made comparable; ``raw`` as it was."""

    code: int
    stdout: str
    stderr: str
    raw: str


def normalise(text: str, step: Step) -> str:
    """``text`` without what no two runs share: times, pids, widths."""
    for pattern, replacement in _SUBSTITUTIONS:
        text = pattern.sub(replacement, text)
    return step.only(text)


def values(base: Path, registry: str, image: images.Image) -> dict[str, str]:
    """What the placeholders of the steps stand for; the files they name are made."""
    shared = base / "shared"
    shared.mkdir()
    (shared / "file").write_text("from the host\n")
    target = base / "target"
    target.mkdir()
    (base / "image.tar").write_bytes(images.archive(image, IMAGE))
    return {
        "image": IMAGE,
        "tag": TAG,
        "tar": str(base / "image.tar"),
        "out": str(base / "out.tar"),
        "registry": registry,
        "manifest": image.digest,
        "config": image.config_digest,
        "sed": shlex.quote('f() { new=$(sed s/hello/goodbye/ "$1"); printf %s "$new" > "$1"; }; f'),
        "plain": "application/vnd.oci.image.layer.v1.tar",
        "target": str(target),
        "zeros": "0" * 64,
        "hello": images.digest_of(b"hello\n"),
        "chain": _chain(),
        "shared": str(shared),
        "pidfile": str(base / "pid"),
        "logfile": str(base / "log"),
        "exit7": shlex.quote("exit 7"),
        "said": shlex.quote("echo from inside; sleep 0.3"),
        "where": shlex.quote("pwd; sleep 0.3"),
        "who": shlex.quote("id; sleep 0.3"),
        "copy": shlex.quote("cat; sleep 0.3"),
        "streams": shlex.quote("echo out; echo err >&2"),
        "talk": shlex.quote("echo started; exec sleep 1000"),
    }


def _chain() -> str:
    first = images.digest_of(images.base_layer())
    second = images.digest_of(images.second_layer())
    return images.digest_of(f"{first} {second}".encode())


def transcript(daemon: Daemon, client: str, filled: Mapping[str, str]) -> dict[str, list[Outcome]]:
    """Every group's outcomes, in order."""
    return {
        name: [run(daemon, client, step, filled) for step in steps]
        for name, steps in GROUPS.items()
    }


def run(daemon: Daemon, client: str, step: Step, filled: Mapping[str, str]) -> Outcome:
    """One step, repeated while its ``until`` is not there."""
    argv = shlex.split(step.line.format(**filled))
    deadline = time.monotonic() + UNTIL_SECONDS
    while True:
        done = daemon.ctr(client, *argv, stdin=step.stdin)
        stdout = done.stdout.decode(errors="replace")
        if step.until in stdout or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    stderr = done.stderr.decode(errors="replace")
    raw = f"$ ctr {' '.join(argv)}\n{stdout}{stderr}exit {done.returncode}"
    # every combination has a directory of its own; what it is called is no difference
    stdout, stderr = (
        t.replace(filled["shared"].removesuffix("/shared"), "BASE") for t in (stdout, stderr)
    )
    return Outcome(done.returncode, normalise(stdout, step), normalise(stderr, step), raw)
