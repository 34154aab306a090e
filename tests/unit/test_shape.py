"""The source stays readable: no file over 400 lines, no function over 40, no circle of imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
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


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def imports(tree: ast.AST) -> Iterator[str]:
    """What is imported, late or at the start, but for what only types need."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            yield str(node.module)
        yield from imports(node)


def test_imports_make_no_circle() -> None:
    names = {name_of(path): path for path in FILES}
    graph = {
        name: set(imports(ast.parse(path.read_text()))) & names.keys() - {name}
        for name, path in names.items()
    }
    # a package's own file has no logic: who imports from it imports what is in it
    graph["kontti"] = set()
    assert len(list(TopologicalSorter(graph).static_order())) == len(names)
