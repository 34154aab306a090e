"""Where credentials come from: hosts.toml, Docker's config.json, and credential helpers.

All are read when a registry asks who we are, so what is changed on disk is in force at once.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field

from kontti.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound
from kontti.linux import process
from kontti.registry.auth import Credentials, CredentialSource
from kontti.registry.files import read_small

DOCKER_HOST = "docker.io"
# the name that docker login has written for the Hub since its first days
DOCKER_KEY = "https://index.docker.io/v1/"
HELPER_SECONDS = 30.0
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NOT_FOUND = "credentials not found in native keychain"
_TOKEN_USER = "<token>"


@dataclass(frozen=True, slots=True)
class Auth:
    """What a host's ``auth`` table says. Files are named whole; ``config`` is in Docker's form."""

    username: str = ""
    password: str = field(default="", repr=False)
    password_file: str = ""
    identity_token: str = field(default="", repr=False)
    identity_token_file: str = ""
    config: str = ""
    helper: str = ""


def source_of(auth: Auth) -> CredentialSource:
    """The credentials that ``auth`` says, read anew each time it is asked."""

    def source(host: str) -> Credentials | None:
        if auth.helper:
            return helper_credentials(auth.helper, _key_of(host))
        if auth.config:
            return docker_config(auth.config, required=True)(host)
        if auth.username:
            return Credentials(auth.username, auth.password or _secret(auth.password_file))
        return Credentials("", auth.identity_token or _secret(auth.identity_token_file))

    return source


def either(*sources: CredentialSource) -> CredentialSource:
    """The first source that knows the host."""

    def source(host: str) -> Credentials | None:
        return next((found for s in sources if (found := s(host))), None)

    return source


def only_for(host: str, credentials: Credentials) -> CredentialSource:
    """``credentials`` for that registry, and for no mirror of it."""
    return lambda asked: credentials if asked == host else None


def _secret(path: str) -> str:
    return read_small(path).rstrip("\r\n") if path else ""


def docker_config_path() -> str:
    """Where Docker's clients keep their configuration, for this user."""
    directory = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    return os.path.join(directory, "config.json")


def docker_config(path: str, *, required: bool = False) -> CredentialSource:
    """The credentials in a config.json: of a host's helper, of the store, or in the file itself.

    A file that is not there knows no one, unless it is ``required``.
    """

    def source(host: str) -> Credentials | None:
        try:
            config = _object(json.loads(read_small(path)), path)
        except NotFound:
            if required:
                raise
            return None
        except (ValueError, RecursionError) as error:
            raise InvalidArgument(f"failed to parse {path}: {error}") from error
        return _from_helper(config, host) or _from_auths(config, host, path)

    return source


def _from_helper(config: Mapping[str, object], host: str) -> Credentials | None:
    helpers = _object(config.get("credHelpers") or {}, "credHelpers")
    names = [helpers.get(host), helpers.get(_key_of(host)), config.get("credsStore")]
    helper = next((name for name in names if name), None)
    return helper_credentials(str(helper), _key_of(host)) if helper else None


def _from_auths(config: Mapping[str, object], host: str, path: str) -> Credentials | None:
    auths = _object(config.get("auths") or {}, "auths")
    for key in (host, _key_of(host), *auths):
        if key in auths and (key == _key_of(host) or _host_of(key) == host):
            return _entry(_object(auths[key], key), f"{path}: {key}")
    return None


def _host_of(key: str) -> str:
    """The host that a key means; those with a path of a repository mean none."""
    bare = re.sub(r"^https?://", "", key)
    host, _, path = bare.partition("/")
    if host in ("index.docker.io", "registry-1.docker.io"):
        host = DOCKER_HOST
    return host if path.strip("/") in ("", "v1", "v2") else ""


def _key_of(host: str) -> str:
    return DOCKER_KEY if host == DOCKER_HOST else host


def _entry(entry: Mapping[str, object], name: str) -> Credentials | None:
    if token := _text(entry, "registrytoken"):
        return Credentials(token=token)
    if identity := _text(entry, "identitytoken"):
        return Credentials("", identity)
    user, password = _text(entry, "username"), _text(entry, "password")
    if encoded := _text(entry, "auth"):
        user, password = _decoded(encoded, name)
    return Credentials(user, password) if user else None


def _decoded(encoded: str, name: str) -> tuple[str, str]:
    try:
        user, colon, password = base64.b64decode(encoded).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{name}: auth is not base64 of user:password") from error
    if not colon:
        raise InvalidArgument(f"{name}: auth is not base64 of user:password")
    # Docker's clients pad with NUL
    return user, password.strip("\0")


def _text(entry: Mapping[str, object], key: str) -> str:
    value = entry.get(key)
    return value if isinstance(value, str) else ""


def _object(value: object, name: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise InvalidArgument(f"{name} must be an object")
    return value


def helper_credentials(name: str, server: str) -> Credentials | None:
    """What ``docker-credential-NAME get`` says of ``server``; None where it knows nothing.

    Raises FailedPrecondition where it fails, NotFound where there is none, DeadlineExceeded.
    """
    program = f"docker-credential-{name}"
    path = shutil.which(program) if _HELPER.fullmatch(name) else None
    if path is None:
        raise NotFound(f"credential helper {program!r} on PATH")
    try:
        done = process.run([path, "get"], timeout=HELPER_SECONDS, input=server.encode())
    except TimeoutError as error:
        raise DeadlineExceeded(f"credential helper {program}") from error
    except OSError as error:
        raise FailedPrecondition(f"credential helper {program}: {error}") from error
    said = done.stdout.decode(errors="replace").strip()
    if done.returncode:
        if said == _NOT_FOUND:
            return None
        reason = "".join(c for c in said[:200] if c.isprintable())
        raise FailedPrecondition(f"credential helper {program}: {reason or done.returncode}")
    return _helped(said, program)


def _helped(said: str, program: str) -> Credentials | None:
    try:
        answer = json.loads(said)
    except (ValueError, RecursionError) as error:
        # what it said is a secret: it is not told
        raise FailedPrecondition(f"credential helper {program}: no JSON") from error
    fields = _object(answer, program)
    user, secret = _text(fields, "Username"), _text(fields, "Secret")
    if not secret:
        return None
    return Credentials("" if user == _TOKEN_USER else user, secret)
