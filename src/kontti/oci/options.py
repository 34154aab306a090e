"""Options for the process, its root, mounts and namespaces."""

from __future__ import annotations

from kontti.errors import InvalidArgument
from kontti.oci import flags
from kontti.oci.accounts import resolve_user, supplementary_groups
from kontti.oci.base import linux_of, process_of
from kontti.oci.default import PATH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Protocol

    from kontti.oci.base import Context, Option
    from kontti.oci.spec import IdMapping, Mount, Namespace, Spec

    class ImageRun(Protocol):
        """What an image's config says of how to run it."""

        @property
        def user(self) -> str: ...
        @property
        def env(self) -> Sequence[str]: ...
        @property
        def entrypoint(self) -> Sequence[str]: ...
        @property
        def cmd(self) -> Sequence[str]: ...
        @property
        def working_dir(self) -> str: ...


_KINDS = ("private", "shared", "slave", "unbindable")
_PROPAGATIONS = (*_KINDS, *(f"r{kind}" for kind in _KINDS))


def with_image_config(image: ImageRun, args: Sequence[str] = ()) -> Option:
    """The image's environment, command (``args`` in place of its own), directory and user."""

    def option(context: Context, spec: Spec) -> None:
        process = process_of(spec)
        process["env"] = flags.merge_env(list(image.env) or [PATH], process.get("env", []))
        process["args"] = [*image.entrypoint, *(args or image.cmd)]
        process["cwd"] = image.working_dir or "/"
        if image.user:
            with_user(image.user)(context, spec)
            with_additional_gids(str(process["user"]["uid"]))(context, spec)
        else:
            # root's further groups count even where the image names no user
            with_additional_gids("root")(context, spec)

    return option


def with_user(user: str) -> Option:
    """``user[:group]``, by name or number, as the image knows them."""

    def option(context: Context, spec: Spec) -> None:
        found = resolve_user(user, context.accounts)
        process_of(spec)["user"] = {**found, "additionalGids": [found["gid"]]}

    return option


def with_additional_gids(user: str) -> Option:
    """The groups that ``user`` is a member of in the image, beside the one the process has."""

    def option(context: Context, spec: Spec) -> None:
        groups = supplementary_groups(user, context.accounts)
        owner = process_of(spec).setdefault("user", {"uid": 0, "gid": 0})
        owner["additionalGids"] = list(dict.fromkeys((owner.get("gid", 0), *groups)))

    return option


def with_env(entries: Sequence[str]) -> Option:
    """``KEY=value`` set, ``KEY`` unset."""

    def option(_context: Context, spec: Spec) -> None:
        process = process_of(spec)
        process["env"] = flags.merge_env(process.get("env", []), list(entries))

    return option


def with_default_path() -> Option:
    """The usual PATH, where there is none: for a root that no image config speaks for."""

    def option(_context: Context, spec: Spec) -> None:
        process = process_of(spec)
        process["env"] = flags.merge_env([PATH], process.get("env", []))

    return option


def with_env_file(path: str) -> Option:
    """The entries of a file of ``KEY=value`` lines. Raises OSError at once if there is none."""
    return with_env(flags.read_env_file(path))


def with_args(args: Sequence[str]) -> Option:
    """The whole command line."""

    def option(_context: Context, spec: Spec) -> None:
        process_of(spec)["args"] = list(args)

    return option


def with_cwd(path: str) -> Option:
    """The working directory."""

    def option(_context: Context, spec: Spec) -> None:
        process_of(spec)["cwd"] = path

    return option


def with_tty(height: int = 0, width: int = 0) -> Option:
    """A terminal, of a size if one is given."""

    def option(context: Context, spec: Spec) -> None:
        process = process_of(spec)
        process["terminal"] = True
        process.setdefault("env", []).append("TERM=xterm")
        if height and width:
            process["consoleSize"] = {"height": height, "width": width}

    return option


def with_hostname(name: str) -> Option:
    """The name in the container's uts namespace."""

    def option(_context: Context, spec: Spec) -> None:
        spec["hostname"] = name

    return option


def with_annotations(annotations: Mapping[str, str]) -> Option:
    """Annotations beside those that are there."""

    def option(_context: Context, spec: Spec) -> None:
        spec.setdefault("annotations", {}).update(annotations)

    return option


def with_root_path(path: str) -> Option:
    """The root file system's directory."""

    def option(_context: Context, spec: Spec) -> None:
        spec.setdefault("root", {})["path"] = path

    return option


def with_readonly_root() -> Option:
    """A root that cannot be written to."""

    def option(_context: Context, spec: Spec) -> None:
        spec.setdefault("root", {})["readonly"] = True

    return option


def with_mounts(mounts: Sequence[Mount]) -> Option:
    """Further mounts, after those that are there."""

    def option(_context: Context, spec: Spec) -> None:
        spec.setdefault("mounts", []).extend(mounts)

    return option


def with_host_network() -> Option:
    """The host's network, and its /etc/hosts and /etc/resolv.conf."""
    binds: list[Mount] = [
        {"destination": path, "type": "bind", "source": path, "options": ("rbind", "ro")}
        for path in ("/etc/hosts", "/etc/resolv.conf")
    ]

    def option(context: Context, spec: Spec) -> None:
        with_host_namespace("network")(context, spec)
        with_mounts(binds)(context, spec)

    return option


def with_host_namespace(type: str) -> Option:
    """The host's namespace of ``type`` in place of one of the container's own."""
    flags.check_namespace_type(type)

    def option(_context: Context, spec: Spec) -> None:
        linux = linux_of(spec)
        linux["namespaces"] = [n for n in linux.get("namespaces", []) if n.get("type") != type]

    return option


def with_namespace(type: str, path: str = "") -> Option:
    """A namespace of ``type``: the one at ``path``, or a new one."""
    flags.check_namespace_type(type)
    wanted: Namespace = {"type": type, "path": path} if path else {"type": type}

    def option(_context: Context, spec: Spec) -> None:
        present = linux_of(spec).setdefault("namespaces", [])
        for index, namespace in enumerate(present):
            if namespace.get("type") == type:
                present[index] = wanted
                return
        present.append(wanted)

    return option


def with_user_namespace(uids: Sequence[IdMapping], gids: Sequence[IdMapping]) -> Option:
    """A user namespace with these mappings."""

    def option(_context: Context, spec: Spec) -> None:
        linux = linux_of(spec)
        present = linux.setdefault("namespaces", [])
        if all(namespace.get("type") != "user" for namespace in present):
            present.append({"type": "user"})
        linux.setdefault("uidMappings", []).extend(uids)
        linux.setdefault("gidMappings", []).extend(gids)

    return option


def with_rootfs_propagation(propagation: str) -> Option:
    """How mounts travel between the root and the host; raises InvalidArgument."""
    if propagation not in _PROPAGATIONS:
        raise InvalidArgument(f"rootfs propagation {propagation!r:.40} is not known")

    def option(_context: Context, spec: Spec) -> None:
        linux_of(spec)["rootfsPropagation"] = propagation

    return option
