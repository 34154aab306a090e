"""Checkpoints as images: ``ctr tasks checkpoint``, ``ctr containers checkpoint`` and ``restore``.

A checkpoint is an index of what was kept: the task's state and spec, the runtime's options, the
writable layer, the image. Its annotations name image, snapshotter and runtime.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace

from kontti.client.content import RemoteContent
from kontti.client.convert import descriptor_from_wire, descriptor_to_wire
from kontti.client.stores import RemoteApplier, RemoteImages, RemoteLeases, RemoteSnapshotter
from kontti.cmd.ctr.grammar import Call
from kontti.cmd.ctr.lookup import STATUSES, container, task
from kontti.cmd.ctr.output import error
from kontti.cmd.ctr.running import Run, clean_up, create_task, follow, wants_terminal
from kontti.cmd.ctr.session import CONTAINERS, DAY, DIFF, TASKS, connect, expiring
from kontti.cmd.ctr.snapshots import views
from kontti.errors import AlreadyExists, Error, NotFound
from kontti.images.documents import dump_descriptor, dumps
from kontti.images.graph import GC_REF, find_manifest
from kontti.images.identity import chain_id
from kontti.images.manifest import Index, read_config, read_document, read_index
from kontti.images.media_types import OCI_INDEX
from kontti.images.platforms import default, only
from kontti.metadata.base import Image
from kontti.values import Descriptor
from kontti.wire.messages.google import Any, Empty
from kontti.wire.messages.services.containers.v1.containers import (
    Container,
    ContainerRuntime,
    CreateContainerRequest,
    CreateContainerResponse,
)
from kontti.wire.messages.services.diff.v1.diff import DiffRequest, DiffResponse
from kontti.wire.messages.services.tasks.v1.tasks import (
    CheckpointTaskRequest,
    CheckpointTaskResponse,
    PauseTaskRequest,
    ResumeTaskRequest,
)
from kontti.wire.messages.types.runc.options.oci import CheckpointOptions
from kontti.wire.typeurl import pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from kontti.client.client import Client

_PREFIX = "application/vnd.containerd.container."
STATE = _PREFIX + "criu.checkpoint.criu.tar"
CONFIG = _PREFIX + "checkpoint.config.v1+proto"
OPTIONS = _PREFIX + "checkpoint.options.v1+proto"
RUNTIME_OPTIONS = _PREFIX + "checkpoint.runtime.options+proto"
WRITABLE = "application/vnd.oci.image.layer.v1.tar+gzip"
IMAGE_NAME = "org.opencontainers.image.ref.name"
RUNTIME_NAME = "io.containerd.checkpoint.runtime"
SNAPSHOTTER_NAME = "io.containerd.checkpoint.snapshotter"
CHECKPOINT_LABEL = "containerd.io/checkpoint"


class Draft:
    """An index in the making."""

    def __init__(self, client: Client, record: Container) -> None:
        self.client = client
        self.record = record
        self.content = RemoteContent(client)
        self.manifests: list[Descriptor] = []
        self.annotations: dict[str, str] = {}

    def add(self, made: Descriptor) -> None:
        """Something that is of this platform."""
        self.manifests.append(replace(made, platform=default()))

    def add_state(self, options: CheckpointOptions) -> None:
        """Have the task's state written; nothing is to be added where it is left in a directory."""
        request = CheckpointTaskRequest(container_id=self.record.id, options=pack(options))
        answer = self.client.unary(TASKS + "Checkpoint", request, CheckpointTaskResponse)
        for made in answer.descriptors:
            self.add(descriptor_from_wire(made))

    def add_image(self) -> None:
        """The container's image."""
        self.manifests.append(RemoteImages(self.client).get(self.record.image).target)

    def add_writable(self) -> None:
        """What was changed in the root file system."""
        name, key = self.record.snapshotter, self.record.snapshot_key
        parent = RemoteSnapshotter(self.client, name).stat(key).parent
        with views(self.client, name, (parent, key)) as (lower, upper):
            request = DiffRequest(
                left=lower, right=upper, media_type=WRITABLE, ref=f"checkpoint-rw-{key}"
            )
            made = self.client.unary(DIFF + "Diff", request, DiffResponse).diff
        self.add(descriptor_from_wire(made))

    def add_blob(self, media_type: str, data: bytes) -> None:
        """A document."""
        self.add(self.write(media_type, data, {}))

    def write(self, media_type: str, data: bytes, labels: dict[str, str]) -> Descriptor:
        """A blob with labels."""
        reference = f"checkpoint-{self.record.id}-{time.time_ns()}"
        with self.content.writer(reference, len(data)) as writer:
            writer.write(data)
            digest = writer.digest()
            with contextlib.suppress(AlreadyExists):
                writer.commit(len(data), digest, labels)
        return Descriptor(media_type, digest, len(data))

    def finish(self, name: str, labels: dict[str, str]) -> None:
        """Write the index, and name it."""
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [dump_descriptor(made) for made in self.manifests],
            "annotations": self.annotations,
        }
        kept = {f"{GC_REF}.{n}": str(made.digest) for n, made in enumerate(self.manifests)}
        target = self.write(OCI_INDEX, dumps(document), kept)
        RemoteImages(self.client).create(Image(name, target, labels))


@contextlib.contextmanager
def leased(client: Client) -> Iterator[None]:
    """What is made inside is kept until something names it."""
    leases = RemoteLeases(client)
    lease = leases.create("", expiring(DAY))
    try:
        with client.with_lease(lease.id):
            yield
    finally:
        leases.delete(lease.id)


@contextlib.contextmanager
def paused(client: Client, id: str) -> Iterator[None]:
    """The task ``id`` is frozen inside; one that was, stays so."""
    was = STATUSES[task(client, id).status] == "PAUSED"
    if not was:
        client.unary(TASKS + "Pause", PauseTaskRequest(container_id=id), Empty)
    try:
        yield
    finally:
        if not was:
            with contextlib.suppress(Error):  # it may have ended with its checkpoint
                client.unary(TASKS + "Resume", ResumeTaskRequest(container_id=id), Empty)


def checkpoint_task(call: Call) -> None:
    """Keep a task's state as an image, whose name is printed; or in a directory."""
    id = call.arg(0, "container id must be provided")
    options = CheckpointOptions(
        exit=call.bool("exit"), image_path=call.str("image-path"), work_path=call.str("work-path")
    )
    with connect(call) as client:
        draft = Draft(client, container(client, id))
        task(client, id)
        with leased(client), paused(client, id):
            draft.add_state(options)
            if options.image_path:
                return
            keep_all(draft)
            name = f"containerd.io/checkpoint/{id}:{time.strftime('%m-%d-%Y-%H:%M:%S')}"
            draft.finish(name, {CHECKPOINT_LABEL: "true"})
    print(name)


def keep_all(draft: Draft) -> None:
    """What a task's checkpoint holds beside its state: image, writable layer, names."""
    record = draft.record
    if record.image:
        draft.add_image()
        draft.annotations[IMAGE_NAME] = record.image
    if record.snapshot_key:
        draft.add_writable()
        draft.annotations[SNAPSHOTTER_NAME] = record.snapshotter
    draft.annotations[RUNTIME_NAME] = record.runtime.name if record.runtime else ""


def checkpoint_container(call: Call) -> None:
    """Keep of a container what the flags name, as the image REF."""
    id = call.arg(0, "container id must be provided")
    ref = call.arg(1, "ref must be provided")
    with connect(call) as client:
        record = container(client, id)
        draft = Draft(client, record)
        draft.annotations = {
            IMAGE_NAME: record.image,
            RUNTIME_NAME: record.runtime.name if record.runtime else "",
            SNAPSHOTTER_NAME: record.snapshotter,
        }
        with contextlib.ExitStack() as stack:
            stack.enter_context(leased(client))
            try:
                stack.enter_context(paused(client, id))
            except NotFound:
                pass  # a container without a task is one as well
            add_parts(draft, call)
            draft.finish(ref, {})


def add_parts(draft: Draft, call: Call) -> None:
    """What the flags name."""
    runtime = draft.record.runtime
    if runtime is not None and runtime.options is not None and runtime.options.value:
        draft.add_blob(RUNTIME_OPTIONS, runtime.options.encode())
    if call.bool("image"):
        draft.add_image()
    if call.bool("rw"):
        draft.add_writable()
    if call.bool("task"):
        options = CheckpointOptions(file_locks=True)
        draft.add_state(options)
        draft.add_blob(OPTIONS, pack(options).encode())


def restore(call: Call) -> int:
    """A container of a checkpoint, and its task: anew, or with --live where it was."""
    id = call.arg(0, "container id must be provided")
    ref = call.arg(1, "ref must be provided")
    with connect(call) as client:
        content = RemoteContent(client)
        target = RemoteImages(client).get(ref).target
        index = read_index(content, target)
        state = None
        if call.bool("live"):
            state = part(index, STATE)
            if state is None:
                raise NotFound(f"checkpoint not found in index {target.digest}")
        with leased(client):
            record = restore_container(client, id, index, writable=call.bool("rw"))
        run = Run(id=id, detach=not wants_terminal(record))
        run.checkpoint = descriptor_to_wire(state) if state is not None else None
        try:
            return follow(client, create_task(client, record, run), run)
        except BaseException:
            clean_up(client, record)
            raise


def part(index: Index, media_type: str) -> Descriptor | None:
    """The first of a type in a checkpoint."""
    return next((made for made in index.manifests if made.media_type == media_type), None)


def wanted(index: Index, media_type: str) -> Descriptor:
    """The same, which has to be there."""
    found = part(index, media_type)
    if found is None:
        raise NotFound(f"media type {media_type} in the checkpoint")
    return found


def named(index: Index, annotation: str, what: str) -> str:
    """What an annotation of a checkpoint says; raises NotFound."""
    if not index.annotations.get(annotation):
        raise NotFound(f"{what} not found in index")
    return index.annotations[annotation]


def restore_container(client: Client, id: str, index: Index, *, writable: bool) -> Container:
    """Snapshot and record as the checkpoint has them; a failure leaves nothing."""
    content = RemoteContent(client)
    image = RemoteImages(client).get(named(index, IMAGE_NAME, "image name"))
    snapshotter = named(index, SNAPSHOTTER_NAME, "snapshotter")
    runtime = ContainerRuntime(name=named(index, RUNTIME_NAME, "runtime"))
    packed = part(index, RUNTIME_OPTIONS)
    if packed is not None:
        runtime.options = Any.decode(read_document(content, packed))
    spec = Any.decode(read_document(content, wanted(index, CONFIG)))
    layer = wanted(index, WRITABLE) if writable else None
    _, manifest = find_manifest(content, image.target, only(default()))
    parent = str(chain_id(read_config(content, manifest.config).diff_ids))
    store = RemoteSnapshotter(client, snapshotter)
    mounts = store.prepare(id, parent)
    try:
        if layer is not None:
            RemoteApplier(client).apply(layer, mounts)
        made = Container(
            id=id,
            image=image.name,
            runtime=runtime,
            spec=spec,
            snapshotter=snapshotter,
            snapshot_key=id,
        )
        request = CreateContainerRequest(container=made)
        answer = client.unary(CONTAINERS + "Create", request, CreateContainerResponse)
    except BaseException:
        with_no_more(store, id)
        raise
    return answer.container or made


def with_no_more(store: RemoteSnapshotter, key: str) -> None:
    """Remove a snapshot that nothing came of; that it cannot be removed hides no other error."""
    try:
        store.remove(key)
    except Error as problem:
        error(f"snapshot {key} is left", problem.message)
