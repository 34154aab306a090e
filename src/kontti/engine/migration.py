"""Taking over what a containerd root holds."""

from __future__ import annotations

import os

from kontti.content.local import LocalStore
from kontti.engine.stores import Stores
from kontti.errors import FailedPrecondition
from kontti.linux.overlays import overlay_uppers
from kontti.migrate.adopt import Migration, Outcome, Tell
from kontti.migrate.source import read


def migrate(stores: Stores, root: str, *, copy: bool, tell: Tell) -> tuple[Outcome, ...]:
    """Bring the images and stopped containers of ``root`` into ``stores``; what became of each.

    Blobs are linked; with ``copy`` they are copied, for a root on another file system. Raises what
    reading the root raises, FailedPrecondition where it is these stores' own.
    """
    if os.path.exists(root) and os.path.samefile(root, stores.settings.root):
        raise FailedPrecondition(f"{root} is the root to bring things into")
    source = os.path.realpath(root)
    namespaces = read(source)
    if not copy and os.stat(source).st_dev != os.stat(stores.settings.root).st_dev:
        raise FailedPrecondition(f"{root} is on another file system: its blobs must be copied")
    if not isinstance(stores.content, LocalStore):
        raise FailedPrecondition("blobs are kept by another process: they cannot be taken over")
    migration = Migration(
        stores.metadata,
        stores.content,
        stores.transfer_parts(),
        copy=copy,
        mounted=overlay_uppers(),
    )
    outcomes: list[Outcome] = []

    def note(outcome: Outcome) -> None:
        outcomes.append(outcome)
        tell(outcome)

    migration.run(namespaces, note)
    return tuple(outcomes)
