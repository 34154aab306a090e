"""From flags to a container's record: its snapshot, its OCI spec, its runtime."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from functools import partial

from kontti.client.client import Client
from kontti.client.content import RemoteContent
from kontti.client.convert import descriptor_from_wire
from kontti.client.stores import RemoteLeases, RemoteSnapshotter
from kontti.cmd.ctr.grammar import Call, UsageError
from kontti.cmd.ctr.images import get
from kontti.cmd.ctr.lookup import STOP_SIGNAL_LABEL
from kontti.cmd.ctr.runtimes import runtime_options
from kontti.cmd.ctr.session import CONTAINERS, DAY, expiring, key_values, namespace_of
from kontti.errors import InvalidArgument, NotFound, Unimplemented
from kontti.images.graph import find_manifest
from kontti.images.identity import chain_id
from kontti.images.manifest import ImageConfig, read_config
from kontti.images.platforms import default, only, parse
from kontti.linux.mounts import mounted
from kontti.namespaces import Scope
from kontti.oci import flags, options, resources, security
from kontti.oci.accounts import AccountSource, resolve_user
from kontti.oci.base import Context, build
from kontti.oci.encode import decode, encode
from kontti.wire.messages.google import Any
from kontti.wire.messages.services.containers.v1.containers import (
    Container,
    ContainerRuntime,
    CreateContainerRequest,
    CreateContainerResponse,
)
from kontti.wire.typeurl import SPEC_URL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from kontti.oci.base import Option
    from kontti.oci.spec import IdMapping

MAX_LABEL = 4096
UNSUPPORTED = ("gpus", "blockio-config-file", "blockio-class")


def check_arguments(call: Call) -> None:
    """Whether what is to be run was named; raises UsageError, InvalidArgument."""
    if call.str("config"):
        call.arg(0, "container id must be provided")
        if call.args[1:]:
            raise InvalidArgument("with spec config file, only container id should be provided")
        return
    call.arg(0, "image ref must be provided")
    call.arg(1, "container id must be provided")
    check_flags(call)


def check_flags(call: Call) -> None:
    """Flags that exclude each other, and those that nothing here stands behind.

    Raises UsageError, Unimplemented.
    """
    if call.flags.get("privileged-without-host-devices") and not call.bool("privileged"):
        raise UsageError(
            "can't use 'privileged-without-host-devices' without 'privileged' specified"
        )
    if call.str("apparmor-profile") and call.str("apparmor-default-profile"):
        raise UsageError("apparmor-profile conflicts with apparmor-default-profile")
    for name in UNSUPPORTED:
        if name in call.given:
            raise Unimplemented(f"flag --{name}")


def create_container(client: Client, call: Call, *, run: bool) -> Container:
    """Make the container that the flags and arguments describe; a failure leaves nothing."""
    if call.str("config"):
        return create_from_config(client, call)
    # what is made before the container's record is there is nobody's: a lease keeps it meanwhile
    leases = RemoteLeases(client)
    lease = leases.create("", expiring(DAY))
    try:
        with client.with_lease(lease.id):
            return create_leased(client, call, run=run)
    finally:
        leases.delete(lease.id)


def snapshot_of(client: Client, call: Call, name: str, parent: str) -> tuple[str, dict[str, str]]:
    """Parent and labels of a container's snapshot: owners are mapped for a user namespace."""
    labels = key_values(call.list("snapshotter-label"))
    uids, gids = id_mappings(call)
    if not (uids and gids):
        return parent, labels
    from kontti.cmd.ctr import remap

    mapping = remap.Mapping(uids, gids)
    if not call.bool("remap-labels"):
        return remap.remapped(client, name, parent, mapping), labels
    return remap.parent_for_labels(client, name, parent, mapping), {**labels, **mapping.labels()}


def id_mappings(call: Call) -> tuple[list[IdMapping], list[IdMapping]]:
    """The flags' user and group mappings; raises InvalidArgument."""
    uids, gids = (
        [flags.parse_id_mapping(text) for text in given] if isinstance(given, list) else []
        for given in (call.flags.get("uidmap"), call.flags.get("gidmap"))
    )
    return uids, gids


def container_labels(
    call: Call, config: ImageConfig, image_labels: Mapping[str, str]
) -> dict[str, str]:
    """The image's labels, but for those too long to be one, and the flags'."""
    found = {**config.run.labels, **image_labels}
    labels = {k: v for k, v in found.items() if len(k) + len(v) <= MAX_LABEL}
    labels.update(key_values(call.list("label")))
    return {STOP_SIGNAL_LABEL: stop_signal(config), **labels}


def create_leased(client: Client, call: Call, *, run: bool) -> Container:
    """Make snapshot and record."""
    image_name = call.arg(0, "image ref must be provided")
    id = call.arg(1, "container id must be provided")
    if call.bool("rootfs"):
        spec = make_spec(call, id, call.args[2:], None, None, run=run)
        spec_root = os.path.abspath(image_name)
        return record(client, call, Container(id=id, spec=_packed(spec, spec_root)))
    image = get(client, image_name)
    config = image_config(client, call, descriptor_from_wire(image.target))
    name = call.str("snapshotter") or "overlayfs"
    parent = unpacked(client, call, name, config, image_name)
    store = RemoteSnapshotter(client, name)
    parent, snapshot_labels = snapshot_of(client, call, name, parent)
    mounts = store.prepare(id, parent, snapshot_labels)
    try:
        rootfs = partial(mounted, mounts, readonly=True)
        spec = make_spec(call, id, call.args[2:], config, rootfs, run=run)
        labels = container_labels(call, config, image.labels)
        made = Container(
            id=id,
            image=image_name,
            labels=labels,
            snapshotter=name,
            snapshot_key=id,
            spec=_packed(spec, ""),
        )
        return record(client, call, made)
    except BaseException:
        store.remove(id)
        raise


def create_from_config(client: Client, call: Call) -> Container:
    """A container of a spec in a file; its one argument is the id."""
    id = call.arg(0, "container id must be provided")
    with open(call.str("config"), "rb") as file:
        spec = encode(decode(file.read()))
    return record(client, call, Container(id=id, spec=Any(type_url=SPEC_URL, value=spec)))


def record(client: Client, call: Call, container: Container) -> Container:
    """Have the daemon keep the container."""
    container.labels.update(key_values(call.list("label")))
    if call.flags.get("cni"):
        from kontti.cmd.ctr import cni

        container.extensions[cni.EXTENSION] = cni.extension()
    container.sandbox = call.str("sandbox")
    container.runtime = ContainerRuntime(name=call.str("runtime"), options=runtime_options(call))
    request = CreateContainerRequest(container=container)
    answer = client.unary(CONTAINERS + "Create", request, CreateContainerResponse)
    return answer.container or container


def stop_signal(config: ImageConfig) -> str:
    """The image's own, or SIGTERM."""
    return config.run.stop_signal or "SIGTERM"


def image_config(client: Client, call: Call, target: object) -> ImageConfig:
    """The configuration of the image's manifest for the platform that is wanted."""
    from kontti.values import Descriptor

    if not isinstance(target, Descriptor):
        raise TypeError(target)
    content = RemoteContent(client)
    wanted = str(call.flags.get("platform") or "")
    matcher = only(parse(wanted) if wanted else default())
    _, manifest = find_manifest(content, target, matcher)
    return read_config(content, manifest.config)


def unpacked(
    client: Client, call: Call, snapshotter: str, config: ImageConfig, image_name: str
) -> str:
    """The image's chain id in the snapshotter, unpacked now where it is not there."""
    from kontti.client.stores import RemoteImages, RemoteStores
    from kontti.transfer.base import Selection, Unpacking
    from kontti.transfer.parts import Parts, unpack

    chain = str(chain_id(config.diff_ids))
    try:
        RemoteSnapshotter(client, snapshotter).stat(chain)
    except NotFound:
        stores = RemoteStores(client.address)
        try:
            target = RemoteImages(client).get(image_name).target
            scope = Scope.of(namespace_of(call))
            parts = Parts(stores, stores.applier)
            unpacking = Unpacking(snapshotter, sync_fs=bool(call.flags.get("sync-fs")))
            unpack(parts, scope, target, unpacking, Selection())
        finally:
            stores.close()
    return chain


def make_spec(
    call: Call,
    id: str,
    args: list[str],
    config: ImageConfig | None,
    rootfs: object,
    *,
    run: bool,
) -> bytes:
    """The OCI spec as JSON."""
    context = Context(namespace_of(call), id, rootfs)  # type: ignore[arg-type]
    chosen = [
        *process_options(call, args, config),
        *namespace_options(call),
        *security_options(call),
        *resource_options(call, run=run),
    ]
    return encode(build(context, chosen))


def process_options(call: Call, args: list[str], config: ImageConfig | None) -> list[Option]:
    """What runs, with which environment, and what is around it."""
    chosen: list[Option] = []
    if call.str("env-file"):
        chosen.append(options.with_env_file(call.str("env-file")))
    chosen.append(options.with_env(call.list("env")))
    chosen.append(options.with_image_config(config.run) if config else options.with_default_path())
    if config is not None:
        # the flags' own environment goes over the image's
        chosen.append(options.with_env(call.list("env")))
    if args:
        chosen.append(options.with_args(args))
    return chosen + surroundings(call)


def surroundings(call: Call) -> list[Option]:
    """Where the process runs, as whom, and what it sees."""
    chosen: list[Option] = []
    if call.str("cwd"):
        chosen.append(options.with_cwd(call.str("cwd")))
    if call.str("user"):
        chosen.append(options.with_user(call.str("user")))
        chosen.append(options.with_additional_gids(call.str("user")))
    if call.bool("tty"):
        chosen.append(options.with_tty())
    if call.str("hostname"):
        chosen.append(options.with_hostname(call.str("hostname")))
    if call.list("mount"):
        chosen.append(options.with_mounts([flags.parse_mount(m) for m in call.list("mount")]))
    if call.bool("read-only"):
        chosen.append(options.with_readonly_root())
    # labels are told to the runtime too
    annotations = key_values([*call.list("annotation"), *call.list("label")])
    if annotations:
        chosen.append(options.with_annotations(annotations))
    return chosen


def namespace_options(call: Call) -> list[Option]:
    """Which namespaces are shared, joined or mapped."""
    chosen: list[Option] = []
    if call.bool("net-host"):
        chosen.append(options.with_host_network())
        chosen.append(options.with_env([f"HOSTNAME={os.uname().nodename}"]))
    for text in call.list("with-ns"):
        joined = flags.parse_namespace(text)
        chosen.append(options.with_namespace(joined["type"], joined.get("path", "")))
    if call.str("rootfs-propagation"):
        chosen.append(options.with_rootfs_propagation(call.str("rootfs-propagation")))
    uids, gids = id_mappings(call)
    if uids and gids:
        chosen.append(options.with_user_namespace(uids, gids))
    return chosen


def security_options(call: Call) -> list[Option]:
    """What the process may do."""
    chosen: list[Option] = []
    if call.bool("privileged"):
        chosen.append(security.with_privileged())
        if not call.flags.get("privileged-without-host-devices"):
            chosen.append(resources.with_host_devices())
    if call.list("cap-add"):
        chosen.append(security.with_added_capabilities(call.list("cap-add")))
    if call.list("cap-drop"):
        chosen.append(security.with_dropped_capabilities(call.list("cap-drop")))
    if call.bool("allow-new-privs"):
        chosen.append(security.with_new_privileges())
    if call.str("seccomp-profile"):
        if not call.bool("seccomp"):
            raise InvalidArgument("seccomp must be set to true, if using a custom seccomp-profile")
        chosen.append(security.with_seccomp_profile(call.str("seccomp-profile")))
    elif call.bool("seccomp"):
        chosen.append(security.with_default_seccomp())
    profile = call.str("apparmor-profile") or call.str("apparmor-default-profile")
    if profile:
        chosen.append(security.with_apparmor_profile(profile))
    return chosen


def resource_options(call: Call, *, run: bool) -> list[Option]:
    """What it may use."""
    chosen: list[Option] = [resources.with_default_unix_devices()]
    if call.int("memory-limit"):
        chosen.append(resources.with_memory_limit(call.int("memory-limit")))
    quota, period = call.int("cpu-quota"), call.int("cpu-period")
    if quota != -1 or period:
        cpu = {"quota": quota} if quota != -1 else {}
        chosen.append(resources.with_cpu({**cpu, **({"period": period} if period else {})}))  # type: ignore[typeddict-item]
    chosen += [resources.with_device(path) for path in call.list("device")]
    if call.str("rdt-class"):
        chosen.append(resources.with_rdt(call.str("rdt-class")))
    return chosen + (run_options(call) if run else [])


def run_options(call: Call) -> list[Option]:
    """What only ``run`` has flags for."""
    chosen: list[Option] = []
    if call.float("cpus"):
        if "cpu-quota" in call.given or "cpu-period" in call.given:
            raise UsageError("cpus and quota/period should be used separately")
        chosen.append(resources.with_cpus(call.float("cpus")))
    if call.int("cpu-shares") > 0:
        chosen.append(resources.with_cpu({"shares": call.int("cpu-shares")}))
    if call.str("cpuset-cpus"):
        chosen.append(resources.with_cpu({"cpus": call.str("cpuset-cpus")}))
    if call.str("cpuset-mems"):
        chosen.append(resources.with_cpu({"mems": call.str("cpuset-mems")}))
    if call.str("rlimit-nofile"):
        limit = flags.parse_rlimit("RLIMIT_NOFILE", call.str("rlimit-nofile"))
        chosen.append(resources.with_rlimit(limit))
    if "cgroup" in call.given:
        chosen.append(resources.with_cgroup(call.str("cgroup")))
    return chosen


def _packed(spec: bytes, root: str) -> Any:
    if root:
        decoded = decode(spec)
        options.with_root_path(root)(Context("", ""), decoded)
        spec = encode(decoded)
    return Any(type_url=SPEC_URL, value=spec)


def user_in_snapshot(client: Client, snapshotter: str, key: str, user: str) -> dict[str, object]:
    """``process.user`` for a user by name or number, looked up in a container's own files."""
    source: AccountSource
    if snapshotter and key:
        mounts = RemoteSnapshotter(client, snapshotter).mounts(key)

        def rootfs() -> AbstractContextManager[str]:
            return mounted(mounts, readonly=True)

        source = AccountSource(rootfs)
    else:
        source = AccountSource(None)
    return {**resolve_user(user, source)}
