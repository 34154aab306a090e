"""config.toml as tables, before it means anything: reading it, and laying one over another."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping

from kontti.errors import InvalidArgument, NotFound

Table = Mapping[str, object]
MAX_FILE = 4 << 20
# an entry of these stands for itself: nothing of an earlier one of its name is kept
_REPLACED = ("stream_processors", "proxy_plugins", "timeouts")


def read(path: str) -> Table:
    """The tables in the file ``path``; raises NotFound, or InvalidArgument naming the file."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE + 1)
    except FileNotFoundError:
        raise NotFound(
            f"failed to load TOML: {path}: open {path}: no such file or directory"
        ) from None
    except OSError as error:
        raise InvalidArgument(f"failed to load TOML from {path}: {error.strerror}") from error
    if len(data) > MAX_FILE:
        raise InvalidArgument(f"failed to load TOML from {path}: larger than {MAX_FILE} bytes")
    try:
        return tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"failed to load TOML: {path}: {error}") from error


def merge(below: Table, above: Table) -> dict[str, object]:
    """``above`` laid over ``below``: tables merged, lists joined, of the rest the later wins."""
    merged = dict(below)
    for key, value in above.items():
        if key in _REPLACED and isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = {**as_table(merged[key]), **value}
        else:
            merged[key] = _merge_value(merged.get(key), value)
    return merged


def _merge_value(below: object, above: object) -> object:
    if isinstance(below, dict) and isinstance(above, dict):
        return {
            **below,
            **{key: _merge_value(below.get(key), value) for key, value in above.items()},
        }
    if isinstance(below, list) and isinstance(above, list):
        return [*below, *(item for item in above if item not in below)]
    return above


def as_table(value: object) -> Table:
    """``value`` if it is a table, an empty one otherwise: for rewriting what is checked later."""
    return value if isinstance(value, dict) else {}


def as_list(value: object) -> list[object]:
    """``value`` if it is a list, an empty one otherwise."""
    return value if isinstance(value, list) else []


def without(table: Table, *keys: str) -> dict[str, object]:
    """``table`` without ``keys``."""
    return {key: value for key, value in table.items() if key not in keys}
