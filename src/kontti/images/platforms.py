"""Platforms: their names, their usual forms, and which of them another can run.

Orders as containerd's matchers do: the exact variant first, then what the CPU can still run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from kontti.errors import InvalidArgument
from kontti.values import Descriptor, Platform

_PART = re.compile(r"[A-Za-z0-9_.-]+")
_OS = re.compile(r"([A-Za-z0-9_-]+)(?:\(([A-Za-z0-9_.+%-]*)\))?")
_OS_NAMES = frozenset(
    (
        "aix", "android", "darwin", "dragonfly", "freebsd", "hurd", "illumos", "ios", "js", "linux",
        "netbsd", "openbsd", "plan9", "solaris", "windows", "zos", "wasip1",
    )
)  # fmt: skip
_ARCHITECTURES = {
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv8l": ("arm", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "loongarch64": ("loong64", ""),
}
_KNOWN_ARCHITECTURES = frozenset(
    (
        "386", "amd64", "arm", "arm64", "loong64", "mips", "mipsle", "mips64", "mips64le", "ppc64",
        "ppc64le", "riscv64", "s390x", "wasm",
    )
)  # fmt: skip
_ARM_VARIANTS = ("v8", "v7", "v6", "v5")


def parse(specifier: str) -> Platform:
    """``os``, ``arch``, ``os/arch`` or ``os/arch/variant``; raises InvalidArgument."""
    if "*" in specifier:
        raise InvalidArgument(f"{specifier!r:.120}: wildcards not yet supported")
    parts = specifier.split("/")
    if len(parts) > 3 or not all(_PART.fullmatch(part) for part in parts[1:]):
        raise InvalidArgument(f"{specifier!r:.120}: cannot parse platform specifier")
    found = _OS.fullmatch(parts[0])
    if found is None:
        raise InvalidArgument(f"{specifier!r:.120}: invalid component, cannot parse platform")
    if len(parts) == 1:
        return _parse_single(specifier, found[1], found[2] or "")
    architecture, variant = parts[1], parts[2] if len(parts) == 3 else ""
    return normalize(Platform(found[1], architecture, variant, found[2] or ""))


def _parse_single(specifier: str, name: str, version: str) -> Platform:
    host = default()
    system = _normal_os(name)
    if system in _OS_NAMES:
        variant = host.variant if system == host.os else ""
        return normalize(Platform(system, host.architecture, variant, version))
    as_architecture = normalize(Platform(host.os, name))
    if as_architecture.architecture in _KNOWN_ARCHITECTURES:
        return as_architecture
    raise InvalidArgument(f"{specifier!r:.120}: unknown operating system or architecture")


def normalize(platform: Platform) -> Platform:
    """The usual spelling: amd64 for x86_64, arm64 without its only variant, arm with one."""
    architecture, variant = _normal_architecture(platform.architecture, platform.variant)
    return replace(platform, os=_normal_os(platform.os), architecture=architecture, variant=variant)


def _normal_os(name: str) -> str:
    name = name.lower()
    return "darwin" if name == "macos" else name


def _normal_architecture(name: str, variant: str) -> tuple[str, str]:
    name, variant = name.lower(), variant.lower()
    name, implied = _ARCHITECTURES.get(name, (name, ""))
    variant = variant or implied
    if name == "amd64" and variant == "v1":
        return name, ""
    if name == "arm64" and variant in ("8", "v8", "v8.0"):
        return name, ""
    if name == "arm":
        return name, {"": "v7", "5": "v5", "6": "v6", "7": "v7", "8": "v8"}.get(variant, variant)
    return name, variant


def default() -> Platform:
    """This machine's."""
    return normalize(Platform("linux", os.uname().machine))


def format_platform(platform: Platform) -> str:
    """``os/arch/variant`` as users write it."""
    return str(platform)


class Matcher(Protocol):
    """Says which platforms will do, and which is better."""

    def match(self, platform: Platform) -> bool:
        """Whether ``platform`` will do."""
        ...

    def rank(self, platform: Platform) -> int:
        """Lower is better."""
        ...


@dataclass(frozen=True, slots=True)
class Ordered:
    """Matches the platforms listed, the earlier the better."""

    platforms: tuple[Platform, ...]

    def match(self, platform: Platform) -> bool:
        return self.rank(platform) < len(self.platforms)

    def rank(self, platform: Platform) -> int:
        wanted = normalize(platform)
        for index, candidate in enumerate(self.platforms):
            if _same(candidate, wanted):
                return index
        return len(self.platforms)


@dataclass(frozen=True, slots=True)
class Everything:
    """Matches every platform."""

    def match(self, platform: Platform) -> bool:
        return True

    def rank(self, platform: Platform) -> int:
        return 0


def only(platform: Platform) -> Ordered:
    """What a machine of ``platform`` can run, best first."""
    wanted = normalize(platform)
    return Ordered((wanted, *_compatible(wanted)))


def only_strict(platform: Platform) -> Ordered:
    """``platform`` and nothing else."""
    return Ordered((normalize(platform),))


def any_of(platforms: Iterable[Platform]) -> Matcher:
    """Any of the platforms, strictly; any at all when none is given."""
    wanted = tuple(normalize(platform) for platform in platforms)
    return Ordered(wanted) if wanted else Everything()


def select(
    descriptors: Sequence[Descriptor], matcher: Matcher, limit: int = 0
) -> tuple[Descriptor, ...]:
    """Those that will do, best first, ``limit`` of them (0: all); those without platform last."""
    matching = [d for d in descriptors if d.platform is None or matcher.match(d.platform)]
    matching.sort(key=lambda d: 1 << 30 if d.platform is None else matcher.rank(d.platform))
    return tuple(matching[:limit] if limit else matching)


def _same(candidate: Platform, wanted: Platform) -> bool:
    if candidate.os_version and wanted.os_version != candidate.os_version:
        return False
    return (candidate.os, candidate.architecture, candidate.variant) == (
        wanted.os,
        wanted.architecture,
        wanted.variant,
    )


def _compatible(platform: Platform) -> list[Platform]:
    if platform.architecture == "amd64":
        return [
            *(replace(platform, variant=v) for v in _below_amd64(platform.variant)),
            replace(platform, architecture="386", variant=""),
        ]
    if platform.architecture == "arm":
        return [replace(platform, variant=v) for v in _arm_below(platform.variant)]
    if platform.architecture == "arm64":
        arm = [replace(platform, architecture="arm", variant=v) for v in _ARM_VARIANTS]
        return [*([replace(platform, variant="")] if platform.variant else []), *arm]
    return []


def _below_amd64(variant: str) -> list[str]:
    if variant not in ("v2", "v3", "v4"):
        return []
    return [f"v{level}" for level in range(int(variant[1]) - 1, 1, -1)] + [""]


def _arm_below(variant: str) -> tuple[str, ...]:
    if variant not in _ARM_VARIANTS:
        return ()
    return _ARM_VARIANTS[_ARM_VARIANTS.index(variant) + 1 :]
