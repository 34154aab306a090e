"""Names of stacked layers: chain ids (OCI image spec, config, "Layer ChainID")."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from kontti.values import Digest


def chain_ids(diff_ids: Sequence[Digest]) -> tuple[Digest, ...]:
    """The chain id of each layer with all below it, lowest first."""
    chain: list[Digest] = []
    for diff_id in diff_ids:
        chain.append(_over(chain[-1], diff_id) if chain else diff_id)
    return tuple(chain)


def chain_id(diff_ids: Sequence[Digest]) -> str:
    """The chain id of the whole stack, "" for none."""
    chain = chain_ids(diff_ids)
    return chain[-1] if chain else ""


def _over(parent: Digest, diff_id: Digest) -> Digest:
    return Digest("sha256:" + hashlib.sha256(f"{parent} {diff_id}".encode()).hexdigest())
