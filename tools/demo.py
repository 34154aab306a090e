"""``make demo``: an image from Debian's packages, and containers from it, with no daemon."""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from tests.support import images

CACHE = REPOSITORY / ".cache" / "demo"
STATE = Path("/run/kontti-demo")
KONTTI = Path(sys.executable).with_name("kontti")
DEBOOTSTRAP_SECONDS = 600


def say(text: str) -> None:
    """A line of the demo's own."""
    print(f"\n== {text}", flush=True)


def busybox_image(name: str) -> bytes:
    """Debian's busybox-static in two layers."""
    return images.archive(images.build(), name)


def debian_image(name: str) -> bytes:
    """Debian's minimal base system, by debootstrap."""
    tree = CACHE / "debian"
    if not (tree / "etc" / "debian_version").exists():
        shutil.rmtree(tree, ignore_errors=True)
        subprocess.run([str(REPOSITORY / "tools" / "packages"), "debian"], check=True)
        say("debootstrap makes a minimal Debian (some minutes)")
        suite = "bookworm"
        argv = ["debootstrap", "--variant=minbase", suite, str(tree)]
        subprocess.run(argv, check=True, timeout=DEBOOTSTRAP_SECONDS)
    say("packing the tree into a layer")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry in sorted(tree.iterdir()):
            tar.add(entry, entry.name)
    config = {"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["/bin/bash"]}
    return images.archive(images.build([buffer.getvalue()], config), name)


MAKERS = {"busybox": busybox_image, "debian": debian_image}


def kontti(*args: str, check: bool = True) -> int:
    """Run kontti as a user would, showing the command."""
    print(f"$ kontti {' '.join(args)}", flush=True)
    argv = [str(KONTTI), "--root", str(CACHE / "root"), "--state", str(STATE), *args]
    code = subprocess.run(argv, check=False, timeout=120, stdin=subprocess.DEVNULL).returncode
    if check and code:
        sys.exit(f"demo: that failed with exit code {code}")
    return code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", choices=sorted(MAKERS), default="busybox")
    choice = parser.parse_args().image
    if os.geteuid() != 0:
        sys.exit("demo: containers of this kind need root: try again with sudo")
    started = time.monotonic()
    name = f"docker.io/library/{choice}:demo"
    CACHE.mkdir(parents=True, exist_ok=True)
    say(f"making the image {name} from Debian's packages")
    archive = CACHE / f"{choice}.tar"
    archive.write_bytes(MAKERS[choice](name))
    show(name, archive)
    say(f"done in {time.monotonic() - started:.1f} s; everything the demo stored is in {CACHE}")


def show(name: str, archive: Path) -> None:
    """The main job: store the image, run containers, look at them."""
    for left in ("hello", "clock"):
        subprocess.run(
            [str(KONTTI), "--root", str(CACHE / "root"), "--state", str(STATE), "rm", "-f", left],
            check=False,
            timeout=60,
            capture_output=True,
        )
    say("storing it")
    kontti("load", "-i", str(archive))
    kontti("images")
    say("running a container, with no daemon")
    kontti("run", "--name", "hello", name, "sh", "-c", "echo hello from $(hostname); id; ls /")
    say("and one in the background")
    kontti("run", "-d", "--name", "clock", name, "sh", "-c", "while true; do date; sleep 1; done")
    time.sleep(2.2)
    kontti("ps", "-a")
    kontti("logs", "clock")
    kontti("logs", "hello")
    kontti("stop", "--time", "1", "clock")
    kontti("rm", "hello", "clock")


if __name__ == "__main__":
    main()
