"""References that hold under a condition: ``containerd.io/gc.cond.*``. No I/O.

A blob or an image refers to a snapshot with ``gc.cond.snapshot.<snapshotter>``, the value being
``usedat<2h|key``; the snapshot says in ``gc.cond.value-usedat`` when it was used. Of several
conditions, with commas between them, one is enough.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kontti.config.duration import parse_duration
from kontti.errors import InvalidArgument

PREFIX = "containerd.io/gc.cond."
SNAPSHOT, USED = PREFIX + "snapshot", PREFIX + "value-usedat"
_CONDITION = re.compile(r"(?P<name>[^!<>=]*)(?P<op>[!<>=]=?)(?P<value>.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Condition:
    """That a snapshot was used less than ``age`` ns ago, or longer ago than that."""

    snapshotter: str
    key: str
    age: int
    is_longer: bool

    def holds(self, used: int, now: int) -> bool:
        """For a snapshot that was used then."""
        return now - used > self.age if self.is_longer else now - used < self.age


def conditions(labels: Mapping[str, str]) -> Iterator[Condition]:
    """Those of labels; what is none that is known is passed over."""
    for label, value in labels.items():
        if not label.startswith(SNAPSHOT):
            continue
        snapshotter = label.removeprefix(SNAPSHOT).lstrip("./").partition("/")[0]
        wanted, bar, key = value.partition("|")
        for text in wanted.split(",") if bar else ():
            found = _CONDITION.fullmatch(text)
            if found is None or found["name"] != "usedat" or found["op"] not in ("<", ">"):
                continue
            try:
                age = parse_duration(found["value"])
            except InvalidArgument:
                continue
            yield Condition(snapshotter, key, age, found["op"] == ">")
