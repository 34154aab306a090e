"""A spec as the JSON that OCI runtimes read, and back."""

from __future__ import annotations

import json

from kontti.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kontti.oci.spec import Spec

MAX_SPEC = 16 << 20
# what options take for granted of a section's members: a list of something, or an object
_MEMBERS: dict[str, tuple[tuple[str, type, type], ...]] = {
    "process": (
        ("env", list, str),
        ("args", list, str),
        ("rlimits", list, dict),
        ("user", dict, str),
        ("capabilities", dict, str),
    ),
    "linux": (
        ("namespaces", list, dict),
        ("devices", list, dict),
        ("resources", dict, str),
    ),
}


def encode(spec: Spec) -> bytes:
    """Compact JSON; raises InvalidArgument for text that no process could be given."""
    text = json.dumps(spec, ensure_ascii=False, separators=(",", ":"))
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument("the spec holds text that is not UTF-8") from error
    # written so by json; a backslash that users wrote is doubled, hence the closer look
    if "\\u0000" in text and _holds_nul(spec):
        raise InvalidArgument("the spec holds a NUL character")
    return data


def _holds_nul(value: object) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(_holds_nul(key) or _holds_nul(item) for key, item in value.items())
    return isinstance(value, list | tuple) and any(_holds_nul(item) for item in value)


def decode(data: bytes) -> Spec:
    """The spec in ``data``, checked as far as options rely on it; raises InvalidArgument."""
    if len(data) > MAX_SPEC:
        raise InvalidArgument("the spec is too large")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"the spec is not JSON: {error!s:.200}") from error
    if not isinstance(value, dict):
        raise InvalidArgument("the spec is not a JSON object")
    _check(value)
    spec: Spec = value  # type: ignore[assignment]
    return spec


def _check(value: dict[str, object]) -> None:
    for key in ("process", "root", "linux", "annotations"):
        section = value.get(key)
        if section is None:
            value.pop(key, None)
        elif not isinstance(section, dict):
            raise InvalidArgument(f"the spec's {key} is not an object")
        else:
            _check_members(key, section)
    if value.get("mounts") is None:
        value.pop("mounts", None)
    _check_list("mounts", value.get("mounts", []), dict)


def _check_members(section: str, value: dict[str, object]) -> None:
    for key, kind, item in _MEMBERS.get(section, ()):
        if value.get(key) is None:
            value.pop(key, None)
        elif kind is list:
            _check_list(f"{section}.{key}", value[key], item)
        elif not isinstance(value[key], kind):
            raise InvalidArgument(f"the spec's {section}.{key} is not an object")


def _check_list(name: str, value: object, item: type) -> None:
    if not isinstance(value, list) or not all(isinstance(one, item) for one in value):
        raise InvalidArgument(f"the spec's {name} is not a list of {item.__name__} values")
