"""Long work in Python beside others: a pause now and then, so that they need not wait for it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
BREATH_SECONDS = 0.0005


def breathing(items: Iterable[T], each: int = 64) -> Iterator[T]:
    """The same items, with a pause after each so many."""
    for count, item in enumerate(items, 1):
        yield item
        if count % each == 0:
            time.sleep(BREATH_SECONDS)
