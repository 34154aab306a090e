"""The namespace and lease a request acts in."""

from __future__ import annotations

from dataclasses import dataclass

from kontti.errors import FailedPrecondition
from kontti.values import check_identifier

DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Scope:
    """Where a request acts: its namespace and, if it named one, the lease for what it makes."""

    namespace: str
    lease: str = ""

    @classmethod
    def of(cls, namespace: str, lease: str = "") -> Scope:
        """A checked scope; FailedPrecondition with no namespace, InvalidArgument for a bad one."""
        if not namespace:
            raise FailedPrecondition("namespace is required")
        return cls(check_identifier(namespace, "namespace validation"), lease)
