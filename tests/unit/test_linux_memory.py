"""What the C library does with memory."""

from __future__ import annotations

import subprocess
import sys

HEAPS = """
import re, sys, threading
from kontti.linux import libc
if sys.argv[1] == "one":
    libc.mallopt(libc.M_ARENA_MAX, 1)
together = threading.Barrier(8)
def work():
    kept = [bytes(600) for _ in range(1000)]
    together.wait()
    return kept
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
# glibc keeps 64 MiB of addresses for each heap but the first
lines = [l.split() for l in open("/proc/self/maps")]
spans = [[int(n, 16) for n in l[0].split("-")] for l in lines if len(l) == 5]
print(sum(1 for (a, b), (c, d) in zip(spans, spans[1:]) if b == c and d - a == 64 << 20))
"""


def heaps(how: str) -> int:
    argv = [sys.executable, "-c", HEAPS, how]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    return int(done.stdout)


def test_threads_share_a_heap_where_they_are_told_to() -> None:
    assert heaps("many") > 0
    assert heaps("one") == 0
