"""What the shim itself has to know of a bundle's specification."""

from __future__ import annotations

import json
import os

from kontti.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def check_group(bundle: str) -> None:
    """Raises InvalidArgument where the control group's path leads up.

    A runtime may make what is on the way, or take the host's.
    """
    data = _read(bundle)
    # most have neither, and parsing costs more than the rest of this
    if b".." in data or b"\\u" in data:
        path = _group(data)
        if ".." in path.split("/"):
            raise InvalidArgument(f"cgroupsPath {path!r:.200} leads out of its parent")


def group_path(bundle: str) -> str:
    """The control group that the specification names, "" for none."""
    return _group(_read(bundle))


def _group(data: bytes) -> str:
    path = _linux(data).get("cgroupsPath")
    return path if isinstance(path, str) else ""


def owns_pid_namespace(bundle: str) -> bool:
    """Whether the end of the first process, pid 1 of a namespace of its own, ends all."""
    found = _linux(_read(bundle)).get("namespaces")
    kinds = [n for n in found if isinstance(n, dict)] if isinstance(found, list) else []
    return any(n.get("type") == "pid" and not n.get("path") for n in kinds)


def _read(bundle: str) -> bytes:
    try:
        with open(os.path.join(bundle, "config.json"), "rb") as file:
            return file.read()
    except OSError:
        return b""


def _linux(data: bytes) -> dict[str, Any]:
    try:
        spec = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    linux = spec.get("linux") if isinstance(spec, dict) else None
    return linux if isinstance(linux, dict) else {}
