"""Restart policies: what a daemon is asked to do about a container that ended."""

from __future__ import annotations

import re

from kontti.engine.base import Core
from kontti.errors import FailedPrecondition, InvalidArgument
from kontti.tasks import labels

_POLICY = re.compile(r"always|unless-stopped|on-failure(:[1-9][0-9]{0,8})?")


def wanted(policy: str) -> bool:
    """Whether a policy asks for anything."""
    return policy not in ("", "no")


def check(core: Core, policy: str) -> None:
    """Raises InvalidArgument for what is no policy, FailedPrecondition where none can be kept."""
    if not wanted(policy):
        return
    if not _POLICY.fullmatch(policy):
        raise InvalidArgument(
            f"restart policy {policy!r:.60} is not always, unless-stopped, on-failure[:most] or no"
        )
    if not core.shared:
        raise FailedPrecondition(
            f"restart policy {policy} needs a daemon on this root (kontti daemon): "
            "nobody would be there to start the container again"
        )


def labels_of(policy: str, log: str) -> dict[str, str]:
    """What a container's record says for ``policy``; ``log`` is where its output goes."""
    if not wanted(policy):
        return {}
    return {labels.STATUS: "running", labels.POLICY: policy, labels.LOG_URI: log}
