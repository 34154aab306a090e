"""The {registry} flags as a session with registries."""

from __future__ import annotations

import getpass
import sys

from kontti.cmd.ctr.grammar import Call
from kontti.registry.auth import Credentials, CredentialSource, no_credentials
from kontti.registry.credentials import docker_config, docker_config_path, either, only_for
from kontti.registry.hosts import HOSTS_DIRECTORIES, HostOptions, configured
from kontti.registry.http import Tls
from kontti.registry.pool import Pool
from kontti.registry.reference import Reference
from kontti.registry.session import Session, TransportFactory
from kontti.registry.trace import Traced
from kontti.transfer.base import Selection


def session(call: Call) -> Session:
    """A session as the flags say; loopback hosts with a port are plain HTTP, as in the original."""
    client = ((call.str("tlscert"), call.str("tlskey")),) if call.str("tlscert") else ()
    tls = Tls(
        ca=(call.str("tlscacert"),) if call.str("tlscacert") else (),
        client=client,
        skip_verify=call.bool("skip-verify"),
    )
    directories = (call.str("hosts-dir"),) if call.str("hosts-dir") else HOSTS_DIRECTORIES
    options = HostOptions(
        plain_http=call.bool("plain-http"), loopback_http=True, tls=tls, directories=directories
    )
    return Session(
        configured(options),
        credentials(call),
        transports=transports(call),
        fallback=docker_config(docker_config_path()),
    )


def user_or_docker(call: Call) -> CredentialSource:
    """The credentials that the flags give, then those of Docker's configuration."""
    return either(credentials(call), docker_config(docker_config_path()))


def credentials(call: Call) -> CredentialSource:
    """The user and password that the flags give, asked for where only a user is given.

    They are for the registry of the command's reference, and for no mirror of it.
    """
    user, separator, secret = call.str("user").partition(":")
    if call.str("refresh"):
        user, secret = "", call.str("refresh")
    elif not user:
        return no_credentials
    elif not separator:
        secret = getpass.getpass("Password: ")
    registry = Reference.parse(call.args[0]).host if call.args else ""
    return only_for(registry, Credentials(user, secret))


def transports(call: Call) -> TransportFactory:
    """Pools, told of on stderr where a flag asks for it."""
    if not call.bool("http-dump") and not call.bool("http-trace"):
        return Pool

    def make(tls: Tls, connect_seconds: float) -> Traced:
        return Traced(Pool(tls, connect_seconds), _to_stderr, headers=call.bool("http-dump"))

    return make


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def selection(call: Call) -> Selection:
    """The platforms that the flags choose."""
    from kontti.images.platforms import parse

    given = call.flags.get("platform")
    names = given if isinstance(given, list) else [str(given)] if given else []
    return Selection(
        platforms=tuple(parse(name) for name in names),
        all_platforms=bool(call.flags.get("all-platforms")),
    )
