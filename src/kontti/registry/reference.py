"""Image references as containerd reads them: ``host[:port]/path[:tag][@digest]``, nothing added."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kontti.errors import InvalidArgument
from kontti.values import Digest

_MAX_LENGTH = 1024
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*\.?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{{1,5}})?")
_COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_OBJECT = re.compile(r"[:@]")
_HEX = re.compile(r"[0-9a-f]{64}")
_DOCKER_HOST = "docker.io"


@dataclass(frozen=True, slots=True)
class Reference:
    """``locator`` says where, ``object`` what: ``tag``, ``tag@digest``, ``@digest`` or nothing."""

    locator: str
    object: str = ""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """The reference in ``text``; raises InvalidArgument for anything else."""
        if len(text) > _MAX_LENGTH:
            raise InvalidArgument(f"invalid reference {text[:80]!r}: too long")
        host, slash, rest = text.partition("/")
        if not host or not _HOST.fullmatch(host):
            raise InvalidArgument(f"invalid reference {text!r}: hostname required")
        path, object_ = _split(text, rest)
        _check_path(text, path, bool(slash))
        _check_object(text, object_)
        return cls(f"{host}/{path}" if path else host, object_)

    @property
    def host(self) -> str:
        """Host and port."""
        return self.locator.partition("/")[0]

    @property
    def path(self) -> str:
        """The repository's name at the host."""
        return self.locator.partition("/")[2]

    @property
    def tag(self) -> str:
        """The tag, or ""."""
        return self.object.partition("@")[0]

    @property
    def digest(self) -> Digest | None:
        """The digest, or None."""
        text = self.object.partition("@")[2]
        return Digest.parse(text) if text else None

    def __str__(self) -> str:
        if not self.object or self.object.startswith("@"):
            return self.locator + self.object
        return f"{self.locator}:{self.object}"


def _split(text: str, rest: str) -> tuple[str, str]:
    found = _OBJECT.search(rest)
    if found is None:
        return rest, ""
    object_ = rest[found.start() :].removeprefix(":")
    if found.group() == ":" and object_[:1] in ("", "@"):
        raise InvalidArgument(f"invalid reference {text!r}: invalid tag")
    return rest[: found.start()], object_


def _check_path(text: str, path: str, present: bool) -> None:
    if present and not all(_COMPONENT.fullmatch(c) for c in path.split("/")):
        raise InvalidArgument(f"invalid reference {text!r}")


def _check_object(text: str, object_: str) -> None:
    tag, at, digest = object_.partition("@")
    if tag and not _TAG.fullmatch(tag):
        raise InvalidArgument(f"invalid reference {text!r}: invalid tag")
    if at:
        Digest.parse(digest)


def docker_normalize(name: str) -> str:
    """What a person means by ``name``: ``alpine`` is ``docker.io/library/alpine:latest``.

    Raises InvalidArgument for what can be no image name.
    """
    if _HEX.fullmatch(name):
        raise InvalidArgument(
            f"invalid repository name {name!r}: cannot be a 64-byte hexadecimal string"
        )
    host, path = _docker_host(name)
    if host == _DOCKER_HOST and "/" not in path:
        path = f"library/{path}"
    reference = Reference.parse(f"{host}/{path}")
    if reference.path != reference.path.lower():
        raise InvalidArgument(f"invalid reference {name!r}: repository name must be lowercase")
    return str(reference if reference.object else Reference(reference.locator, "latest"))


def _docker_host(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if not slash or not (set(first) & set(".:") or first == "localhost" or first != first.lower()):
        return _DOCKER_HOST, name
    return (_DOCKER_HOST if first == "index.docker.io" else first), rest
