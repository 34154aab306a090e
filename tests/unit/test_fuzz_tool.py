"""tools/fuzz.py: its targets run, and what it finds is kept and can be run again."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools/fuzz.py"
TARGETS = ["bolt", "config", "index", "manifest", "protobuf", "reference", "tar"]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_tool", TOOL)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    # dataclasses look their module up
    sys.modules["fuzz_tool"] = made
    spec.loader.exec_module(made)
    return made


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_is_found_in_a_moment(tool: ModuleType, name: str) -> None:
    assert sorted(tool.TARGETS) == TARGETS
    target = tool.TARGETS[name]
    for example in target.examples:
        target.run(example)
    assert tool.run_random(target, 0.1, 1) is None


def test_a_finding_is_written_and_run_again(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(data: bytes) -> None:
        if data != b"example":
            raise IndexError(len(data))

    monkeypatch.setitem(tool.TARGETS, "broken", tool.Target(broken, [b"example"]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fuzz.py", "broken", "5", "--random"])
    assert tool.main() == 1
    (found,) = tmp_path.iterdir()
    monkeypatch.setattr(sys, "argv", ["fuzz.py", "broken", str(found)])
    with pytest.raises(IndexError):
        tool.main()
