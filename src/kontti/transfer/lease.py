"""A lease around a transfer: what it makes is kept until something refers to it."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from kontti.errors import NotFound
from kontti.namespaces import Scope
from kontti.transfer.base import DAY, Stores
from kontti.values import Resource

EXPIRE_LABEL = "containerd.io/gc.expire"


@contextlib.contextmanager
def leased(stores: Stores, scope: Scope, seconds: int = DAY) -> Iterator[Scope]:
    """``scope`` with a lease of its own that ends with the block; a scope that has one keeps it.

    The expiry is for a process that dies: the collector then takes what it left.
    """
    if scope.lease:
        yield scope
        return
    leases = stores.leases(scope)
    id_ = f"{time.time_ns()}-{secrets.token_hex(4)}"
    leases.create(id_, {EXPIRE_LABEL: expiry(seconds)})
    try:
        yield Scope(scope.namespace, id_)
    finally:
        with contextlib.suppress(NotFound):
            leases.delete(id_)


def keep(stores: Stores, scope: Scope, resource: Resource) -> None:
    """Have the scope's lease, if it has one, keep what is there already.

    A collection may have taken it just before: who needs it looks for it after this.
    """
    if scope.lease:
        stores.leases(scope).add_resource(scope.lease, resource)


def expiry(seconds: int) -> str:
    """The label's value for a lease that is over after so long, should nobody end it."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
