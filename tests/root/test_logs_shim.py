"""The log driver in a shim: to the byte, in bounded memory, on a full disk."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kontti.errors import Error, InvalidArgument
from kontti.logs.reader import Query, read
from kontti.wire import log_uri
from kontti.wire.log_record import STDERR, STDOUT
from kontti.wire.messages.runtime.task.v2 import shim as api
from tests.root.test_shim_stdio import MIB, peak
from tests.support import filesystems, taskshim
from tests.support.shimpeers import SECONDS
from tests.support.shims import short_folder
from tests.support.taskshim import Pod, Zygote

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with short_folder() as folder, taskshim.zygote(folder) as made:
        yield made


@pytest.fixture
def pod(zygote: Zygote) -> Iterator[Pod]:
    with zygote.pod("crun") as made, taskshim.leftovers(made):
        yield made


def uri(pod: Pod, **options: str) -> str:
    return log_uri.make(str(folder(pod)), {k.replace("_", "-"): v for k, v in options.items()})


def folder(pod: Pod) -> Path:
    return pod.folder / "logs" / "one"


def kept(pod: Pod, stream: bytes = STDOUT, **wanted: object) -> bytes:
    query = Query(streams=(stream,), **wanted)  # type: ignore[arg-type]
    return b"".join(record.data for record in read(str(folder(pod)), query))


def run(pod: Pod, script: str, log: str, **streams: object) -> int:
    """Run a script to its end; its exit code."""
    pod.run("one", "sh", "-c", script, stdout=log, stderr=log, **streams)
    code = pod.wait("one")
    pod.delete("one")
    return code


def packed(pod: Pod) -> None:
    """Wait for the compressor."""
    deadline = time.monotonic() + SECONDS
    while any("log_pack" in line for line in pod.processes().values()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_both_streams_to_the_byte_and_apart(pod: Pod) -> None:
    script = r"printf 'a\0b\nc'; printf '\377\376\r\n' >&2; printf 'd\n\n  e'; exit 3"
    assert run(pod, script, uri(pod)) == 3
    assert kept(pod) == b"a\0b\ncd\n\n  e"
    assert kept(pod, STDERR) == b"\xff\xfe\r\n"
    assert folder(pod).stat().st_mode & 0o777 == 0o750


def test_all_is_there_when_the_end_is_told(pod: Pod) -> None:
    pod.run("one", "sh", "-c", "seq 1 20000", stdout=uri(pod), stderr=uri(pod))
    pod.wait("one")
    assert kept(pod) == b"".join(b"%d\n" % n for n in range(1, 20001))
    pod.delete("one")


def test_a_line_of_many_megabytes_comes_in_parts(pod: Pod) -> None:
    script = "dd if=/dev/zero bs=1M count=20 2>/dev/null | tr '\\0' x; echo; echo end"
    assert run(pod, script, uri(pod, max_size="30m")) == 0
    assert kept(pod) == b"x" * (20 * MIB) + b"\nend\n"
    assert kept(pod, tail=1) == b"end\n"
    assert len(kept(pod, tail=2)) == 20 * MIB + 5


def test_much_output_is_whole_in_what_is_retained_and_costs_no_memory(pod: Pod) -> None:
    # 200 MB in lines of 100 bytes, numbered
    count = int(os.environ.get("KONTTI_LOG_LINES", "2000000"))
    before = peak(pod.pid)
    pod.run(
        "one", "busybox", "awk", f'BEGIN {{ for (i = 1; i <= {count}; i++) printf "%099d\\n", i }}',
        stdout=uri(pod, max_size="10m", max_file="5"), stderr="",
    )  # fmt: skip
    while pod.state("one").status != 3:
        time.sleep(0.05)
    assert pod.wait("one") == 0
    pod.delete("one")
    assert peak(pod.pid) - before < 2 * MIB
    packed(pod)
    files = sorted(folder(pod).iterdir())
    assert len(files) <= 5
    assert all(path.stat().st_size <= 10 * MIB for path in files)
    data = kept(pod)
    lines = data.split(b"\n")
    assert lines.pop() == b""
    if len(lines[0]) < 99:
        lines.pop(0)
    first = count - len(lines) + 1
    assert first < count - 200_000
    assert [int(line) for line in lines] == list(range(first, count + 1))
    assert {len(line) for line in lines} == {99}


def test_lines_of_nothing_cost_no_memory(pod: Pod) -> None:
    before = peak(pod.pid)
    script = "dd if=/dev/zero bs=1M count=2 2>/dev/null | tr '\\0' '\\n'"
    assert run(pod, script, uri(pod, max_size="200m", compress="false")) == 0
    assert peak(pod.pid) - before < 3 * MIB
    assert kept(pod) == b"\n" * (2 * MIB)


def test_a_terminal(pod: Pod) -> None:
    log = uri(pod)
    pod.run("one", "sh", "-c", "tty; seq 1 2000; exit 5", terminal=True, stdout=log)
    assert pod.wait("one") == 5
    pod.delete("one")
    assert kept(pod) == b"/dev/pts/0\n" + b"".join(b"%d\n" % n for n in range(1, 2001))


def test_one_stream_here_and_one_there(pod: Pod) -> None:
    other = pod.folder / "err"
    pod.run("one", "sh", "-c", "echo out; echo err >&2", stdout=uri(pod), stderr=f"file://{other}")
    assert pod.wait("one") == 0
    pod.delete("one")
    assert (kept(pod), other.read_bytes()) == (b"out\n", b"err\n")


def test_a_later_task_goes_on_with_the_log(pod: Pod) -> None:
    for number in (1, 2):
        shutil.rmtree(pod.folder / "b" / "one", ignore_errors=True)
        assert run(pod, f"echo {number}; printf x", uri(pod)) == 0
    assert kept(pod) == b"1\nx2\nx"


def test_two_at_once_on_one_log_are_refused(pod: Pod) -> None:
    pod.run("one", "sleep", "100", stdout=uri(pod))
    with pytest.raises(Error, match="is written to by another"):
        pod.create("two", "true", stdout=uri(pod))
    pod.end("one")


@pytest.mark.parametrize("query", ["max-size=1", "max-file=0", "mode=x"])
def test_options_that_are_wrong(pod: Pod, query: str) -> None:
    with pytest.raises(InvalidArgument):
        pod.create("one", "true", stdout=f"kontti-log://{folder(pod)}?{query}")


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of a few MiB."""
    image = folder / "disk"
    filesystems.make_ext4(image, 8 << 20)
    with filesystems.ext4(image, folder / "mounted") as path:
        yield path
    image.unlink()


def fill(path: Path) -> None:
    """Write to a file until the disk is full."""
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as file:
        while file.write(bytes(MIB)):
            pass


def test_a_full_disk_stops_nobody_and_is_told(zygote: Zygote) -> None:
    script = (
        "echo before; busybox awk 'BEGIN { for (i = 1; i <= 30000; i++) printf \"%099d\\n\", i }'; "
        "touch /tmp/full; until test -e /tmp/go; do sleep 0.02; done; echo after; exit 4"
    )
    # mounted before the shim is there: it may live in a mount namespace of its own
    with small_disk(zygote.folder) as disk, zygote.pod("crun") as pod, taskshim.leftovers(pod):
        signs = pod.folder / "signs"
        signs.mkdir()
        fill(disk / "ballast")
        pod.bundle("one", "sh", "-c", script)
        share(pod, signs)
        log = log_uri.make(str(disk / "one"), {"max-size": "100m"})
        request = pod.create_request("one", stdout=log, stderr=log)
        pod.client.call("Create", request, api.CreateTaskResponse)
        pod.start("one")
        until((signs / "full").exists)
        (disk / "ballast").unlink()
        (signs / "go").touch()
        assert pod.wait("one") == 4
        pod.delete("one")
        check_told(disk / "one")


def share(pod: Pod, source: Path) -> None:
    """Have ``source`` at /tmp of the bundle's container."""
    config = pod.folder / "b" / "one" / "config.json"
    spec = json.loads(config.read_text())
    bind = {"destination": "/tmp", "type": "bind", "source": str(source), "options": ["rbind"]}
    spec["mounts"].append(bind)
    config.write_text(json.dumps(spec))


def until(condition: Callable[[], bool]) -> None:
    """Wait, not for ever."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def check_told(folder: Path) -> None:
    """Every byte is there or counted, and each record is whole."""
    lost, found = 0, b""
    for record in read(str(folder), Query(streams=(STDOUT,))):
        lost += record.lost
        found += b"" if record.lost else record.data
        if record.lost:
            assert b"No space left on device" in record.data
    assert lost > 0
    assert found.startswith(b"before\n")
    assert found.endswith(b"after\n")
    assert len(found) + lost == len("before\nafter\n") + 30000 * 100
    raw = b"".join(path.read_bytes() for path in sorted(folder.glob("*.log")))
    assert all(line.startswith(b"20") for line in raw.splitlines())


def test_the_compressor_is_gone_and_so_is_what_it_left(pod: Pod) -> None:
    script = "busybox awk 'BEGIN { for (i = 1; i <= 20000; i++) printf \"%099d\\n\", i }'"
    assert run(pod, script, uri(pod, max_size="256k", max_file="100")) == 0
    packed(pod)
    # what rotated after its last look waits for the next rotation
    code = "import sys; from kontti.shim.log_pack import pack_all; pack_all(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, folder(pod)], check=True)
    assert kept(pod) == b"".join(b"%099d\n" % n for n in range(1, 20001))
    names = [path.name for path in folder(pod).iterdir()]
    assert sum(name.endswith(".gz") for name in names) >= 1
    assert [name for name in names if name.endswith(".tmp")] == []
