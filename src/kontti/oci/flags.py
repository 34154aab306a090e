"""What users write on a command line, as parts of a spec."""

from __future__ import annotations

from kontti.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kontti.oci.spec import IdMapping, Mount, Namespace, Rlimit

NAMESPACE_TYPES = ("pid", "network", "uts", "mount", "user", "ipc", "cgroup", "time")
_MOUNT_KEYS = {
    "type": "type",
    "source": "source",
    "src": "source",
    "destination": "destination",
    "dst": "destination",
    "options": "options",
}
_MAX_ID = (1 << 32) - 1


def parse_mount(text: str) -> Mount:
    """``type=bind,src=/a,dst=/b,options=rbind:ro``; raises InvalidArgument."""
    found: dict[str, str] = {}
    for field in _fields(text):
        key, equals, value = field.partition("=")
        if not equals:
            raise InvalidArgument("invalid mount specification: expected key=val")
        if key not in _MOUNT_KEYS:
            raise InvalidArgument(f'mount option "{key:.80}" not supported')
        found[_MOUNT_KEYS[key]] = value
    if not found.get("destination", "").startswith("/"):
        raise InvalidArgument(f"mount {text!r:.200} has no absolute destination")
    mount: Mount = {"destination": found["destination"]}
    if "type" in found:
        mount["type"] = found["type"]
    if "source" in found:
        mount["source"] = found["source"]
    if "options" in found:
        mount["options"] = found["options"].split(":")
    return mount


def _fields(text: str) -> list[str]:
    if '"' not in text:
        return text.split(",")
    import csv

    try:
        return next(csv.reader([text], strict=True))
    except csv.Error as error:
        raise InvalidArgument(f"invalid mount specification {text!r:.200}: {error}") from error


def parse_namespace(text: str) -> Namespace:
    """``type:path``; raises InvalidArgument."""
    type, colon, path = text.partition(":")
    if not (colon and path):
        raise InvalidArgument(
            "joining a Linux namespace using --with-ns requires the format 'nstype:path'"
        )
    check_namespace_type(type)
    return {"type": type, "path": path}


def check_namespace_type(type: str) -> str:
    """``type`` if the kernel has such namespaces; raises InvalidArgument."""
    if type not in NAMESPACE_TYPES:
        raise InvalidArgument(
            f"the Linux namespace type specified in --with-ns is not valid: {type:.80}"
        )
    return type


def parse_id_mapping(text: str) -> IdMapping:
    """``container-id:host-id:length``; raises InvalidArgument."""
    parts = text.split(":")
    if len(parts) != 3 or not all(p.isascii() and p.isdigit() and len(p) < 11 for p in parts):
        raise InvalidArgument(
            f"malformed id mapping {text!r:.80}: want container-id:host-id:length"
        )
    inside, outside, size = (int(part) for part in parts)
    if not size or max(inside, outside) + size - 1 > _MAX_ID:
        raise InvalidArgument(f"id mapping {text!r:.80} is out of range")
    return {"containerID": inside, "hostID": outside, "size": size}


def parse_rlimit(type: str, text: str) -> Rlimit:
    """``n`` for both, or ``soft:hard``; raises InvalidArgument."""
    soft, colon, hard = text.partition(":")
    limits = [soft, hard if colon else soft]
    if not all(p.isascii() and p.isdigit() and len(p) < 20 for p in limits):
        raise InvalidArgument(f"{type}: {text!r:.80} is not a limit, nor soft:hard")
    if int(limits[0]) > int(limits[1]):
        raise InvalidArgument(f"{type}: the soft limit of {text!r:.80} is above the hard one")
    return {"type": type, "hard": int(limits[1]), "soft": int(limits[0])}


def read_env_file(path: str) -> list[str]:
    """``KEY=value`` lines; blank lines and those that begin with # say nothing."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        lines = [line.rstrip("\r\n") for line in file]
    return [line for line in lines if line and not line.startswith("#")]


def merge_env(base: list[str], changes: list[str]) -> list[str]:
    """``base`` with ``changes``: a later value takes the earlier one's place, a bare key unsets."""
    merged = {entry.partition("=")[0]: entry for entry in base}
    for entry in changes:
        key, equals, _ = entry.partition("=")
        if equals:
            merged[key] = entry
        else:
            merged.pop(key, None)
    return list(merged.values())
