"""What every snapshotter must do: plain functions over a snapshotter, for any test runner.

    for check in CHECKS:
        check(make_snapshotter())

A check raises AssertionError where the snapshotter is not as it should be. Each uses names of its
own, so that one snapshotter can be held against all of them. They mount what the snapshotter says,
so they need root; every mount is gone when a check ends.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from kontti.errors import (
    AlreadyExists,
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unimplemented,
)
from kontti.linux.mounts import mounted
from kontti.snapshots.base import Info, Kind, Snapshotter
from kontti.testing.content import raises
from kontti.values import Mount

Check = Callable[[Snapshotter], None]
LAYERS = 130
"""More than fit in one page of mount options."""


def write(mounts: Sequence[Mount], files: dict[str, str]) -> None:
    """Write ``files`` to what is mounted; directories on the way are made."""
    with mounted(mounts) as root:
        for name, text in files.items():
            path = Path(root, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def read(mounts: Sequence[Mount]) -> dict[str, str]:
    """All files of what is mounted, by path."""
    found = {}
    with mounted(mounts) as root:
        for folder, _, names in os.walk(root):
            for name in names:
                path = os.path.join(folder, name)
                found[os.path.relpath(path, root)] = Path(path).read_text()
    return found


def layer(store: Snapshotter, name: str, parent: str, files: dict[str, str]) -> str:
    """A committed snapshot ``name`` with ``files`` over ``parent``."""
    write(store.prepare(f"{name}-key", parent), files)
    store.commit(name, f"{name}-key")
    return name


def seen(store: Snapshotter, name: str) -> dict[str, str]:
    """What a view of a committed snapshot shows."""
    key = f"{name}-seen"
    try:
        return read(store.view(key, name))
    finally:
        store.remove(key)


def check_layers_are_seen_through(store: Snapshotter) -> None:
    """A view shows its parent and what is below it; a later layer's file hides an earlier one's."""
    layer(store, "through-1", "", {"a": "1", "d/b": "1"})
    layer(store, "through-2", "through-1", {"a": "2", "d/c": "2"})
    assert seen(store, "through-1") == {"a": "1", "d/b": "1"}
    assert seen(store, "through-2") == {"a": "2", "d/b": "1", "d/c": "2"}


def check_what_is_removed_above_stays_below(store: Snapshotter) -> None:
    """A file or directory that a layer removes is gone in it, and there in its parent."""
    layer(store, "removed-1", "", {"a": "1", "d/b": "1", "d/c": "1"})
    with mounted(store.prepare("removed-key", "removed-1")) as root:
        os.unlink(os.path.join(root, "a"))
        shutil.rmtree(os.path.join(root, "d"))
        os.mkdir(os.path.join(root, "d"))
        Path(root, "d/new").write_text("2")
    store.commit("removed-2", "removed-key")
    assert seen(store, "removed-2") == {"d/new": "2"}
    assert seen(store, "removed-1") == {"a": "1", "d/b": "1", "d/c": "1"}


def check_kinds_are_replaced(store: Snapshotter) -> None:
    """A directory can become a file, a file a directory, and what was in it does not come back."""
    layer(store, "kinds-1", "", {"dir/a": "1", "dir/deep/b": "1", "file": "1", "same/a": "1"})
    with mounted(store.prepare("kinds-key", "kinds-1")) as root:
        shutil.rmtree(os.path.join(root, "dir"))
        os.unlink(os.path.join(root, "file"))
        os.mkdir(os.path.join(root, "file"))
        os.symlink("same", os.path.join(root, "dir"))
        shutil.rmtree(os.path.join(root, "same"))
        os.mkdir(os.path.join(root, "same"))
    store.commit("kinds-2", "kinds-key")
    write(store.prepare("kinds-key", "kinds-2"), {"file/new": "3", "same/b": "3"})
    store.commit("kinds-3", "kinds-key")
    assert seen(store, "kinds-3") == {"file/new": "3", "same/b": "3"}
    with mounted(store.view("kinds-view", "kinds-3")) as root:
        assert os.readlink(os.path.join(root, "dir")) == "same"
    store.remove("kinds-view")


def check_renames(store: Snapshotter) -> None:
    """Files of any layer can be renamed, and directories of the last; one of a layer below may be
    refused with EXDEV, as overlayfs does, which tools answer with a copy."""
    layer(store, "rename-1", "", {"old": "1", "low/a": "1", "into/x": "1"})
    with mounted(store.prepare("rename-key", "rename-1")) as root:
        os.rename(os.path.join(root, "old"), os.path.join(root, "into/x"))
        os.mkdir(os.path.join(root, "made"))
        os.rename(os.path.join(root, "made"), os.path.join(root, "moved"))
        shutil.move(os.path.join(root, "low"), os.path.join(root, "moved/low"))
    store.commit("rename-2", "rename-key")
    assert seen(store, "rename-2") == {"into/x": "1", "moved/low/a": "1"}
    assert seen(store, "rename-1") == {"old": "1", "low/a": "1", "into/x": "1"}


def check_modes_and_owners(store: Snapshotter) -> None:
    """Mode and owner of files and of the root itself come through layers."""
    with mounted(store.prepare("modes-key")) as root:
        os.chmod(root, 0o1751)
        os.chown(root, 5, 6)
        Path(root, "f").touch()
        os.chown(os.path.join(root, "f"), 7, 8)
        os.chmod(os.path.join(root, "f"), 0o4711)
    store.commit("modes", "modes-key")
    layer(store, "modes-2", "modes", {"other": ""})
    with mounted(store.view("modes-view", "modes-2")) as root:
        above, file = os.stat(root), os.stat(os.path.join(root, "f"))
    assert (above.st_uid, above.st_gid, stat.S_IMODE(above.st_mode)) == (5, 6, 0o1751)
    assert (file.st_uid, file.st_gid, stat.S_IMODE(file.st_mode)) == (7, 8, 0o4711)
    store.remove("modes-view")


def check_special_files(store: Snapshotter) -> None:
    """Links, FIFOs, devices and extended attributes come through layers."""
    with mounted(store.prepare("special-key")) as root:
        first = os.path.join(root, "f")
        Path(first).write_text("x")
        os.setxattr(first, "user.colour", b"red")
        os.link(first, os.path.join(root, "hard"))
        os.symlink("f", os.path.join(root, "soft"))
        os.mkfifo(os.path.join(root, "fifo"))
        os.mknod(os.path.join(root, "null"), stat.S_IFCHR | 0o666, os.makedev(1, 3))
    store.commit("special", "special-key")
    with mounted(store.prepare("special-2", "special")) as root:
        assert os.stat(os.path.join(root, "f")).st_nlink == 2
        assert os.getxattr(os.path.join(root, "f"), "user.colour") == b"red"
        assert os.readlink(os.path.join(root, "soft")) == "f"
        assert stat.S_ISFIFO(os.stat(os.path.join(root, "fifo")).st_mode)
        assert os.stat(os.path.join(root, "null")).st_rdev == os.makedev(1, 3)
    store.remove("special-2")


def check_writes_stay_in_the_active_one(store: Snapshotter) -> None:
    """Two active snapshots of one parent do not see each other, nor does the parent."""
    layer(store, "apart", "", {"a": "1"})
    one, two = store.prepare("apart-1", "apart"), store.prepare("apart-2", "apart")
    write(one, {"a": "one"})
    write(two, {"b": "two"})
    assert read(store.mounts("apart-1")) == {"a": "one"}
    assert read(store.mounts("apart-2")) == {"a": "1", "b": "two"}
    assert seen(store, "apart") == {"a": "1"}
    store.remove("apart-1")
    store.remove("apart-2")


def check_views_cannot_be_written(store: Snapshotter) -> None:
    """A write to a view fails, whatever its parents."""
    layer(store, "ro-1", "", {"a": "1"})
    layer(store, "ro-2", "ro-1", {"b": "1"})
    for number, parent in enumerate(("", "ro-1", "ro-2")):
        with mounted(store.view(f"ro-view-{number}", parent)) as root:
            try:
                os.mkdir(os.path.join(root, "new"))
            except OSError:
                pass
            else:
                raise AssertionError(f"a view of {parent!r} was written to")
        store.remove(f"ro-view-{number}")


def check_many_layers(store: Snapshotter) -> None:
    """A chain of 130 layers can be mounted, and shows the last of each name."""
    parent = ""
    for number in range(LAYERS):
        parent = layer(store, f"many-{number}", parent, {"top": str(number), f"l{number}": ""})
    found = seen(store, parent)
    assert found["top"] == str(LAYERS - 1)
    assert len(found) == LAYERS + 1
    write(store.prepare("many-active", parent), {"top": "written"})
    assert read(store.mounts("many-active"))["top"] == "written"
    store.remove("many-active")


def check_stat(store: Snapshotter) -> None:
    """Kind, parent, labels and times are as they were made."""
    store.prepare("stat-key", labels={"colour": "red"})
    info = store.stat("stat-key")
    assert (info.kind, info.name, info.parent) == (Kind.ACTIVE, "stat-key", "")
    assert dict(info.labels) == {"colour": "red"}
    assert 0 < info.created_at <= info.updated_at
    store.commit("stat", "stat-key", {"size": "xl"})
    info = store.stat("stat")
    assert (info.kind, dict(info.labels)) == (Kind.COMMITTED, {"size": "xl"})
    store.view("stat-view", "stat")
    info = store.stat("stat-view")
    assert (info.kind, info.parent) == (Kind.VIEW, "stat")


def check_labels_are_updated(store: Snapshotter) -> None:
    """All labels, or those that paths name; nothing else can be changed."""
    store.prepare("labels", labels={"a": "1", "b": "2"})
    store.update(Info(Kind.ACTIVE, "labels", labels={"a": "3", "c": "4"}), ["labels.a"])
    assert dict(store.stat("labels").labels) == {"a": "3", "b": "2"}
    store.update(Info(Kind.ACTIVE, "labels", labels={"c": "4"}))
    assert dict(store.stat("labels").labels) == {"c": "4"}
    with raises(InvalidArgument):
        store.update(Info(Kind.ACTIVE, "labels"), ["parent"])
    with raises(NotFound):
        store.update(Info(Kind.ACTIVE, "labels-nosuch"))


def check_walk_and_filters(store: Snapshotter) -> None:
    """All are listed once; filters choose by name, parent, kind and labels."""
    layer(store, "walk", "", {})
    store.prepare("walk-active", "walk", {"colour": "blue"})
    names = [info.name for info in store.walk()]
    assert names.count("walk") == names.count("walk-active") == 1
    for wanted in ("parent==walk", "labels.colour==blue", 'name=="walk-active"'):
        assert [i.name for i in store.walk([f"kind==active,{wanted}"])] == ["walk-active"]
    assert "walk" in [i.name for i in store.walk(["kind==committed"])]
    with raises(InvalidArgument):
        list(store.walk(["name=="]))


def check_usage(store: Snapshotter) -> None:
    """What a snapshot takes grows with what is written, and is kept by commit."""
    mounts = store.prepare("usage-key")
    before = store.usage("usage-key")
    write(mounts, {"big": "x" * (1 << 20)})
    after = store.usage("usage-key")
    assert after.size >= before.size + (1 << 20)
    assert after.inodes - before.inodes in (0, 1)  # one of images may count these
    store.commit("usage", "usage-key")
    assert store.usage("usage").size >= 1 << 20
    with raises(NotFound):
        store.usage("usage-nosuch")


def check_names_are_taken_once(store: Snapshotter) -> None:
    """A key or name that is there is refused, and what was there stays as it was."""
    layer(store, "taken", "", {"a": "1"})
    store.prepare("taken-active")
    for make in (store.prepare, store.view):
        for name in ("taken", "taken-active"):
            with raises(AlreadyExists):
                make(name)
    write(store.mounts("taken-active"), {"b": "2"})
    with raises(AlreadyExists):
        store.commit("taken", "taken-active")
    assert store.stat("taken-active").kind is Kind.ACTIVE
    assert read(store.mounts("taken-active")) == {"b": "2"}
    assert seen(store, "taken") == {"a": "1"}


def check_a_name_is_free_after_commit_and_remove(store: Snapshotter) -> None:
    """Commit takes the key away; remove takes the name."""
    layer(store, "free", "", {})
    with raises(NotFound):
        store.stat("free-key")
    store.prepare("free-key")
    store.remove("free-key")
    store.remove("free")
    layer(store, "free", "", {"new": "1"})
    assert seen(store, "free") == {"new": "1"}


def check_parents_are_committed_ones(store: Snapshotter) -> None:
    """A parent that is not there, or active, is refused and leaves nothing."""
    store.prepare("parents-active")
    for make in (store.prepare, store.view):
        with raises(NotFound):
            make("parents-1", "parents-nosuch")
        with raises(InvalidArgument):
            make("parents-1", "parents-active")
    with raises(NotFound):
        store.stat("parents-1")


def check_only_active_ones_are_committed(store: Snapshotter) -> None:
    """Neither a view nor a committed one nor none can be committed."""
    layer(store, "only", "", {})
    store.view("only-view", "only")
    for key in ("only", "only-view"):
        with raises(FailedPrecondition):
            store.commit("only-new", key)
    with raises(NotFound):
        store.commit("only-new", "only-nosuch")


def check_one_with_children_stays(store: Snapshotter) -> None:
    """Remove is refused while anything is made from it."""
    layer(store, "parent", "", {"a": "1"})
    store.prepare("child", "parent")
    with raises(FailedPrecondition):
        store.remove("parent")
    assert seen(store, "parent") == {"a": "1"}
    store.remove("child")
    store.remove("parent")
    with raises(NotFound):
        store.remove("parent")


def check_unknown_keys(store: Snapshotter) -> None:
    """NotFound, from everything that takes one."""
    for call in (store.stat, store.mounts, store.usage, store.remove):
        with raises(NotFound):
            call("unknown")


def check_committed_ones_have_no_mounts_of_their_own(store: Snapshotter) -> None:
    """What is committed cannot be written to: no mounts of it, or mounts that are read-only."""
    layer(store, "fixed", "", {"a": "1"})
    try:
        mounts = store.mounts("fixed")
    except Error:
        return
    assert all("rw" not in mount.options for mount in mounts)


def check_rebase(store: Snapshotter) -> None:
    """What was prepared over none is put over a parent by commit, and shows it; or is refused.

    For what has a parent, that is the only one that commit takes.
    """
    layer(store, "rebase-base", "", {"a": "1", "b": "1"})
    layer(store, "rebase-other", "", {})
    write(store.prepare("rebase-key", "rebase-base"), {"c": "3"})
    with raises(FailedPrecondition):
        store.commit("rebase-same", "rebase-key", parent="rebase-other")
    store.commit("rebase-same", "rebase-key", parent="rebase-base")
    assert seen(store, "rebase-same") == {"a": "1", "b": "1", "c": "3"}
    write(store.prepare("rebase-key"), {"b": "2"})
    try:
        store.commit("rebase", "rebase-key", parent="rebase-base")
    except Unimplemented:
        assert read(store.mounts("rebase-key")) == {"b": "2"}
        return
    assert store.stat("rebase").parent == "rebase-base"
    assert seen(store, "rebase") == {"a": "1", "b": "2"}
    store.prepare("rebase-free")
    with raises(NotFound):
        store.commit("rebase-2", "rebase-free", parent="rebase-nosuch")
    assert store.stat("rebase-free").kind is Kind.ACTIVE


def check_cleanup_can_be_done_any_time(store: Snapshotter) -> None:
    """It frees what was removed, harms nothing that is there, and may be done twice."""
    layer(store, "clean", "", {"a": "1"})
    write(store.prepare("clean-gone"), {"b": "1"})
    store.remove("clean-gone")
    store.cleanup()
    store.cleanup()
    assert seen(store, "clean") == {"a": "1"}


CHECKS: tuple[Check, ...] = (
    check_layers_are_seen_through,
    check_what_is_removed_above_stays_below,
    check_kinds_are_replaced,
    check_renames,
    check_modes_and_owners,
    check_special_files,
    check_writes_stay_in_the_active_one,
    check_views_cannot_be_written,
    check_many_layers,
    check_stat,
    check_labels_are_updated,
    check_walk_and_filters,
    check_usage,
    check_names_are_taken_once,
    check_a_name_is_free_after_commit_and_remove,
    check_parents_are_committed_ones,
    check_only_active_ones_are_committed,
    check_one_with_children_stays,
    check_unknown_keys,
    check_committed_ones_have_no_mounts_of_their_own,
    check_rebase,
    check_cleanup_can_be_done_any_time,
)
