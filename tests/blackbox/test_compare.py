"""Both clients against both daemons: what they print and return is the same."""

from __future__ import annotations

import pytest

from tests.blackbox.conftest import Transcripts
from tests.blackbox.steps import GROUPS, Step

pytestmark = [pytest.mark.root, pytest.mark.blackbox, pytest.mark.timeout(600)]

REFERENCE = ("debian", "containerd")
OTHERS = [("debian", "kontti"), ("ours", "containerd"), ("ours", "kontti")]
CASES = [
    pytest.param(name, number, id=f"{name}-{number:02}-{step.line.split('{')[0].strip()[:40]}")
    for name, steps in GROUPS.items()
    for number, step in enumerate(steps)
]


def axis_differs(step: Step, client: str, daemon: str) -> str:
    """Why this combination may print something else than the reference, or ""."""
    reasons = []
    if client != REFERENCE[0]:
        reasons.append(step.client_differs)
    if daemon != REFERENCE[1]:
        reasons.append(step.daemon_differs)
    return "; ".join(r for r in reasons if r)


@pytest.mark.parametrize(("group", "number"), CASES)
def test_reference_behaves_as_the_step_says(
    transcripts: Transcripts, group: str, number: int
) -> None:
    step, outcome = GROUPS[group][number], transcripts[REFERENCE][group][number]
    assert step.codes_differ or outcome.code == step.code, outcome.raw


@pytest.mark.parametrize(("client", "daemon"), OTHERS)
@pytest.mark.parametrize(("group", "number"), CASES)
def test_same(transcripts: Transcripts, client: str, daemon: str, group: str, number: int) -> None:
    step = GROUPS[group][number]
    expected = transcripts[REFERENCE][group][number]
    got = transcripts[client, daemon][group][number]
    if not (step.codes_differ and client != REFERENCE[0]):
        assert got.code == expected.code, f"{expected.raw}\n--- and here\n{got.raw}"
    if axis_differs(step, client, daemon):
        return
    assert got.stdout == expected.stdout, f"{expected.raw}\n--- and here\n{got.raw}"
    assert got.stderr == expected.stderr, f"{expected.raw}\n--- and here\n{got.raw}"
