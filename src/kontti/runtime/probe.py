"""Which OCI runtime to use: the first that proves, by running something, that it works here."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from kontti.linux import cgroups, fs, process

log = logging.getLogger(__name__)
CANDIDATES = ("crun", "runc")
FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
SECONDS = 10.0
CACHE = "runtime-probe.json"
_UNIFIED = "/sys/fs/cgroup/unified"


@dataclass(frozen=True, slots=True)
class RuntimeChoice:
    """``binary`` "" where none works. ``hide_unified`` where it works without the v2 tree only.

    ``log`` says, in a line each, why the others were not chosen.
    """

    binary: str
    hide_unified: bool = False
    log: tuple[str, ...] = ()


def choose(state: str) -> RuntimeChoice:
    """Probe, or take what was found before for the same binaries on the same boot."""
    cache = os.path.join(state, CACHE)
    key = _key()
    try:
        with open(cache) as file:
            kept = json.load(file)
        if kept["key"] == key:
            return RuntimeChoice(
                str(kept["binary"]), bool(kept["hide_unified"]), tuple(map(str, kept["log"]))
            )
    except (OSError, ValueError, KeyError, TypeError):
        pass
    choice = probe()
    if not choice.binary:
        # nothing to keep: what was wrong may be put right, or was only slow
        return choice
    os.makedirs(state, mode=0o711, exist_ok=True)
    fs.atomic_write(cache, json.dumps({"key": key, **asdict(choice)}).encode(), sync=False)
    return choice


def _key() -> list[object]:
    with open("/proc/sys/kernel/random/boot_id") as file:
        found: list[object] = [file.read().strip()]
    for name in CANDIDATES:
        path = locate(name)
        stat = os.stat(path) if path else None
        found.append([path, stat.st_size, stat.st_mtime_ns] if stat else None)
    return found


def locate(name: str) -> str:
    """The runtime's path, "" where it is not installed."""
    path = os.pathsep.join((os.environ.get("PATH", ""), *FOLDERS))
    return shutil.which(name, path=path) or ""


def probe() -> RuntimeChoice:
    """The first candidate that runs a container here, with the v2 tree or without."""
    hybrid = cgroups.mode() == cgroups.HYBRID and cgroups.hybrid_with_controllers()
    why = []
    for name in CANDIDATES:
        binary = locate(name)
        if not binary:
            why.append(f"{name} is not installed")
            continue
        for hide in (False, True) if hybrid else (False,):
            problem = attempt(binary, hide)
            if not problem:
                return RuntimeChoice(binary, hide, tuple(why))
            why.append(f"{binary} does not work here (v2 tree hidden: {hide}): {problem}")
            log.info("%s", why[-1])
    log.warning("no OCI runtime works on this host: install crun or runc")
    return RuntimeChoice("", log=tuple(why))


def without_unified(argv: Sequence[str]) -> list[str]:
    """The command line that runs ``argv`` where the v2 tree beside v1 cannot be seen."""
    return [
        "/usr/bin/unshare",
        "-m",
        "/bin/sh",
        "-c",
        f'umount {_UNIFIED} && exec "$0" "$@"',
        *argv,
    ]


def attempt(binary: str, hide: bool) -> str:
    """Run ``true`` in a container over the host's own root, read-only; "" or what went wrong."""
    id = f"kontti-probe-{os.getpid()}-{os.urandom(3).hex()}"
    with tempfile.TemporaryDirectory(prefix="kontti-probe-") as folder:
        with open(os.path.join(folder, "config.json"), "w") as file:
            json.dump(_spec(id), file)
        head = [binary, "--root", os.path.join(folder, "state")]
        rootfs = os.path.join(folder, "rootfs")
        os.mkdir(rootfs)
        # a runtime cannot pivot into "/" itself, only into a mount of it
        script = 'mount --make-rslave / && mount --bind / "$0" && exec "$@"'
        if hide:
            script = f"umount {_UNIFIED} && {script}"
        wrap = ["/usr/bin/unshare", "-m", "/bin/sh", "-c", script, rootfs]
        try:
            done = _run([*wrap, *head, "run", "--bundle", folder, id])
        except (OSError, TimeoutError) as error:
            return str(error)
        finally:
            _clean([*wrap, *head, "delete", "--force", id])
    return "" if done.returncode == 0 else done.stderr.decode(errors="replace").strip()


def _clean(argv: list[str]) -> None:
    try:
        _run(argv)
    except (OSError, TimeoutError) as error:
        log.warning("runtime probe could not be cleaned up: %s", error)


def _run(argv: list[str]) -> process.Completed:
    # not NOTIFY_SOCKET: a runtime would wait for its container to notify systemd
    env = {"PATH": os.environ.get("PATH", os.defpath)}
    return process.run(argv, timeout=SECONDS, env=env, limit=4096)


def _spec(id: str) -> dict[str, object]:
    kinds = ("pid", "ipc", "uts", "mount", "network")
    return {
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["/bin/true"], "cwd": "/"},
        "root": {"path": "rootfs", "readonly": True},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": [{"type": k} for k in kinds], "cgroupsPath": f"/{id}"},
    }
