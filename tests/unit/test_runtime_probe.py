"""What the probe remembers, and for how long."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kontti.linux import cgroups
from kontti.runtime import probe
from kontti.runtime.probe import CACHE, RuntimeChoice, choose


class Attempts:
    """Stands for running a container: ``problems`` by runtime, "" where it works."""

    def __init__(self, **problems: str) -> None:
        self.problems = problems
        self.made: list[tuple[str, bool]] = []

    def __call__(self, binary: str, hide: bool) -> str:
        name = Path(binary).name
        self.made.append((name, hide))
        problem = self.problems.get(name, "")
        return "" if problem == "hybrid" and hide else problem


@pytest.fixture
def binaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in probe.CANDIDATES:
        (folder / name).write_text("")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(probe, "FOLDERS", ())
    return folder


def use(monkeypatch: pytest.MonkeyPatch, attempts: Attempts, *, hybrid: bool) -> None:
    monkeypatch.setattr(probe, "attempt", attempts)
    monkeypatch.setattr(cgroups, "mode", lambda: "hybrid" if hybrid else "unified")
    monkeypatch.setattr(cgroups, "hybrid_with_controllers", lambda: hybrid)


def test_the_first_that_works_is_taken(
    binaries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Attempts(), hybrid=False)
    assert choose(str(tmp_path)) == RuntimeChoice(str(binaries / "crun"))


def test_crun_on_a_hybrid_host_runs_without_the_v2_tree(
    binaries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Attempts(crun="hybrid"), hybrid=True)
    choice = choose(str(tmp_path))
    assert (choice.binary, choice.hide_unified) == (str(binaries / "crun"), True)
    assert "hybrid" in choice.log[0]


def test_runc_where_crun_does_not_work(
    binaries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = Attempts(crun="not on this kernel")
    use(monkeypatch, attempts, hybrid=True)
    choice = choose(str(tmp_path))
    assert choice.binary == str(binaries / "runc")
    assert attempts.made == [("crun", False), ("crun", True), ("runc", False)]
    assert len(choice.log) == 2


def test_the_answer_is_kept_while_nothing_has_changed(
    binaries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = Attempts(crun="no")
    use(monkeypatch, attempts, hybrid=False)
    first = choose(str(tmp_path))
    assert choose(str(tmp_path)) == first
    assert len(attempts.made) == 2
    (binaries / "crun").write_text("a new version")
    attempts.problems.clear()
    assert choose(str(tmp_path)).binary == str(binaries / "crun")


def test_that_none_works_is_not_kept(
    binaries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = Attempts(crun="slow", runc="slow")
    use(monkeypatch, attempts, hybrid=False)
    assert choose(str(tmp_path)).binary == ""
    attempts.problems.clear()
    assert choose(str(tmp_path)).binary == str(binaries / "crun")


@pytest.mark.parametrize("kept", ["", "{", "[]", "null", json.dumps({"key": 1}), "\udcff"])
def test_a_note_that_cannot_be_read_is_made_again(
    binaries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    use(monkeypatch, Attempts(), hybrid=False)
    (tmp_path / CACHE).write_text(kept, errors="surrogateescape")
    assert choose(str(tmp_path)).binary == str(binaries / "crun")
    assert json.loads((tmp_path / CACHE).read_text())["binary"] == str(binaries / "crun")


def test_nothing_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(probe, "FOLDERS", ())
    choice = choose(str(tmp_path / "state"))
    assert choice == RuntimeChoice("", log=("crun is not installed", "runc is not installed"))
