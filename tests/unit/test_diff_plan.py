"""How a tree is reached is decided from its mounts alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from kontti.diff.plan import (
    lower_directories,
    mount_point,
    plan_mounted,
    plan_reading,
    plan_tree,
    stack,
)
from kontti.values import Mount

BIND = Mount("bind", "/s/1/fs", ("rbind", "rw"))
READ_ONLY = Mount("bind", "/s/1/fs", ("rbind", "ro"))
OVERLAY = Mount(
    "overlay", "overlay", ("workdir=/s/3/work", "upperdir=/s/3/fs", "lowerdir=/s/2/fs:/s/1/fs")
)
VIEW = Mount("overlay", "overlay", ("lowerdir=/s/2/fs:/s/1/fs",))


def test_a_writable_bind_is_a_plain_directory() -> None:
    assert (plan_tree([BIND])["kind"], plan_tree([BIND])["root"]) == ("plain", "/s/1/fs")


def test_an_overlay_is_its_upper_directory() -> None:
    plan = plan_tree([OVERLAY])
    assert (plan["kind"], plan["root"], plan["lowers"]) == (
        "upper",
        "/s/3/fs",
        ["/s/2/fs", "/s/1/fs"],
    )
    assert plan["opaque_xattr"] == "trusted.overlay.opaque"
    user = Mount("overlay", "overlay", (*OVERLAY.options, "userxattr"))
    assert plan_tree([user])["opaque_xattr"] == "user.overlay.opaque"


@pytest.mark.parametrize(
    "mounts",
    [
        [READ_ONLY],
        [VIEW],
        [BIND, BIND],
        [Mount("ext4", "/dev/vda", ())],
        [Mount("bind", "/s/1/fs", ("rw", "rbind"), "/inside")],
        [Mount("overlay", "overlay", (*OVERLAY.options, "ro"))],
    ],
)
def test_everything_else_is_mounted(mounts: list[Mount]) -> None:
    plan = plan_tree(mounts)
    assert plan["kind"] == "mounted"
    assert [m["source"] for m in plan["mounts"]] == [m.source for m in mounts]


def test_reading_needs_no_right_to_write() -> None:
    assert plan_reading([READ_ONLY])["kind"] == "plain"
    assert plan_reading([OVERLAY])["kind"] == "mounted"


def test_stacks() -> None:
    assert stack([OVERLAY]) == ("/s/3/fs", "/s/2/fs", "/s/1/fs")
    assert stack([OVERLAY])[1:] == stack([VIEW])
    assert stack([READ_ONLY]) == ("/s/1/fs",)
    assert stack([]) == stack([BIND, BIND]) == stack([Mount("ext4", "/dev/vda")]) == ()


def test_colons_in_lower_directories() -> None:
    escaped = Mount("overlay", "overlay", (r"lowerdir=/a\:b:/c\\d",))
    assert lower_directories(escaped) == ("/a:b", "/c\\d")
    added = Mount("overlay", "overlay", ("lowerdir+=/a:b", "lowerdir+=/c"))
    assert lower_directories(added) == ("/a:b", "/c")


def test_mount_points_come_and_go() -> None:
    with mount_point(plan_mounted([VIEW])) as plan:
        assert Path(plan["root"]).is_dir()
    assert not Path(plan["root"]).exists()
    with mount_point(plan_tree([BIND])) as plan:
        assert plan["root"] == "/s/1/fs"
