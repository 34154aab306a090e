"""The environment's proxies, as Go programs read them: HTTP_PROXY, HTTPS_PROXY and NO_PROXY."""

from __future__ import annotations

import ipaddress
import os
import re
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

from kontti.errors import InvalidArgument

_SCHEMES = ("http", "https")
_PORTS = {"http": 80, "https": 443}


def proxy_for(url: str) -> str:
    """The proxy that the environment wants for ``url``, or "". Loopback hosts never have one.

    Raises InvalidArgument for a proxy of another kind than HTTP.
    """
    parts = urlsplit(url)
    proxy, host = getproxies_environment().get(parts.scheme, ""), parts.hostname or ""
    if not proxy or is_loopback(host):
        return ""
    rules = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
    if bypassed(host, parts.port or _PORTS.get(parts.scheme, 0), rules):
        return ""
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    if urlsplit(proxy).scheme not in _SCHEMES:
        raise InvalidArgument(f"unsupported proxy {proxy.partition('://')[0]!r}")
    return proxy


def is_loopback(host: str) -> bool:
    """Whether ``host``, without a port, is this machine by its name."""
    name = host.strip("[]")
    return name in ("localhost", "::1") or re.fullmatch(r"127(\.\d{1,3}){3}", name) is not None


def bypassed(host: str, port: int, rules: str) -> bool:
    """Whether a rule of NO_PROXY names this host: a name, address, network, or ``*``.

    ``a.org`` stands for its subdomains as well, ``.a.org`` and ``*.a.org`` for these alone.
    """
    return any(_matches(host.lower(), port, rule.strip().lower()) for rule in rules.split(","))


def _matches(host: str, port: int, rule: str) -> bool:
    if rule == "*":
        return True
    name, colon, wanted = rule.rpartition(":")
    if colon and wanted.isdecimal() and (":" not in name or name.endswith("]")):
        if int(wanted) != port:
            return False
        rule = name
    rule = rule.strip("[]").removeprefix("*")
    address = _address(host)
    if address is not None:
        return _in_network(address, rule)
    return bool(rule) and (host == rule or host.endswith("." + rule.removeprefix(".")))


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _in_network(address: ipaddress.IPv4Address | ipaddress.IPv6Address, rule: str) -> bool:
    try:
        return address in ipaddress.ip_network(rule, strict=False)
    except (ValueError, TypeError):
        return False
