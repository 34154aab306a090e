"""The source stays readable: no file over 400 lines, no function over 40."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "kontti"
GENERATED = (SOURCE / "api", SOURCE / "wire" / "messages")
FILES = [p for p in SOURCE.rglob("*.py") if not any(p.is_relative_to(g) for g in GENERATED)]


def test_files_are_short() -> None:
    lengths = {str(p.relative_to(SOURCE)): p.read_text().count("\n") for p in FILES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_functions_are_short() -> None:
    long = [
        f"{path.relative_to(SOURCE)}:{node.lineno} {node.name}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= 40
    ]
    assert long == []
