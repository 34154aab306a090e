"""Seccomp profiles: containerd's default one, and those that users bring."""

from __future__ import annotations

import os

from kontti.errors import InvalidArgument
from kontti.oci.syscalls import ALWAYS, ARCHITECTURES, BY_CAPABILITY, BY_MACHINE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from kontti.oci.spec import Seccomp, SeccompArg, SeccompRule

ALLOW, ERRNO = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"
ENOSYS = 38
AF_ALG, AF_VSOCK = 38, 40
# the flags of clone(2) that make a namespace
_NAMESPACE_FLAGS = 0x7E020000
# PER_LINUX, PER_LINUX32, UNAME26 and both; and the value that only asks
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
# a tracer could evade seccomp before Linux 4.8
_PTRACE_KERNEL = (4, 8)
_MAX_PROFILE = 4 << 20
_LISTS = {"architectures": str, "flags": str, "syscalls": dict}


def default_profile(capabilities: Collection[str], host: os.uname_result | None = None) -> Seccomp:
    """The profile for a process with ``capabilities`` in its bounding set, on ``host`` (this)."""
    host = host or os.uname()
    rules = [
        _allow(ALWAYS.split()),
        *_socket_rules(),
        *(_allow(("personality",), _arg(0, "SCMP_CMP_EQ", p)) for p in _PERSONALITIES),
    ]
    if _kernel(host.release) >= _PTRACE_KERNEL:
        rules.append(_allow(("process_vm_readv", "process_vm_writev", "ptrace")))
    if host.machine in BY_MACHINE:
        rules.append(_allow(BY_MACHINE[host.machine]))
    rules += [
        _allow(calls.split()) for name, calls in BY_CAPABILITY.items() if name in capabilities
    ]
    if "CAP_SYS_ADMIN" not in capabilities:
        rules += _clone_rules(host.machine)
    return {
        "defaultAction": ERRNO,
        "architectures": ARCHITECTURES.get(host.machine, ()),
        "syscalls": rules,
    }


def _socket_rules() -> list[SeccompRule]:
    """socket(2) for every family but AF_ALG and AF_VSOCK, which reach outside the container."""
    conditions = (
        _arg(0, "SCMP_CMP_LT", AF_ALG),
        _arg(0, "SCMP_CMP_EQ", AF_ALG + 1),
        _arg(0, "SCMP_CMP_GT", AF_VSOCK),
    )
    return [_allow(("socket",), condition) for condition in conditions]


def _clone_rules(machine: str) -> list[SeccompRule]:
    """clone(2) without new namespaces. clone3(2) hides its flags in memory, so it is not there."""
    # s390's clone takes its flags second
    index = 1 if machine == "s390x" else 0
    condition: SeccompArg = {
        "index": index,
        "value": _NAMESPACE_FLAGS,
        "valueTwo": 0,
        "op": "SCMP_CMP_MASKED_EQ",
    }
    return [
        _allow(("clone",), condition),
        {"names": ("clone3",), "action": ERRNO, "errnoRet": ENOSYS},
    ]


def _allow(names: Sequence[str], *conditions: SeccompArg) -> SeccompRule:
    rule: SeccompRule = {"names": names, "action": ALLOW}
    if conditions:
        rule["args"] = conditions
    return rule


def _arg(index: int, op: str, value: int) -> SeccompArg:
    return {"index": index, "value": value, "op": op}


def _kernel(release: str) -> tuple[int, int]:
    parts = release.split("-")[0].split(".")
    numbers = [int(part) for part in parts[:2] if part.isdigit()]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else (0, 0)


def load_profile(path: str) -> Seccomp:
    """The profile in the file ``path``: a runtime spec's ``linux.seccomp`` object.

    Raises InvalidArgument for a file that cannot be read or is no such object.
    """
    import json

    try:
        with open(path, "rb") as file:
            value = json.loads(file.read(_MAX_PROFILE))
    except OSError as error:
        raise InvalidArgument(f"cannot load seccomp profile {path!r:.200}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"decoding seccomp profile failed {path!r:.200}: {error}") from error
    return _checked(value, path)


def _checked(value: object, path: str) -> Seccomp:
    """``value`` if it has the form of a profile; what it says is for the OCI runtime to judge."""
    if not isinstance(value, dict) or not isinstance(value.get("defaultAction"), str):
        raise InvalidArgument(
            f"decoding seccomp profile failed {path!r:.200}: it has no defaultAction"
        )
    for key, kind in _LISTS.items():
        items = value.get(key) or []
        if not isinstance(items, list) or not all(isinstance(item, kind) for item in items):
            raise InvalidArgument(f"decoding seccomp profile failed {path!r:.200}: bad {key}")
    profile: Seccomp = value  # type: ignore[assignment]
    return profile
