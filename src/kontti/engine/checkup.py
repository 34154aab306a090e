"""The stores of an engine, checked and mended."""

from __future__ import annotations

import logging
import os
import secrets
from dataclasses import replace

from kontti.doctor import trees
from kontti.doctor.base import Finding, Pace, Patient, Remedy
from kontti.doctor.checkup import Tell, check, check_up
from kontti.engine.lock import RootLock
from kontti.engine.stores import METADATA_DIR, Stores
from kontti.errors import NotFound
from kontti.registry.resolver import Resolver

log = logging.getLogger(__name__)
QUARANTINE = "quarantine"


def examine(
    stores: Stores, resolver: Resolver | None, *, deep: bool, rate: int, tell: Tell
) -> tuple[Finding, ...]:
    """Check ``stores``; with a resolver, mend what can be mended. ``rate`` in bytes a second."""
    return check_up(patient_of(stores, deep=deep, rate=rate), resolver, tell)


def patient_of(stores: Stores, *, deep: bool, rate: int) -> Patient:
    """What is looked through, and what mends it."""
    return Patient(
        stores.metadata,
        stores.transfer_parts(),
        stores.applier,
        os.path.join(stores.settings.root, QUARANTINE),
        Pace(rate),
        deep,
    )


def after_crash(stores: Stores) -> tuple[Finding, ...]:
    """The cheap part, for a root that was not closed: look, unpack again what is gone, log it.

    What would have to be fetched is told, and left for a doctor who is called.
    """
    patient = patient_of(stores, deep=False, rate=0)
    found = []
    for finding in check(patient):
        done = finding
        if finding.remedy is Remedy.UNPACK:
            done = replace(finding, mended=trees.mend(patient, finding))
        state = "mended" if done.mended else "see kontti doctor"
        log.warning("%s %s: %s: %s", done.kind, done.name, done.problem, state)
        found.append(done)
    return tuple(found)


def set_database_aside(root: str) -> str:
    """Put a database that cannot be opened into quarantine; where it is now.

    Who opens the root next makes it anew. Raises NotFound where there is none,
    FailedPrecondition while somebody has the root.
    """
    folder = os.path.join(root, METADATA_DIR)
    if not os.path.exists(os.path.join(folder, "meta.db")):
        raise NotFound(f"{folder}: metadata database")
    target = os.path.join(root, QUARANTINE, f"metadata-{secrets.token_hex(4)}")
    with RootLock(root, "kontti doctor"):
        os.makedirs(target, mode=0o700)
        for name in ("meta.db", "meta.db-wal", "meta.db-shm"):
            if os.path.exists(os.path.join(folder, name)):
                os.rename(os.path.join(folder, name), os.path.join(target, name))
    return target
