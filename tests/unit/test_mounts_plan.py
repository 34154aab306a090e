"""Which mounts the manager makes, and what is filled in: no mount is made here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontti.errors import Error, InvalidArgument, Unimplemented
from kontti.mounts.base import ActivateOptions, ActiveMount
from kontti.mounts.plan import MAX_MOUNTS, Plan, plan
from kontti.mounts.transforms import (
    MakeDirectories,
    MakeImage,
    Roots,
    fill,
    format_mount,
    mkfs,
    parse_size,
)
from kontti.values import Mount

TRANSFORMS, HANDLERS = ("format", "mkdir", "mkfs"), ("loop", "erofs")
ACTIVE = [ActiveMount(Mount("loop", f"/s{n}", (), f"t{n}"), f"/m/{n}", 1) for n in range(3)]


def planned(*types: str, temporary: bool = False, allowed: tuple[str, ...] = ()) -> Plan:
    mounts = [Mount(kind, "/source") for kind in types]
    options = ActivateOptions(temporary=temporary, allowed=allowed)
    return plan(mounts, TRANSFORMS, HANDLERS, options)


def shown(found: Plan) -> tuple[list[str], list[str]]:
    return [s.mount.type for s in found.active], [s.mount.type for s in found.system]


def test_what_the_system_can_mount_is_left_to_it() -> None:
    for types in ((), ("overlay",), ("bind", "ext4"), ("unknown/overlay",)):
        with pytest.raises(Unimplemented):
            planned(*types)


@pytest.mark.parametrize(
    ("types", "active", "system"),
    [
        (("loop",), ["loop"], []),
        (("loop", "ext4"), ["loop"], ["ext4"]),
        (("ext4", "loop"), ["ext4", "loop"], []),
        (("loop", "format/ext4"), ["loop"], ["ext4"]),
        (("erofs", "erofs", "format/mkdir/overlay"), ["erofs", "erofs"], ["overlay"]),
        (("bind", "format/overlay", "bind"), ["bind"], ["overlay", "bind"]),
        (("format/loop", "ext4"), ["loop"], ["ext4"]),
        (("mkfs/loop", "format/ext4", "format/overlay"), ["loop", "ext4"], ["overlay"]),
        (("mkdir/bind",), [], ["bind"]),
    ],
)
def test_all_up_to_the_last_that_the_system_cannot_is_active(
    types: tuple[str, ...], active: list[str], system: list[str]
) -> None:
    assert shown(planned(*types)) == (active, system)


def test_transforms_are_done_in_their_order() -> None:
    found = planned("loop", "format/mkdir/mkfs/overlay")
    assert found.system[0].transforms == ("format", "mkdir", "mkfs")
    assert planned("format/loop").active[0].transforms == ("format",)
    assert planned("format/loop").active[0].handler == "loop"


def test_a_temporary_one_is_active_as_a_whole() -> None:
    assert shown(planned("bind", "overlay", temporary=True)) == (["bind", "overlay"], [])
    assert shown(planned("loop", "format/ext4", temporary=True)) == (["loop", "ext4"], [])


def test_who_asks_may_make_some_himself() -> None:
    with pytest.raises(Unimplemented):
        planned("erofs", allowed=("erofs",))
    with pytest.raises(Unimplemented):
        planned("erofs", "format/overlay", allowed=("erofs", "format/*"))
    assert shown(planned("erofs", "format/overlay", allowed=("erofs",))) == (["erofs"], ["overlay"])
    kept = planned("loop", "format/overlay", allowed=("format/*",))
    assert shown(kept) == (["loop"], ["format/overlay"])
    assert kept.system[0].transforms == ()


def test_there_is_an_end_to_mounts() -> None:
    planned(*["loop"] * MAX_MOUNTS)
    with pytest.raises(InvalidArgument, match="too many mounts"):
        planned(*["loop"] * (MAX_MOUNTS + 1))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("plain", "plain"),
        ("{{ mount 0 }}", "/m/0"),
        ("{{mount 2}}/x", "/m/2/x"),
        ("{{ source 1 }}:{{ target 1 }}", "/s1:t1"),
        ("lowerdir={{ overlay 0 2 }}", "lowerdir=/m/0:/m/1:/m/2"),
        ("lowerdir={{ overlay 2 1 }}", "lowerdir=/m/2:/m/1"),
        ("{{ overlay 1 1 }}", "/m/1"),
        ("{{- mount 0 -}}", "/m/0"),
        ("}}{{ mount 0 }}", "}}/m/0"),
    ],
)
def test_formats(text: str, wanted: str) -> None:
    assert fill(text, ACTIVE) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "{{ mount 3 }}",
        "{{ mount -1 }}",
        "{{ overlay 0 3 }}",
        "{{ overlay -1 1 }}",
        "{{ overlay 0 }}",
        "{{ mount 0 1 }}",
        "{{ nothing 0 }}",
        "{{ mount }}",
        "{{ mount 0",
        "{{{{ mount 0 }}",
        "{{ mount 0 }}{{",
    ],
)
def test_formats_that_are_none(text: str) -> None:
    with pytest.raises(InvalidArgument):
        fill(text, ACTIVE)


@given(st.text(alphabet="{}- mountoverlay0129\n"))
def test_any_format_is_filled_in_or_refused(text: str) -> None:
    try:
        filled = fill(text, ACTIVE)
    except InvalidArgument:
        return
    assert "{{" not in filled or "{{" in text


def test_source_target_and_options_are_filled_in() -> None:
    mount = Mount("overlay", "{{ source 0 }}", ("a", "b={{ mount 1 }}"), "{{ target 2 }}")
    wanted = Mount("overlay", "/s0", ("a", "b=/m/1"), "t2")
    assert format_mount(mount, ACTIVE) == wanted


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("10M", 10 << 20),
        ("16MiB", 16 << 20),
        ("1g", 1 << 30),
        ("1.5k", 1536),
        ("2 kb", 2048),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "x", "1x", "9999p", "1 2", "1e9"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_size(text)


def test_commands_that_make_file_systems() -> None:
    assert mkfs("ext4", "") == ["mkfs.ext4", "-q"]
    assert mkfs("xfs", "ab-12") == ["mkfs.xfs", "-q", "-m", "uuid=ab-12"]
    for kind, uuid in (("btrfs", ""), ("ext4; rm", ""), ("ext4", "-E x"), ("ext4", "x y")):
        with pytest.raises(InvalidArgument):
            mkfs(kind, uuid)


def make(root: Path, *options: str) -> Mount:
    return MakeDirectories(Roots((str(root),)))(Mount("overlay", "o", options), ())


def test_directories_are_made(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        made = make(
            tmp_path,
            f"X-containerd.mkdir.path={tmp_path}/a",
            "lowerdir=/x",
            f"X-containerd.mkdir.path={tmp_path}/a/b:755",
            f"X-containerd.mkdir.path={tmp_path}/c:0711:{os.getuid()}:{os.getgid()}",
        )
    finally:
        os.umask(before)
    assert made.options == ("lowerdir=/x",)
    modes = [(tmp_path / name).stat().st_mode & 0o7777 for name in ("a", "a/b", "c")]
    assert modes == [0o700, 0o755, 0o711]
    make(tmp_path, f"X-containerd.mkdir.path={tmp_path}/c:700")
    assert (tmp_path / "c").stat().st_mode & 0o7777 == 0o711


def test_directories_are_made_below_the_roots_alone(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "out").symlink_to(tmp_path)
    (root / "in").symlink_to("real")
    (root / "real").mkdir()
    for path in (f"{tmp_path}/x", f"{root}x/y", f"{root}/../x", "x", "/"):
        with pytest.raises(Unimplemented, match=r"no root .* configured for mkdir"):
            make(root, f"X-containerd.mkdir.path={path}")
    with pytest.raises(OSError, match="openat2"):
        make(root, f"X-containerd.mkdir.path={root}/out/x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["root"]
    make(root, f"X-containerd.mkdir.path={root}/in/x")
    assert (root / "real" / "x").is_dir()


@pytest.mark.parametrize(
    "option",
    [
        "path", "path=", "mode=1", "path={}:9", "path={}:1777", "path={}:7:0", "path={}:7:x:0",
        "path={}:7:-1:0", "path={}:+7",
    ],
)  # fmt: skip
def test_mkdir_options_that_are_none(tmp_path: Path, option: str) -> None:
    with pytest.raises(InvalidArgument):
        make(tmp_path, "X-containerd.mkdir." + option.format(tmp_path / "x"))
    assert list(tmp_path.iterdir()) == []


def image(root: Path, source: str, *options: str) -> Mount:
    prefixed = tuple(f"X-containerd.mkfs.{option}" for option in options)
    return MakeImage(Roots((str(root),)))(Mount("loop", source, (*prefixed, "ro")), ())


def test_an_image_is_made_once_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "image"
    uuid = "11111111-2222-3333-4444-555555555555"
    made = image(tmp_path, str(path), "size=2M", "fs=ext4", f"uuid={uuid}")
    assert made.options == ("ro",)
    assert path.stat().st_size == 2 << 20
    data = path.read_bytes()
    assert data[1024 + 56 : 1024 + 58] == b"\x53\xef"
    assert data[1024 + 104 : 1024 + 120] == bytes.fromhex(uuid.replace("-", ""))
    path.write_bytes(b"another's")
    image(tmp_path, str(path), "size=2M")
    assert path.read_bytes() == b"another's"
    assert [p.name for p in tmp_path.iterdir()] == ["image"]


def test_an_image_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    for options in ((), ("size=0",), ("size=1M", "fs=zfs"), ("size=1M", "other=1")):
        with pytest.raises(InvalidArgument):
            image(tmp_path, str(tmp_path / "image"), *options)
    with pytest.raises(Unimplemented, match="configured for mkfs"):
        image(tmp_path / "root", "/elsewhere/image", "size=1M")
    with pytest.raises(Error, match=r"mkfs.ext4 failed"):
        image(tmp_path, str(tmp_path / "image"), "size=1k")
    assert list(tmp_path.iterdir()) == []
