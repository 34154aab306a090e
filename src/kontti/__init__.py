"""kontti: containerd in Python. ``from kontti import Engine`` is the library form of it."""

from __future__ import annotations

from kontti.version import VERSION

# typing itself is a good part of a quick command's start
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kontti.engine.engine import Engine as Engine

__version__ = VERSION
__all__ = ["Engine", "__version__"]


def __getattr__(name: str) -> Any:
    # quick commands import kontti.cmd without paying for the engine
    if name == "Engine":
        from kontti.engine.engine import Engine

        return Engine
    raise AttributeError(name)
