"""How transfers are set up: plain values, for who starts before there is a transfer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kontti.values import Platform

ANNOTATIONS_EXPORT = "enable_remote_snapshot_annotations"
"""What a proxy plugin exports as "true" to be told where layers are."""


@dataclass(frozen=True, slots=True)
class Rates:
    """How much a transfer does at once; 0 for as much as may be."""

    downloads: int = 3
    uploads: int = 3
    fetch_buffer: int = 0


@dataclass(frozen=True, slots=True)
class Supported:
    """A platform that is unpacked, and the snapshotter for it.

    ``strict``: images of this architecture only, and not all of the operating system. What
    follows is as in transfer.base.Unpacking.
    """

    platform: Platform
    snapshotter: str
    strict: bool = False
    differ: str = ""
    config_type: str = ""
    layer_types: tuple[str, ...] = ()


def is_told(exports: Mapping[str, str]) -> bool:
    """Whether a snapshotter with these exports is told where layers are."""
    return exports.get(ANNOTATIONS_EXPORT) == "true"
