"""What a person at a terminal may want to know who sees nothing: it is in another namespace."""

from __future__ import annotations

import sys

from kontti.cmd.ctr.session import NAMESPACES, namespace_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kontti.client.client import Client
    from kontti.cmd.ctr.grammar import Call

MOST = 20
"""Namespaces that are looked into."""


def hint_elsewhere(client: Client, call: Call, kind: str, count: Callable[[str], int]) -> None:
    """Say on a terminal which other namespaces have what this one has none of."""
    if not sys.stdout.isatty() or not sys.stderr.isatty():
        return
    from kontti.wire.messages.services.namespaces.v1.namespace import (
        ListNamespacesRequest,
        ListNamespacesResponse,
    )

    here = namespace_of(call)
    answer = client.unary(NAMESPACES + "List", ListNamespacesRequest(), ListNamespacesResponse)
    names = [found.name for found in answer.namespaces if found.name != here][:MOST]
    others = [f"{name} has {number}" for name in names if (number := count(name))]
    if others:
        text = f'no {kind} in namespace "{here}", but {", ".join(others)}'
        print(f"ctr: {text}: choose one with -n", file=sys.stderr)
