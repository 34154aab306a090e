"""What a benchmark runs on: a fresh ext4 in a loop file, and images made by formula."""

from __future__ import annotations

import contextlib
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support import images
from tests.support.images import Entry, directory

SEED = 20_260_101


@contextlib.contextmanager
def fresh_ext4(base: Path, gigabytes: int = 8) -> Iterator[Path]:
    """A new ext4 with a journal in a sparse loop file: a machine's own root may have none, and
    re-creating a deleted tree there costs ten times too much. The loop device writes past the page
    cache, as a disk does: else each byte is copied once more, and a sync waits for two caches."""
    image, target = base / "disk.img", base / "disk"
    target.mkdir()
    with image.open("wb") as file:
        file.truncate(gigabytes << 30)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    attach = ["losetup", "--find", "--show", "--direct-io=on", str(image)]
    device = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
    try:
        subprocess.run(["mount", device, str(target)], check=True)
        try:
            yield target
        finally:
            subprocess.run(["umount", str(target)], check=True)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
        image.unlink()


def many_files_layer(files: int = 30_000, megabytes: int = 250, top: str = "data") -> bytes:
    """``files`` files in 600 directories, ``megabytes`` in all; gzips to about 40 %."""
    rng = random.Random(SEED)
    words = [rng.randbytes(rng.randint(3, 12)) for _ in range(3000)]
    mean = (megabytes << 20) // files
    entries: list[Entry] = []
    for number in range(files):
        folder = f"{top}/{number % 600:03}"
        if number < 600:
            entries.append(directory(folder))
        size = max(1, int(rng.lognormvariate(0, 0.6) * mean * 0.83))
        entries.append(Entry(f"{folder}/{number}", text(rng, words, size)))
    return images.layer([directory(top), *entries])


def text(rng: random.Random, words: list[bytes], size: int) -> bytes:
    """``size`` bytes that compress as text does."""
    block = b" ".join(rng.choices(words, k=min(size, 4096) // 6 + 2))
    return (block * (size // len(block) + 1))[:size] if size > 65536 else (block * 4)[:size]
