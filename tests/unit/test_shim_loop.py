"""The shim's loop goes on whatever a callback does."""

from __future__ import annotations

import json
import os
import subprocess
import sys

SCRIPT = """
import json, os, sys
from kontti.linux import process
from kontti.shim.loop import READ, Loop

ended = {}
def on_exit(pid, status):
    ended[names[pid]] = os.waitstatus_to_exitcode(status)
    if len(ended) == 1:
        raise ValueError("of the first child")
    if len(ended) == len(names):
        loop.stop()

loop = Loop(on_exit)
calls = []
read, write = os.pipe()
def broken():
    calls.append("broken")
    raise ValueError("of a descriptor")
loop.watch(read, READ, broken)
os.write(write, b"x")  # stays readable: a broken callback is not called for ever
def late():
    raise ValueError("of a timer")
loop.later(0.0, late)
loop.later(0.01, lambda: calls.append("timer"))
names = {}
for code in (3, 0, 5):
    names[process.spawn(["/bin/sh", "-c", f"sleep 0.05; exit {code}"])] = code
loop.run()
print(json.dumps({"ended": ended, "calls": calls}))
"""


def test_failures_are_logged_and_the_loop_goes_on() -> None:
    # in a process of its own: the loop takes SIGCHLD
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, timeout=20, check=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found == {"ended": {"3": 3, "0": 0, "5": 5}, "calls": ["broken", "timer"]}
    lines = sorted(done.stderr.splitlines())
    assert lines == [
        "kontti-shim: ValueError: of a descriptor",
        "kontti-shim: ValueError: of a timer",
        "kontti-shim: ValueError: of the first child",
    ]
