"""Making containers from images, and undoing it: snapshot, spec, record."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from kontti.engine.base import Core
from kontti.engine.lookup import COMMAND_LABEL, STOP_SIGNAL_LABEL
from kontti.engine.values import ExecOptions, Options
from kontti.errors import InvalidArgument, NotFound
from kontti.images.graph import find_manifest
from kontti.images.identity import chain_id
from kontti.images.manifest import ImageConfig, read_config
from kontti.images.platforms import default, only
from kontti.linux.mounts import mounted
from kontti.metadata.base import Container, Image
from kontti.namespaces import Scope
from kontti.oci import flags, options, resources
from kontti.oci.base import Context, build, process_of
from kontti.oci.encode import decode, encode
from kontti.oci.security import with_default_seccomp, with_privileged
from kontti.transfer.base import Selection, Unpacking
from kontti.transfer.lease import leased
from kontti.transfer.parts import unpack
from kontti.values import EMPTY, AnyValue, Mount
from kontti.wire.typeurl import SPEC_URL

if TYPE_CHECKING:
    from kontti.oci.base import Option


def make(
    core: Core,
    scope: Scope,
    image: Image,
    command: Sequence[str],
    chosen: Options,
    *,
    labels: Mapping[str, str] = EMPTY,
) -> tuple[Container, list[Mount]]:
    """A container of ``image`` and the mounts of its root; a failure leaves nothing."""
    content = core.stores.content(scope)
    _, manifest = find_manifest(content, image.target, only(default()))
    config = read_config(content, manifest.config)
    id = chosen.name or new_id()
    with leased(core.stores, scope) as held:
        ensure_unpacked(core, held, image, config, chosen.snapshotter)
        snapshots = core.stores.snapshots(held, chosen.snapshotter)
        mounts = snapshots.prepare(id, str(chain_id(config.diff_ids)))
        try:
            spec = make_spec(scope, id, config, command, chosen, mounts)
            record = Container(
                id=id,
                image=image.name,
                runtime=chosen.runtime or core.runtime,
                spec=AnyValue(SPEC_URL, spec),
                snapshotter=chosen.snapshotter,
                snapshot_key=id,
                labels={
                    **chosen.labels,
                    STOP_SIGNAL_LABEL: config.run.stop_signal or "SIGTERM",
                    COMMAND_LABEL: " ".join(json.loads(spec)["process"]["args"])[:1000],
                    **labels,
                },
            )
            return core.stores.containers(held).create(record), mounts
        except BaseException:
            snapshots.remove(id)
            raise


def new_id() -> str:
    """A name for a container that was given none."""
    return secrets.token_hex(6)


def ensure_unpacked(
    core: Core, scope: Scope, image: Image, config: ImageConfig, snapshotter: str
) -> None:
    """Unpack the image into ``snapshotter``, if it is not there."""
    try:
        core.stores.snapshots(scope, snapshotter).stat(str(chain_id(config.diff_ids)))
    except NotFound:
        parts = core.transfer_parts()
        unpack(parts, scope, image.target, Unpacking(snapshotter), Selection())


def make_spec(
    scope: Scope,
    id: str,
    config: ImageConfig,
    command: Sequence[str],
    chosen: Options,
    mounts: list[Mount],
) -> bytes:
    """The OCI spec as JSON."""

    def rootfs() -> AbstractContextManager[str]:
        return mounted(mounts, readonly=True)

    wanted = process_options(config, command, chosen, id) + isolation_options(chosen)
    return encode(build(Context(scope.namespace, id, rootfs), wanted))


def process_options(
    config: ImageConfig, command: Sequence[str], chosen: Options, id: str
) -> list[Option]:
    """What the process is and sees of itself."""
    wanted = [
        resources.with_default_unix_devices(),
        options.with_image_config(config.run, command),
        options.with_env(env_entries(chosen.env)),
        options.with_hostname(chosen.hostname or id),
    ]
    if chosen.cwd:
        wanted.append(options.with_cwd(chosen.cwd))
    if chosen.user:
        wanted += [options.with_user(chosen.user), options.with_additional_gids(chosen.user)]
    if chosen.terminal:
        wanted.append(options.with_tty())
    return wanted


def isolation_options(chosen: Options) -> list[Option]:
    """What the process may see and use of the host."""
    wanted: list[Option] = []
    if chosen.mounts:
        wanted.append(options.with_mounts([flags.parse_mount(bind(m)) for m in chosen.mounts]))
    if chosen.network == "host":
        wanted.append(options.with_host_network())
    elif chosen.network not in ("", "none"):
        raise InvalidArgument(f"network {chosen.network!r}: none and host are known")
    if chosen.read_only:
        wanted.append(options.with_readonly_root())
    if chosen.memory:
        wanted.append(resources.with_memory_limit(chosen.memory))
    if chosen.cpus:
        wanted.append(resources.with_cpus(chosen.cpus))
    wanted.append(with_privileged() if chosen.privileged else with_default_seccomp())
    return wanted


def exec_process(
    scope: Scope, record: Container, pid: int, command: Sequence[str], chosen: ExecOptions
) -> bytes:
    """The OCI process of ``command`` in a container whose first process is ``pid``, as JSON."""
    if not command:
        raise InvalidArgument("exec needs a command")
    spec = decode(record.spec.value) if record.spec else {}
    process_of(spec)["terminal"] = False
    wanted = [options.with_args(command), options.with_env(env_entries(chosen.env))]
    if chosen.cwd:
        wanted.append(options.with_cwd(chosen.cwd))
    if chosen.user:
        wanted += [options.with_user(chosen.user), options.with_additional_gids(chosen.user)]
    if chosen.terminal:
        wanted.append(options.with_tty())
    root = f"/proc/{pid}/root"
    context = Context(scope.namespace, record.id, lambda: nullcontext(root))
    return json.dumps(process_of(build(context, wanted, spec))).encode()


def env_entries(env: Mapping[str, str]) -> list[str]:
    """``name=value`` of each."""
    return [f"{name}={value}" for name, value in env.items()]


def bind(text: str) -> str:
    """``source:target[:ro]`` as a mount flag of ctr; raises InvalidArgument."""
    source, _, rest = text.partition(":")
    target, _, mode = rest.partition(":")
    if not source or not target.startswith("/") or mode not in ("", "ro", "rw"):
        raise InvalidArgument(f"mount {text!r} is not source:target or source:target:ro")
    return f"type=bind,src={os.path.abspath(source)},dst={target},options=rbind:{mode or 'rw'}"


def unmake(core: Core, scope: Scope, container: Container) -> None:
    """Remove a container's record and snapshot."""
    core.stores.containers(scope).delete(container.id)
    if container.snapshot_key:
        try:
            snapshots = core.stores.snapshots(scope, container.snapshotter)
            snapshots.remove(container.snapshot_key)
        except NotFound:
            return
