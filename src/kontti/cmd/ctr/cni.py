"""A container's network by CNI plugins, as ``ctr run --cni`` sets it up.

https://www.cni.dev/docs/spec/. The first network in the configuration's directory is used. What was
made is noted where libcni notes it, and is taken away by that note.
"""

from __future__ import annotations

import base64
import json
import os
import shutil

from kontti.errors import Error, InvalidArgument, NotFound
from kontti.linux import fs, process
from kontti.wire.messages.google import Any

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    Json = dict[str, object]

EXTENSION = "ctr.cni-containerd.metadata"
"""Says in a container's record that it has such a network."""
EXTENSION_URL = "github.com/containerd/containerd/v2/cmd/ctr/commands/NetworkMetaData"
INTERFACE = "eth0"
CACHE_DIR = "/var/lib/cni/results"
CONF_DIR = "/etc/cni/net.d"
PLUGIN_DIRS = "/opt/cni/bin:/usr/lib/cni"
SECONDS = 60.0
MAX_CONF = 1 << 20
_ENDINGS = (".conflist", ".conf", ".json")


def extension() -> Any:
    """What EXTENSION stands for."""
    return Any(type_url=EXTENSION_URL, value=b'{"EnableCni":true}')


def wanted(extensions: Mapping[str, Any]) -> bool:
    """Whether a container's record says that it has a network."""
    found = extensions.get(EXTENSION)
    return found is not None and b'"EnableCni":true' in found.value.replace(b" ", b"")


def load(folder: str = "") -> Json:
    """The first network of a directory, as a list of plugins; raises NotFound, InvalidArgument."""
    folder = folder or os.environ.get("NETCONFPATH", CONF_DIR)
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(_ENDINGS))
    except OSError:
        names = []
    if not names:
        raise NotFound(f"no network config found in {folder}: cni plugin not initialized")
    path = os.path.join(folder, names[0])
    try:
        with open(path, "rb") as file:
            plain = json.loads(file.read(MAX_CONF))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"cni config {path}: {error}") from None
    if isinstance(plain, dict) and "plugins" not in plain:
        plain = {**_common(plain), "plugins": [plain]}
    return checked(plain, path)


def checked(plain: object, what: str) -> Json:
    """``plain`` as a network; raises InvalidArgument where it is none."""
    plugins = plain.get("plugins") if isinstance(plain, dict) else None
    if not isinstance(plain, dict) or not isinstance(plugins, list) or not plugins:
        raise InvalidArgument(f"cni config {what}: no plugins")
    kinds = [plugin.get("type") if isinstance(plugin, dict) else None for plugin in plugins]
    names = [plain.get("name"), *kinds]
    if not all(isinstance(name, str) and name and "/" not in name for name in names):
        raise InvalidArgument(f"cni config {what}: network and plugins need names")
    return plain


def _common(network: Json) -> Json:
    return {key: network[key] for key in ("cniVersion", "name") if key in network}


class Attachment:
    """A container, by ``id`` of its own on the host, and where plugins are."""

    def __init__(self, id: str, cache: str = CACHE_DIR) -> None:
        self._id = id
        self._cache = cache
        self._path = os.environ.get("CNI_PATH", PLUGIN_DIRS)

    def add(self, network: Json, netns: str) -> None:
        """Put the network namespace ``netns`` into a network; a failure leaves nothing."""
        result: object = None
        try:
            for plugin in _plugins(network):
                result = self._call("ADD", network, plugin, netns, result) or result
            self._note(network, netns, result)
        except BaseException:
            self._delete(network, netns, result)
            raise

    def remove(self) -> None:
        """Take the container out of its networks; one that is in none is no error."""
        try:
            names = os.listdir(self._cache)
        except OSError:
            return
        for name in names:
            if not name.endswith(f"-{self._id}-{INTERFACE}"):
                continue
            path = os.path.join(self._cache, name)
            note = _read_note(path)
            if note.get("containerId") != self._id:
                continue
            network = checked(json.loads(base64.b64decode(str(note.get("config", "")))), path)
            for problem in self._delete(network, "", note.get("result")):
                raise problem
            os.unlink(path)

    def _delete(self, network: Json, netns: str, result: object) -> list[Error]:
        problems = []
        for plugin in reversed(_plugins(network)):
            try:
                self._call("DEL", network, plugin, netns, result)
            except Error as problem:
                problems.append(problem)
        return problems

    def _note(self, network: Json, netns: str, result: object) -> None:
        os.makedirs(self._cache, mode=0o700, exist_ok=True)
        note = {
            "kind": "cniCacheV1",
            "containerId": self._id,
            "config": base64.b64encode(json.dumps(network).encode()).decode(),
            "ifName": INTERFACE,
            "networkName": network["name"],
            "netns": netns,
            "result": result,
        }
        path = os.path.join(self._cache, f"{network['name']}-{self._id}-{INTERFACE}")
        fs.atomic_write(path, json.dumps(note).encode(), 0o600)

    def _call(
        self, command: str, network: Json, plugin: Json, netns: str, previous: object
    ) -> object:
        kind = str(plugin["type"])
        binary = shutil.which(kind, path=self._path)
        if binary is None:
            raise NotFound(f'failed to find plugin "{kind}" in path [{self._path}]')
        config = {**plugin, **_common(network)}
        if previous is not None:
            config["prevResult"] = previous
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": self._id,
            "CNI_NETNS": netns,
            "CNI_IFNAME": INTERFACE,
            "CNI_PATH": self._path,
        }
        try:
            done = process.run(
                [binary], timeout=SECONDS, env=environment, input=json.dumps(config).encode()
            )
        except (OSError, TimeoutError) as error:
            raise Error(f'plugin type="{kind}" failed ({command.lower()}): {error}') from None
        if done.returncode:
            why = _complaint(done.stdout) or done.stderr.decode(errors="replace").strip()
            raise Error(f'plugin type="{kind}" failed ({command.lower()}): {why}')
        return json.loads(done.stdout) if command == "ADD" and done.stdout.strip() else None


def _plugins(network: Json) -> list[Json]:
    plugins = network["plugins"]
    return plugins if isinstance(plugins, list) else []


def _complaint(printed: bytes) -> str:
    try:
        plain = json.loads(printed)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(plain, dict):
        return ""
    return "; ".join(str(plain[key]) for key in ("msg", "details") if plain.get(key))


def _read_note(path: str) -> Json:
    try:
        with open(path, "rb") as file:
            plain = json.loads(file.read(MAX_CONF))
    except (OSError, ValueError, RecursionError):
        return {}
    return plain if isinstance(plain, dict) else {}
