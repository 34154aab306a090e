"""Export: image records to an archive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kontti.images.archive_export import ExportOptions as ArchiveOptions
from kontti.images.archive_export import export
from kontti.images.platforms import Everything, Matcher, any_of, default, only_strict
from kontti.namespaces import Scope
from kontti.transfer.base import Selection, Stores
from kontti.transfer.lease import keep, leased
from kontti.transfer.progress import OnProgress, Reporter, silent
from kontti.values import Resource

Write = Callable[[bytes], object]


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """``skip_manifest_json`` leaves out what ``docker load`` reads."""

    select: Selection = field(default_factory=Selection)
    skip_manifest_json: bool = False
    skip_nondistributable: bool = False


def export_images(
    stores: Stores,
    scope: Scope,
    names: Sequence[str],
    write: Write,
    options: ExportOptions | None = None,
    *,
    progress: OnProgress = silent,
) -> None:
    """Write the images of those names as an archive. Raises NotFound before the first byte."""
    chosen, reporter = options or ExportOptions(), Reporter(progress)
    reporter.tell("Exporting")
    # the lease keeps the collector from removing an image's blobs while they are written
    with leased(stores, scope) as held:
        images = stores.images(held)
        targets = [(name, images.get(name).target) for name in names]
        for _, target in targets:
            keep(stores, held, Resource(target.digest, "content"))
        export(stores.content(held), targets, write, archive_options(chosen))
    reporter.tell("Completed export")


def archive_options(options: ExportOptions) -> ArchiveOptions:
    """For the archive writer: this host's platform, strictly, where none is asked for."""
    return ArchiveOptions(
        _matcher(options.select),
        options.skip_manifest_json,
        options.skip_nondistributable,
        present_only=options.select.all_platforms,
    )


def _matcher(select: Selection) -> Matcher:
    if select.all_platforms:
        return Everything()
    return any_of(select.platforms) if select.platforms else only_strict(default())
