"""How an engine in this process speaks to registries."""

from __future__ import annotations

from kontti.registry.auth import Credentials, CredentialSource, no_credentials
from kontti.registry.credentials import docker_config, docker_config_path, only_for
from kontti.registry.hosts import HOSTS_DIRECTORIES, HostOptions, configured
from kontti.registry.reference import Reference
from kontti.registry.session import Session


def open_session(
    name: str = "", *, plain_http: bool, user: str = "", password: str = ""
) -> Session:
    """A session for the registry of ``name``, and for others without a user.

    A user given is for that registry alone; else hosts.toml's credentials, then Docker's.
    """
    hosts = configured(HostOptions(plain_http=plain_http, directories=HOSTS_DIRECTORIES))
    given: CredentialSource = no_credentials
    if user:
        given = only_for(Reference.parse(name).host, Credentials(user, password))
    return Session(hosts, given, fallback=docker_config(docker_config_path()))
