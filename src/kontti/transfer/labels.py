"""Labels that transfers put on blobs: where they came from, and what they keep alive."""

from __future__ import annotations

from collections.abc import Mapping

from kontti.content.base import Info, Store
from kontti.registry.reference import Reference
from kontti.values import Digest

SOURCE_PREFIX = "containerd.io/distribution.source."
UNCOMPRESSED = "containerd.io/uncompressed"
SNAPSHOT_PREFIX = "containerd.io/gc.ref.snapshot."


def source_label(reference: Reference) -> dict[str, str]:
    """Says that a blob can be had from this repository. The port is not in it, as in containerd."""
    host = reference.host
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    return {SOURCE_PREFIX + name.strip("[]"): reference.path}


def add_labels(content: Store, digest: Digest, labels: Mapping[str, str]) -> None:
    """Put ``labels`` on a blob beside those it has; lists of repositories are joined."""
    if not labels:
        return
    old = content.info(digest).labels
    new = {
        k: _joined(old.get(k, ""), v) if k.startswith(SOURCE_PREFIX) else v
        for k, v in labels.items()
    }
    changed = {k: v for k, v in new.items() if old.get(k) != v}
    if changed:
        content.update(Info(digest, 0, labels=changed), [f"labels.{k}" for k in changed])


def _joined(old: str, new: str) -> str:
    names = {name for text in (old, new) for name in text.split(",") if name}
    joined = ",".join(sorted(names))
    # a label over the limit would be refused; the list is a hint, its newest entry the useful one
    return joined if len(joined) < 3500 else new


def repositories(labels: Mapping[str, str], reference: Reference) -> list[str]:
    """Other repositories of the same registry that a blob is known to be in."""
    ((key, own),) = source_label(reference).items()
    return [name for name in labels.get(key, "").split(",") if name and name != own]
