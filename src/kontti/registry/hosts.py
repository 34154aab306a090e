"""Which hosts serve a registry, and how each is spoken to: defaults and ``certs.d``."""

from __future__ import annotations

import enum
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from kontti.errors import InvalidArgument, NotFound
from kontti.registry.credentials import DOCKER_HOST, Auth
from kontti.registry.files import read_small
from kontti.registry.http import CONNECT_SECONDS, Tls
from kontti.registry.proxies import is_loopback

HOSTS_DIRECTORIES = ("/etc/containerd/certs.d", "/etc/docker/certs.d")
DOCKER_SERVER = "registry-1.docker.io"
_AUTHS = frozenset(
    (
        ("password", "username"),
        ("password_file", "username"),
        ("identity_token",),
        ("identity_token_file",),
        ("config",),
        ("helper",),
    )
)
_AUTH_FILES = ("password_file", "identity_token_file", "config")
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class Capability(enum.StrEnum):
    """What a host may be asked for."""

    PULL = "pull"
    RESOLVE = "resolve"
    PUSH = "push"
    REFERRERS = "referrers"


ALL = frozenset(Capability)


@dataclass(frozen=True, slots=True)
class Host:
    """A server of a registry. ``path`` is the API's root there.

    ``registry`` is the name of the registry that it is itself, where that is not ``host``.
    """

    scheme: str
    host: str
    path: str = "/v2"
    capabilities: frozenset[Capability] = ALL
    headers: tuple[tuple[str, str], ...] = ()
    tls: Tls = field(default_factory=Tls)
    dial_timeout: float = CONNECT_SECONDS
    auth: Auth | None = None
    registry: str = ""

    @property
    def url(self) -> str:
        """The API's root."""
        return f"{self.scheme}://{self.host}{self.path}"

    @property
    def known_as(self) -> str:
        """The name that credentials for it are kept under."""
        return self.registry or self.host


Hosts = Callable[[str], Sequence[Host]]


@dataclass(frozen=True, slots=True)
class HostOptions:
    """What the caller asked for. ``loopback_http``: plain HTTP to loopback hosts with a port."""

    plain_http: bool = False
    loopback_http: bool = False
    tls: Tls = field(default_factory=Tls)
    directories: tuple[str, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()


def default_host(registry: str, options: HostOptions | None = None) -> Host:
    """The registry itself."""
    options = options or HostOptions()
    name = DOCKER_SERVER if registry == DOCKER_HOST else registry
    scheme = "http" if options.plain_http or _loopback_http(name, options) else "https"
    own = registry if name != registry else ""
    return Host(scheme, name, headers=options.headers, tls=options.tls, registry=own)


def _loopback_http(name: str, options: HostOptions) -> bool:
    host, colon, port = name.rpartition(":")
    # who gives certificates means TLS
    if not options.loopback_http or not colon or "]" in port or options.tls != Tls():
        return False
    return is_loopback(host) and port != "443"


def configured(options: HostOptions | None = None) -> Hosts:
    """Hosts by the directories of ``options``, the defaults where those say nothing."""
    chosen = options or HostOptions()

    def hosts(registry: str) -> Sequence[Host]:
        directory = find_directory(chosen.directories, registry)
        default = default_host(registry, chosen)
        return load_directory(directory, default) if directory else (default,)

    return hosts


def find_directory(roots: Sequence[str], registry: str) -> str | None:
    """The directory that configures ``registry``, in the first of ``roots`` that has one.

    There it is called ``host_port_``, by the host, or ``_default``.
    """
    for root in roots:
        for name in (re.sub(r":(\d+)$", r"_\1_", registry), registry, "_default"):
            path = os.path.join(root, name)
            if os.path.isdir(path):
                return path
    return None


def load_directory(directory: str, default: Host) -> tuple[Host, ...]:
    """What ``hosts.toml`` says, else what Docker's ``*.crt``, ``*.cert`` and ``*.key`` do."""
    path = os.path.join(directory, "hosts.toml")
    try:
        text = read_small(path)
    except NotFound:
        return (replace(default, tls=_docker_certificates(directory, default.tls)),)
    try:
        return parse_hosts(text, default, directory)
    except InvalidArgument as error:
        raise InvalidArgument(f"failed to parse {path}: {error.message}") from error


def _docker_certificates(directory: str, base: Tls) -> Tls:
    names = sorted(os.listdir(directory))
    ca = tuple(os.path.join(directory, n) for n in names if n.endswith(".crt"))
    client = []
    for name in names:
        if name.endswith(".cert"):
            key = name.removesuffix(".cert") + ".key"
            if key not in names:
                raise NotFound(f"missing key {key} for client certificate {name}")
            client.append((os.path.join(directory, name), os.path.join(directory, key)))
    return replace(base, ca=base.ca + ca, client=base.client + tuple(client))


def parse_hosts(text: str, default: Host, directory: str = "") -> tuple[Host, ...]:
    """The hosts in a ``hosts.toml``, in order, the ``server`` last. Raises InvalidArgument."""
    try:
        tree = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidArgument(str(error)) from error
    mirrors = _table(tree.get("host", {}), "host")
    reader = _Reader(default, directory)
    found = [reader.host(url, _table(entry, url)) for url, entry in mirrors.items()]
    server = tree.get("server", "")
    if not isinstance(server, str):
        raise InvalidArgument("server must be a string")
    last = reader.host(server or default.url, tree)
    return (
        *found,
        replace(last, registry="" if last.host == default.known_as else default.known_as),
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    default: Host
    directory: str

    def host(self, url: str, entry: Mapping[str, object]) -> Host:
        """One host's table; what it does not say is the default's."""
        scheme, name, path = self._place(url, entry.get("override_path", False) is True)
        said = _strings(entry.get("capabilities", []), "capabilities")
        # the default's secrets are for the default's host alone
        own = (scheme, name) == (self.default.scheme, self.default.host)
        return Host(
            scheme,
            name,
            path,
            _capabilities(said) if said else ALL,
            _headers(entry.get("header", {})) or (self.default.headers if own else ()),
            self._tls(entry),
            _seconds(entry.get("dial_timeout"), self.default.dial_timeout),
            self._auth(entry),
        )

    def _place(self, url: str, override: bool) -> tuple[str, str, str]:
        if "://" not in url:
            url = f"{self.default.scheme}://{url}"
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise InvalidArgument(f"unable to parse server {url!r}") from error
        if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
            raise InvalidArgument(f"unable to parse server {url!r}")
        path = parts.path.rstrip("/")
        if not override and not path.endswith("/v2"):
            path += "/v2"
        name = DOCKER_SERVER if parts.netloc == DOCKER_HOST else parts.netloc
        return parts.scheme, name, path

    def _tls(self, entry: Mapping[str, object]) -> Tls:
        base = self.default.tls
        ca = tuple(self._file(name) for name in _strings(entry.get("ca", []), "ca"))
        client = tuple(self._pair(item) for item in _list(entry.get("client", [])))
        skip = entry.get("skip_verify", base.skip_verify)
        if not isinstance(skip, bool):
            raise InvalidArgument("skip_verify must be a boolean")
        return Tls(ca or base.ca, client or base.client, skip)

    def _auth(self, entry: Mapping[str, object]) -> Auth | None:
        if "auth" not in entry:
            return None
        table = _table(entry["auth"], "auth")
        unknown = sorted(set(table) - set(Auth.__slots__))
        wrong = [key for key, value in table.items() if not value or not isinstance(value, str)]
        if unknown or wrong:
            raise InvalidArgument(f"auth: {(unknown or wrong)[0]!r} is unknown or no string")
        said = {key: str(value) for key, value in table.items()}
        if tuple(sorted(said)) not in _AUTHS:
            raise InvalidArgument("auth must be a user and password, a token, a config or a helper")
        return Auth(**{k: self._file(v) if k in _AUTH_FILES else v for k, v in said.items()})

    def _pair(self, item: object) -> tuple[str, str]:
        match item:
            case str():
                return self._file(item), ""
            case [str(certificate)]:
                return self._file(certificate), ""
            case [str(certificate), str(key)]:
                return self._file(certificate), self._file(key) if key else ""
            case _:
                raise InvalidArgument("client must be a certificate or a certificate and key")

    def _file(self, name: str) -> str:
        return os.path.join(self.directory, name)


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _strings(value: object, name: str) -> list[str]:
    items = [item for item in _list(value) if isinstance(item, str)]
    if len(items) != len(_list(value)):
        raise InvalidArgument(f"{name} must be a string or a list of strings")
    return items


def _table(value: object, name: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise InvalidArgument(f"{name!r} must be a table")
    return value


def _capabilities(names: Iterable[str]) -> frozenset[Capability]:
    try:
        return frozenset(Capability(name.lower()) for name in names)
    except ValueError as error:
        raise InvalidArgument(f"unknown capability: {error}") from error


def _headers(value: object) -> tuple[tuple[str, str], ...]:
    table = _table(value, "header")
    return tuple((key, ", ".join(_strings(table[key], f"header {key}"))) for key in table)


def _seconds(value: object, default: float) -> float:
    if value is None:
        return default
    text = value if isinstance(value, str) else ""
    if not text or _DURATION.sub("", text):
        raise InvalidArgument(f"invalid dial_timeout {value!r}")
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(text)) or default
