"""How a shim that is started by command line is told what to do, and says where it listens.

The command line's flags are Go's. What ``start`` prints is in the words of who asks: a bare
address, JSON where MAX_SHIM_VERSION names a version that has it, or a BootstrapResult to a caller
whose standard input is a BootstrapParams.
"""

from __future__ import annotations

import hashlib
import json
import os

from kontti.errors import InvalidArgument
from kontti.wire.messages.google import Any
from kontti.wire.messages.runtime.bootstrap.v1.bootstrap import BootstrapParams, BootstrapResult
from kontti.wire.messages.types.runc.options.oci import Options
from kontti.wire.typeurl import name_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SOCKET_DIR = "/run/containerd/s"
GROUP_ANNOTATIONS = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id")
VERSION = 3
"""Of the Task service; ours is asked for by the names of 2 as well."""
PROTOCOL = "ttrpc"
_TEXTS = ("address", "bundle", "debug-socket", "id", "namespace", "publish-binary", "socket")
_SWITCHES = ("debug", "info", "v", "version")


class Flags:
    """A command line: ``texts`` and ``switches`` by flag, and the ``action`` after them."""

    __slots__ = ("action", "switches", "texts")

    def __init__(self, texts: dict[str, str], switches: set[str], action: str) -> None:
        self.texts = texts
        self.switches = switches
        self.action = action

    def text(self, name: str) -> str:
        """A flag's value, "" where it was not given."""
        return self.texts.get(name, "")


def parse_flags(argv: Sequence[str]) -> Flags:
    """Flags up to the first word that is none; raises InvalidArgument."""
    texts: dict[str, str] = {}
    switches: set[str] = set()
    words = list(argv)
    while words and words[0].startswith("-") and words[0] != "-":
        word = words.pop(0)
        if word == "--":
            break
        name, given, value = word.removeprefix("-").removeprefix("-").partition("=")
        if name in _SWITCHES:
            if not given or value in ("1", "t", "T", "true", "TRUE", "True"):
                switches.add(name)
        elif name not in _TEXTS:
            raise InvalidArgument(f"flag provided but not defined: -{name}")
        elif given:
            texts[name] = value
        elif words:
            texts[name] = words.pop(0)
        else:
            raise InvalidArgument(f"flag needs an argument: -{name}")
    return Flags(texts, switches, words[0] if words else "")


def read_params(data: bytes, id: str, namespace: str) -> BootstrapParams | None:
    """The BootstrapParams in ``data``; None where it is an Any of options, or nothing."""
    try:
        params = BootstrapParams.decode(data)
    except InvalidArgument:
        return None
    # an Any decodes as well: its type's name and its value stand where these do
    return params if (params.instance_id, params.namespace) == (id, namespace) else None


def read_options(data: bytes, params: BootstrapParams | None) -> Options:
    """The runtime's options that ``start`` is given: in the parameters, or as all there is."""
    try:
        packed = [x.value for x in params.extensions] if params is not None else [Any.decode(data)]
    except InvalidArgument:
        packed = []
    for one in packed:
        if one is not None and name_of(one.type_url) == Options.NAME:
            return Options.decode(one.value)
    return Options()


def group_of(bundle: str, id: str) -> str:
    """Whose shim keeps the container: a pod's containers share one (see GROUP_ANNOTATIONS)."""
    try:
        with open(os.path.join(bundle, "config.json"), "rb") as file:
            spec = json.load(file)
    except (OSError, ValueError, RecursionError):
        return id  # the runtime will say what is wrong with it
    annotations = spec.get("annotations") if isinstance(spec, dict) else None
    if isinstance(annotations, dict):
        for name in GROUP_ANNOTATIONS:
            group = annotations.get(name)
            if group and isinstance(group, str):
                return group
    return id


def socket_path(folder: str, daemon: str, namespace: str, group: str) -> str:
    """Where a group's shim listens: a short name, of its own for each daemon and namespace."""
    name = os.path.join(daemon, namespace, group)
    return os.path.join(folder or SOCKET_DIR, hashlib.sha256(name.encode()).hexdigest())


def answer(address: str, params: BootstrapParams | None, environment: Mapping[str, str]) -> bytes:
    """What ``start`` prints."""
    if params is not None:
        result = BootstrapResult(version=VERSION, address=address, protocol=PROTOCOL)
        return result.encode()
    newest = environment.get("MAX_SHIM_VERSION", "")
    version = min(int(newest), VERSION) if newest.isdecimal() else 0
    if version < 2:
        return address.encode()
    plain = {"version": version, "address": address, "protocol": PROTOCOL}
    return json.dumps(plain, separators=(",", ":")).encode()
