"""Four combinations: two clients, two daemons, each with a daemon of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.blackbox.transcript import Outcome, transcript, values
from tests.support import daemons, images, registry

COMBINATIONS = [(c, d) for d in ("containerd", "kontti") for c in ("debian", "ours")]
Transcripts = dict[tuple[str, str], dict[str, list[Outcome]]]


@pytest.fixture(scope="session")
def image() -> images.Image:
    return images.build()


@pytest.fixture(scope="session")
def registry_address(
    tmp_path_factory: pytest.TempPathFactory, image: images.Image
) -> Iterator[str]:
    base = tmp_path_factory.mktemp("registry")
    with registry.running(base) as address:
        registry.push(address, "busybox", "test", image)
        yield address


@pytest.fixture(scope="session")
def transcripts(
    tmp_path_factory: pytest.TempPathFactory, registry_address: str, image: images.Image
) -> Transcripts:
    made: Transcripts = {}
    for client, kind in COMBINATIONS:
        base: Path = tmp_path_factory.mktemp(f"{client}-{kind}")
        with daemons.running(kind, base) as daemon:
            made[client, kind] = transcript(daemon, client, values(base, registry_address, image))
    return made
