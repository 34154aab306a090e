"""A whole check-up: find, mend what can be mended, and find again what was left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from kontti.doctor import blobs, trees
from kontti.doctor.base import Finding, Patient, Remedy
from kontti.registry.resolver import Resolver

Tell = Callable[[Finding], None]


def check(patient: Patient) -> Iterator[Finding]:
    """Everything that is not as it should be."""
    for said in patient.metadata.integrity():
        yield Finding("database", "", "metadata", said)
    yield from blobs.check(patient)
    yield from trees.check(patient)


def check_up(
    patient: Patient, resolver: Resolver | None, tell: Tell = lambda _: None
) -> tuple[Finding, ...]:
    """Check; with a resolver, mend: blobs first, which layers are unpacked from."""
    if resolver is None:
        found = tuple(check(patient))
        for finding in found:
            tell(finding)
        return found
    return tuple(_mended(patient, resolver, tell))


def _mended(patient: Patient, resolver: Resolver, tell: Tell) -> Iterator[Finding]:
    fetching = blobs.Fetching(patient, resolver)
    collect = False
    for look in (blobs.check, trees.check):
        # found first, all of it: what is mended changes what is looked through
        for finding in tuple(look(patient)):
            done = finding
            if finding.remedy is Remedy.FETCH:
                done = replace(finding, mended=fetching.mend(finding))
            elif finding.remedy is Remedy.UNPACK:
                done = replace(finding, mended=trees.mend(patient, finding))
            elif finding.remedy is Remedy.FORGET:
                done = replace(finding, mended=trees.forget(patient, finding))
            elif finding.remedy is Remedy.COLLECT:
                collect = True
                done = replace(finding, mended=True)
            tell(done)
            yield done
    if collect:
        patient.metadata.collect_orphans()
