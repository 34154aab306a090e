"""containerd.services.images.v1.Images."""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.empty_pb2 import Empty

from kontti.api.services.images.v1 import images_pb2 as pb
from kontti.metadata.base import Image, Images, Metadata
from kontti.services import convert
from kontti.services.rpc import Bridge, Context, scope_of
from kontti.values import Descriptor, Digest


class ImagesService:
    """Adapts the Images store; ``collect`` runs a garbage collection and returns after it."""

    def __init__(self, metadata: Metadata, bridge: Bridge, collect: Callable[[], object]) -> None:
        self._metadata = metadata
        self._call = bridge.call
        self._quick = bridge.quick
        self._collect = collect

    def _store(self, context: Context) -> Images:
        return self._metadata.images(scope_of(context))

    def get(self, request: pb.GetImageRequest, context: Context) -> pb.GetImageResponse:
        found = self._quick(self._store(context).get, request.name)
        return pb.GetImageResponse(image=to_proto(found))

    async def list(self, request: pb.ListImagesRequest, context: Context) -> pb.ListImagesResponse:
        found = await self._call(self._store(context).list, list(request.filters))
        return pb.ListImagesResponse(images=[to_proto(i) for i in found])

    async def create(
        self, request: pb.CreateImageRequest, context: Context
    ) -> pb.CreateImageResponse:
        made = await self._call(self._store(context).create, from_proto(request.image))
        return pb.CreateImageResponse(image=to_proto(made))

    async def update(
        self, request: pb.UpdateImageRequest, context: Context
    ) -> pb.UpdateImageResponse:
        updated = await self._call(
            self._store(context).update, from_proto(request.image), list(request.update_mask.paths)
        )
        return pb.UpdateImageResponse(image=to_proto(updated))

    async def delete(self, request: pb.DeleteImageRequest, context: Context) -> Empty:
        target = (
            convert.descriptor_from_proto(request.target) if request.HasField("target") else None
        )
        await self._call(self._store(context).delete, request.name, target)
        if request.sync:
            await self._call(self._collect)
        return Empty()


def to_proto(image: Image) -> pb.Image:
    """An image record as a message."""
    return pb.Image(
        name=image.name,
        labels=dict(image.labels),
        target=convert.descriptor_to_proto(image.target),
        created_at=convert.timestamp(image.created_at),
        updated_at=convert.timestamp(image.updated_at),
    )


def from_proto(message: pb.Image) -> Image:
    """A message as an image record; raises InvalidArgument for a bad target.

    An update of labels alone comes without a target: the store checks that where it matters.
    """
    given = message.HasField("target") and message.target.digest
    nothing = Descriptor("", Digest(""), 0)
    return Image(
        name=message.name,
        target=convert.descriptor_from_proto(message.target) if given else nothing,
        labels=dict(message.labels),
    )
