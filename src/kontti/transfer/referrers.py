"""Signatures, SBOMs and whatever else refers to an image at its registry."""

from __future__ import annotations

from kontti.errors import InvalidArgument
from kontti.images.documents import dump_descriptor, dumps
from kontti.images.manifest import MAX_DOCUMENT, Manifest, parse_index
from kontti.registry.reference import Reference
from kontti.registry.referrers import INDEX_TYPE, ReferrersApi
from kontti.registry.session import Session
from kontti.values import Descriptor, Digest


def referrers(
    session: Session, reference: Reference, digest: Digest, artifact_type: str = ""
) -> tuple[Descriptor, ...]:
    """What refers to ``digest`` in the repository, each once, of this type where one is given."""
    pages = ReferrersApi(session, reference).pages(digest, artifact_type)
    found = {d.digest: d for page in pages for d in parse_index(page, INDEX_TYPE).manifests}
    return tuple(d for d in found.values() if artifact_type in ("", d.artifact_type))


def add_referrer(
    session: Session, reference: Reference, descriptor: Descriptor, manifest: Manifest
) -> None:
    """List a manifest among its subject's referrers, at a registry that does not by itself."""
    if manifest.subject is None:
        return
    api, subject = ReferrersApi(session, reference), manifest.subject.digest
    known = referrers(session, reference, subject)
    if any(d.digest == descriptor.digest for d in known):
        return
    entry = Descriptor(
        descriptor.media_type,
        descriptor.digest,
        descriptor.size,
        manifest.annotations,
        artifact_type=manifest.artifact_type or manifest.config.media_type,
    )
    index = dumps(
        {
            "schemaVersion": 2,
            "mediaType": INDEX_TYPE,
            "manifests": [dump_descriptor(d) for d in (*known, entry)],
        }
    )
    if len(index) > MAX_DOCUMENT:
        raise InvalidArgument(f"{subject}: too many referrers")
    api.put(subject, index)
