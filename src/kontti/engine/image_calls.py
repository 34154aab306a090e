"""The part of the Python API that is about images, and about all that is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO

from kontti.engine.base import Core
from kontti.engine.values import ImageInfo, Sink
from kontti.errors import FailedPrecondition
from kontti.namespaces import Scope

if TYPE_CHECKING:
    from kontti.doctor.base import Finding
    from kontti.doctor.checkup import Tell as TellFinding
    from kontti.engine.disk import DiskUsage
    from kontti.engine.history import Step
    from kontti.engine.stores import Stores
    from kontti.migrate.adopt import Outcome, Tell
    from kontti.transfer.progress import OnProgress


class ImageCalls:
    """Images, over a core in a scope."""

    def __init__(self, core: Core, scope: Scope) -> None:
        self._core, self._scope = core, scope

    def pull(
        self,
        name: str,
        *,
        plain_http: bool = False,
        user: str = "",
        password: str = "",
        progress: OnProgress | None = None,
        snapshotter: str = "overlayfs",
    ) -> ImageInfo:
        """Pull ``name`` (docker's short names too) and unpack it. Plain HTTP only if asked for."""
        from kontti.engine import images

        found = images.fetch(
            self._core,
            self._scope,
            name,
            (user, password),
            plain_http=plain_http,
            progress=progress,
            snapshotter=snapshotter,
        )
        return images.info(self._core, self._scope, found)

    def push(
        self,
        name: str,
        source: str = "",
        *,
        plain_http: bool = False,
        user: str = "",
        password: str = "",
        progress: OnProgress | None = None,
    ) -> None:
        """Push image ``source`` (default: the one of that name) to its registry as ``name``."""
        from kontti.engine import images

        target, given = (
            images.find(self._core, self._scope, source or name).target,
            (user, password),
        )
        images.send(
            self._core, self._scope, name, target, given, plain_http=plain_http, progress=progress
        )

    def import_image(
        self, source: str | BinaryIO, *, progress: OnProgress | None = None
    ) -> list[ImageInfo]:
        """Store the images of an archive (OCI layout or ``docker save``), a path or open file."""
        from kontti.engine import images

        if isinstance(source, str):
            with open(source, "rb") as file:
                return self.import_image(file, progress=progress)
        found = images.store(self._core, self._scope, source, progress)
        return [images.info(self._core, self._scope, image) for image in found]

    def migrate(self, root: str, *, copy: bool = False, tell: Tell) -> tuple[Outcome, ...]:
        """Take over a containerd root's images and stopped containers, of all namespaces."""
        from kontti.engine.migration import migrate

        return migrate(self._stores, root, copy=copy, tell=tell)

    def doctor(
        self,
        *,
        repair: bool = False,
        deep: bool = True,
        rate: int = 0,
        plain_http: bool = False,
        tell: TellFinding = lambda _: None,
    ) -> tuple[Finding, ...]:
        """Check every blob, snapshot and record, in all namespaces; what is not as it should be.

        ``deep`` reads every byte, at most ``rate`` of them a second (0: as fast as it can).
        ``repair`` puts damaged blobs aside and fetches them again, unpacks damaged layers again
        and removes what nothing names.
        """
        from kontti.engine.checkup import examine
        from kontti.engine.registries import open_session
        from kontti.registry.resolver import Resolver

        stores = self._stores
        with open_session(plain_http=plain_http) as session:
            resolver = Resolver(session) if repair else None
            return examine(stores, resolver, deep=deep, rate=rate, tell=tell)

    @property
    def _stores(self) -> Stores:
        """The stores themselves; raises FailedPrecondition where a daemon has them."""
        if self._core.opened is None:
            raise FailedPrecondition("this needs the root itself, which a daemon has: stop it")
        return self._core.opened

    def images(self, filters: Sequence[str] = ()) -> list[ImageInfo]:
        """Stored images that all ``filters`` (``reference=alpine*`` …) let through, by name."""
        from kontti.engine import images
        from kontti.engine.image_filters import chosen

        found = chosen(self._core, self._scope, filters)
        return [images.info(self._core, self._scope, image) for image in found]

    def tag(self, source: str, *names: str) -> list[ImageInfo]:
        """Give an image more names, whatever those stood for before."""
        from kontti.engine import images

        made = images.tag(self._core, self._scope, source, names)
        return [images.info(self._core, self._scope, image) for image in made]

    def save(self, names: Sequence[str], write: Sink, platform: str = "") -> None:
        """Write images as one archive, for this host's ``platform``, another, or ``all``."""
        from kontti.engine import images

        images.save(self._core, self._scope, names, write, platform)

    def history(self, name: str) -> tuple[Step, ...]:
        """The steps an image was built in, the last first."""
        from kontti.engine import images
        from kontti.engine.history import history

        return history(self._core, self._scope, images.find(self._core, self._scope, name))

    def disk_usage(self) -> DiskUsage:
        """What images, layers and containers take on the disk."""
        from kontti.engine.disk import disk_usage

        return disk_usage(self._core, self._scope)

    def inspect_image(self, name: str) -> dict[str, object]:
        """All that is recorded of an image, its configuration and layers included."""
        from kontti.engine import images

        found = images.find(self._core, self._scope, name)
        return images.details(self._core, self._scope, found)

    def remove_image(self, name: str) -> None:
        """Remove an image's name; what nothing else needs is collected before this returns."""
        from kontti.engine import images

        found = images.find(self._core, self._scope, name)
        self._core.stores.images(self._scope).delete(found.name)
        self._core.collect(self._scope)
