"""What was applied to an erofs snapshot as an image: never lost, never hidden, never half."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from kontti.content.local import LocalStore
from kontti.diff.applier import LayerApplier
from kontti.errors import AlreadyExists, FailedPrecondition
from kontti.linux import fs
from kontti.linux.mounts import mounted
from kontti.snapshots.applied import APPLIED, COPYING, Draft, is_unpackers
from kontti.snapshots.erofs import ErofsSnapshotter
from kontti.testing.snapshots import read, seen, write
from kontti.values import Mount
from tests.support.filesystems import ext4, make_ext4
from tests.support.images import Entry
from tests.support.trees import BASE, apply_all, gzipped, look, put

pytestmark = pytest.mark.root
KEY = "default/7/extract-123456789-abc sha256:0"
FILES = [Entry("a", b"1"), Entry("d/b", b"2")]
LOOK = {"a": "1", "d/b": "2"}


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("disk")
    make_ext4(folder / "image", 256 << 20)
    with ext4(folder / "image", folder / "disk") as path:
        yield path


@pytest.fixture
def store(disk: Path, tmp_path: Path) -> Iterator[ErofsSnapshotter]:
    with closing(ErofsSnapshotter(str(disk / tmp_path.name))) as made:
        yield made


@pytest.fixture
def content(disk: Path, tmp_path: Path) -> LocalStore:
    return LocalStore(str(disk / f"content-{tmp_path.name}"))


def apply(
    store: ErofsSnapshotter, content: LocalStore, mounts: list[Mount], entries: list[Entry]
) -> None:
    LayerApplier(content, images=store.trees).apply(put(content, gzipped(entries)), mounts)


def applied(store: ErofsSnapshotter, number: int = 1) -> bool:
    """Whether it is an image, and nothing else."""
    names = set(os.listdir(store.path(number)))
    return APPLIED in names and os.listdir(store.tree(number)) == []


@pytest.mark.parametrize(
    ("key", "is_one"),
    [
        (KEY, True),
        ("extract-1 sha256:0", True),
        ("default/7/my-extract-1", False),
        ("a/b", False),
        ("extract", True),
        ("", False),
    ],
)
def test_keys_of_unpackers(key: str, is_one: bool) -> None:
    assert is_unpackers(key) is is_one


def test_an_unpackers_layer_is_committed_as_it_came(
    store: ErofsSnapshotter, content: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(store, content, store.prepare(KEY), BASE)
    assert applied(store)
    image = os.stat(store.folder(1).applied).st_ino

    def build(*_: object) -> None:
        raise AssertionError("there is nothing to build")

    monkeypatch.setattr(ErofsSnapshotter, "_build", build)
    store.commit("base", KEY)
    assert os.stat(store.image(1)).st_ino == image
    assert sorted(os.listdir(store.path(1))) == ["fs", "layer.erofs"]
    wanted = apply_all(tmp_path, [BASE]).tree()
    made = look(store.view("view", "base"))
    assert {**made, ".": replace(made["."], mtime=0)} == {
        **wanted,
        ".": replace(wanted["."], mtime=0),
    }


def test_others_get_files(store: ErofsSnapshotter, content: LocalStore) -> None:
    mounts = store.prepare("default/7/container")
    apply(store, content, mounts, FILES)
    assert read(mounts) == LOOK
    assert not applied(store)


def test_usage_is_the_images(store: ErofsSnapshotter, content: LocalStore) -> None:
    apply(store, content, store.prepare(KEY), [*BASE, Entry("big", os.urandom(1 << 20))])
    active = store.usage(KEY)
    assert active.size == os.stat(store.folder(1).applied).st_blocks * 512 >= 1 << 20
    store.commit("base", KEY)
    assert store.usage("base") == active
    store.own_files("base")
    assert fs.usage(store.tree(1))[1] == active.inodes
    assert store.damage("base") == ""


def test_who_asks_for_the_mounts_finds_files(store: ErofsSnapshotter, content: LocalStore) -> None:
    apply(store, content, store.prepare(KEY), BASE)
    with mounted([Mount("erofs", store.folder(1).applied, ("ro",))]) as shown:
        wanted = look([Mount("bind", shown, ("rbind", "ro"))])
    assert look(store.mounts(KEY)) == wanted
    assert not applied(store)
    # from here on it is as any other
    write(store.mounts(KEY), {"more": "3"})
    store.commit("base", KEY)
    assert {"more", "etc/passwd"} <= look(store.view("view", "base")).keys()


def test_whiteouts_and_marks_become_files(store: ErofsSnapshotter, content: LocalStore) -> None:
    apply(store, content, store.prepare(KEY), BASE)
    store.commit("base", KEY)
    above = [Entry("etc/.wh.passwd"), Entry("var/.wh..wh..opq"), Entry("var/new", b"n")]
    apply(store, content, store.prepare(KEY, "base"), above)
    assert applied(store, 2)
    found = look(store.mounts(KEY))
    assert "etc/passwd" not in found
    assert [path for path in found if path.startswith("var/")] == ["var/new"]
    assert {"etc/shadow", "link"} <= found.keys()


def test_a_second_layer_goes_over_the_first(store: ErofsSnapshotter, content: LocalStore) -> None:
    mounts = store.prepare(KEY)
    apply(store, content, mounts, FILES)
    apply(store, content, mounts, [Entry("a", b"again"), Entry("d/.wh.b"), Entry("c", b"3")])
    store.commit("base", KEY)
    assert seen(store, "base") == {"a": "again", "c": "3"}


def test_files_beside_the_image_are_not_hidden(
    store: ErofsSnapshotter, content: LocalStore
) -> None:
    mounts = store.prepare(KEY)
    apply(store, content, mounts, FILES)
    write(mounts, {"beside": "x"})
    for ask in (lambda: store.commit("base", KEY), lambda: store.mounts(KEY)):
        with pytest.raises(FailedPrecondition, match="has files beside the layer applied to it"):
            ask()
    os.unlink(os.path.join(store.tree(1), "beside"))
    store.commit("base", KEY)
    assert seen(store, "base") == LOOK


def test_who_writes_himself_is_an_unpacker_too(store: ErofsSnapshotter) -> None:
    """Clients with differs of their own."""
    write(store.prepare(KEY), {"own": "files"})
    store.commit("base", KEY)
    assert seen(store, "base") == {"own": "files"}


def test_a_copy_that_was_cut_short_is_made_again(
    store: ErofsSnapshotter, content: LocalStore
) -> None:
    for number, ask in enumerate((store.mounts, lambda key: store.commit("base", key)), 1):
        key = f"extract-{number} x"
        apply(store, content, store.prepare(key), FILES)
        folder = store.path(number)
        os.rename(f"{folder}/{APPLIED}", f"{folder}/{COPYING}")
        Path(store.tree(number), "a").write_text("hal")
        Path(store.tree(number), "odd").mkdir()
        ask(key)
        assert not os.path.exists(f"{folder}/{COPYING}")
    assert read(store.mounts("extract-1 x")) == LOOK
    assert seen(store, "base") == LOOK


def test_a_name_that_is_taken_loses_nothing(store: ErofsSnapshotter, content: LocalStore) -> None:
    apply(store, content, store.prepare(KEY), FILES)
    write(store.prepare("other"), {"o": "o"})
    store.commit("base", "other")
    with pytest.raises(AlreadyExists):
        store.commit("base", KEY)
    assert store.usage(KEY).inodes == 4
    store.commit("mine", KEY)
    assert seen(store, "mine") == LOOK


def test_two_appliers_at_the_same_time(store: ErofsSnapshotter, content: LocalStore) -> None:
    """The second to end is refused, and the first one's image stays."""
    mounts = store.prepare(KEY)
    keep = Draft.keep

    def late(draft: Draft) -> None:
        Draft.keep = keep  # type: ignore[method-assign]
        apply(store, content, mounts, FILES)
        draft.keep()

    Draft.keep = late  # type: ignore[method-assign]
    try:
        with pytest.raises(FailedPrecondition, match="has a layer already"):
            apply(store, content, mounts, [Entry("x", b"x")])
    finally:
        Draft.keep = keep  # type: ignore[method-assign]
    store.commit("base", KEY)
    assert seen(store, "base") == LOOK


def test_what_a_crash_left_of_a_commit_is_not_taken_for_the_files(store: ErofsSnapshotter) -> None:
    """The image was made, the record was not, and the owner went on to write."""
    write(store.prepare("key"), {"a": "1"})
    record = store.records.get("key")
    store._make_image(record)
    write(store.mounts("key"), {"b": "2"})
    store.commit("base", "key")
    assert seen(store, "base") == {"a": "1", "b": "2"}


KILLED = """
import os, sys
from pathlib import Path
sys.path[:] = {path!r}
from kontti.content.local import LocalStore
from kontti.snapshots.applied import Draft
from kontti.snapshots.erofs import ErofsSnapshotter
from tests.root.test_snapshots_applied import FILES, KEY, apply
store, content = ErofsSnapshotter({root!r}), LocalStore({root!r} + "-content")
def die(*_):
    os.kill(os.getpid(), 9)
if {stage!r} == "made":
    Draft.keep = die
elif {stage!r} == "linked":
    store.records.commit = die
elif {stage!r} == "recorded":
    store._make_mount_point = die
mounts = store.prepare(KEY)
apply(store, content, mounts, FILES)
store.commit("base", KEY)
"""


@pytest.mark.parametrize("stage", ["made", "linked", "recorded"])
def test_a_killed_process(disk: Path, tmp_path: Path, stage: str) -> None:
    root = str(disk / tmp_path.name)
    script = KILLED.format(path=sys.path, root=root, stage=stage)
    done = subprocess.run([sys.executable, "-c", script], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    content = LocalStore(f"{root}-content")
    with closing(ErofsSnapshotter(root)) as store:
        if stage == "made":
            assert sorted(os.listdir(store.path(1))) == [".erofslayer", "fs", "work"]
            apply(store, content, store.mounts(KEY), FILES)
        if stage != "recorded":
            store.commit("base", KEY)
        assert seen(store, "base") == LOOK
        assert store.damage("base") == ""


@pytest.mark.parametrize("seed", range(3))
def test_an_image_is_brought_in_line_where_it_stands(
    store: ErofsSnapshotter, content: LocalStore, seed: int
) -> None:
    """Directories of many names lose whiteouts that hide nothing, whatever block they are in."""
    chance = random.Random(seed)
    base = [Entry(f"d/{n}") for n in range(300)]
    apply(store, content, store.prepare(KEY), [Entry("d", kind=b"5", mode=0o711, uid=3), *base])
    store.commit("base", KEY)
    gone, ghosts = chance.sample(range(300), 40), chance.sample(range(1000, 1400), 150)
    names = [f"d/.wh.{n}" for n in (*gone, *ghosts)] + [f"d/new{'w' * n}" for n in range(200)]
    chance.shuffle(names)
    applier = LayerApplier(content, images=store.trees)
    key = "extract-2 b"
    alone = store.prepare(key)
    ahead = applier.apply_ahead(put(content, gzipped([Entry(name) for name in names])), alone)
    assert len(ahead.whiteouts) == 190
    applier.settle(ahead, alone, store.prepare("extract-3 c", "base"))
    assert applied(store, 2)
    store.commit("above", key, parent="base")
    found = look(store.view("view", "above"))
    wanted = {str(n) for n in set(range(300)) - set(gone)} | {f"new{'w' * n}" for n in range(200)}
    assert {path.removeprefix("d/") for path in found if path.startswith("d/")} == wanted
    assert (found["d"].mode, found["d"].owner) == ("drwx--x--x", (3, 0))
    assert store.damage("above") == ""
    assert store.usage("above").inodes == 2 + 40 + 200
