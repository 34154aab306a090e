"""Capabilities by name (capabilities(7)), and those this process has."""

from __future__ import annotations

from kontti.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kontti.oci.spec import Capabilities

# by bit number, as in linux/capability.h
NAMES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
    "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER",
    "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
)  # fmt: skip


def check(names: Iterable[str]) -> None:
    """Raises InvalidArgument for a name that is no capability's."""
    for name in names:
        if not name.startswith("CAP_"):
            raise InvalidArgument("capabilities must be specified with 'CAP_' prefix")
        if name not in NAMES:
            raise InvalidArgument(f"unknown capability {name!r:.80}")


def current(status: str = "/proc/self/status") -> tuple[str, ...]:
    """The effective capabilities of this process, in the kernel's order."""
    with open(status, encoding="ascii", errors="replace") as file:
        line = next((line for line in file if line.startswith("CapEff:")), "CapEff:\t0")
    mask = int(line.split()[1], 16)
    return tuple(name for bit, name in enumerate(NAMES) if mask >> bit & 1)


def same(names: Sequence[str]) -> Capabilities:
    """A process's capabilities where its three default sets are ``names``."""
    return {"bounding": names, "effective": names, "permitted": names}


def added(to: Capabilities, names: Sequence[str]) -> Capabilities:
    """``to`` with ``names`` in its three default sets."""

    def plus(old: Sequence[str]) -> tuple[str, ...]:
        return (*old, *(name for name in dict.fromkeys(names) if name not in old))

    return {
        **to,
        "bounding": plus(to.get("bounding", ())),
        "effective": plus(to.get("effective", ())),
        "permitted": plus(to.get("permitted", ())),
    }


def dropped(of: Capabilities, names: Sequence[str]) -> Capabilities:
    """``of`` with ``names`` in none of its sets."""
    left: Capabilities = {}
    for kind in ("bounding", "effective", "inheritable", "permitted", "ambient"):
        if kind in of:
            left[kind] = tuple(name for name in of[kind] if name not in names)
    return left
