"""Users and groups come from the image's own files, and from nowhere else."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontti.errors import InvalidArgument, NotFound
from kontti.oci.accounts import (
    AccountSource,
    parse_group,
    parse_passwd,
    read_accounts,
    resolve_user,
    supplementary_groups,
)

PASSWD = "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1001:Alice:/home/alice:/bin/sh\n"
GROUP = "root:x:0:root\nalice:x:1001:alice\nstaff:x:50:bob,alice\nwheel:x:10:root\n"


def source(root: Path, passwd: str | None = PASSWD, group: str | None = GROUP) -> AccountSource:
    (root / "etc").mkdir(exist_ok=True)
    if passwd is not None:
        (root / "etc/passwd").write_text(passwd)
    if group is not None:
        (root / "etc/group").write_text(group)
    return AccountSource(lambda: contextlib.nullcontext(str(root)))


@pytest.mark.parametrize(
    ("text", "uid", "gid"),
    [
        ("alice", 1000, 1001),
        ("1000", 1000, 1001),
        ("4242", 4242, 0),
        ("alice:staff", 1000, 50),
        ("alice:7", 1000, 7),
        ("12:staff", 12, 50),
        ("12:34", 12, 34),
        ("alice:", 1000, 1001),
        (":staff", 0, 50),
        ("0", 0, 0),
    ],
)
def test_user_forms(tmp_path: Path, text: str, uid: int, gid: int) -> None:
    assert resolve_user(text, source(tmp_path)) == {"uid": uid, "gid": gid}


@pytest.mark.parametrize("text", ["", ":", "a:b:c"])
def test_text_that_names_no_user(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid USER value"):
        resolve_user(text, source(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nobody", "no users found"),
        ("alice:nogroup", "no groups found"),
        ("-1", "no users found"),
        ("2147483648", "no users found"),
        ("99999999999999999999", "no users found"),
        ("\u0661", "no users found"),
    ],
)
def test_unknown_names(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(NotFound, match=message):
        resolve_user(text, source(tmp_path))


def test_an_image_without_the_files_knows_numbers_only(tmp_path: Path) -> None:
    accounts = source(tmp_path, None, None)
    assert resolve_user("1000", accounts) == {"uid": 1000, "gid": 0}
    assert supplementary_groups("root", accounts) == ()
    with pytest.raises(NotFound, match="no users found"):
        resolve_user("root", accounts)


def test_further_groups_are_those_that_list_the_user(tmp_path: Path) -> None:
    accounts = source(tmp_path)
    assert supplementary_groups("alice", accounts) == (50,)
    assert supplementary_groups("1000", accounts) == (50,)
    assert supplementary_groups("root", accounts) == (10,)
    assert supplementary_groups("4242", accounts) == ()


def test_numbers_alone_need_no_root() -> None:
    assert resolve_user("1:2", AccountSource(None)) == {"uid": 1, "gid": 2}
    with pytest.raises(InvalidArgument, match="rootfs absolute path is required"):
        resolve_user("alice", AccountSource(None))


def test_a_root_is_opened_once_and_only_if_asked(tmp_path: Path) -> None:
    opened = []
    source(tmp_path)

    @contextlib.contextmanager
    def rootfs() -> Iterator[str]:
        opened.append(True)
        yield str(tmp_path)

    accounts = AccountSource(rootfs)
    assert not opened
    resolve_user("alice:staff", accounts)
    supplementary_groups("alice", accounts)
    assert len(opened) == 1


def test_links_stay_inside_the_image(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("inside:x:5:6::/:/\n")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").symlink_to("/../../real")
    (tmp_path / "etc/group").symlink_to("/etc/group-of-host")
    accounts = read_accounts(str(tmp_path))
    assert [user.name for user in accounts.users] == ["inside"]
    assert accounts.groups == ()


def a_loop(path: Path) -> None:
    path.symlink_to("passwd")


def a_large_file(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, a_loop, a_large_file])
def test_what_is_no_plain_file_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    (tmp_path / "etc").mkdir()
    make(tmp_path / "etc/passwd")
    with pytest.raises(InvalidArgument, match="/etc/passwd of the image"):
        read_accounts(str(tmp_path))


def test_bad_lines_are_passed_over() -> None:
    data = (
        b"\n#c:x:1:1\nshort:x:1\nn:x:NaN:1\n:x:1:1\nminus:x:-1:1\nok:x:7:8\n\xff:x:9:9\n+::::::\n"
    )
    assert [(u.name, u.uid, u.gid) for u in parse_passwd(data)] == [("ok", 7, 8), ("\udcff", 9, 9)]
    groups = list(parse_group(b"g:x\nh:x:bad:a\nok:x:3:a, ,b\nbare:x:4\n"))
    assert [(g.name, g.gid, g.members) for g in groups] == [("ok", 3, ("a", "b")), ("bare", 4, ())]


@given(st.binary())
def test_any_bytes_parse(data: bytes) -> None:
    for user in parse_passwd(data):
        assert user.name
        assert 0 <= user.uid < 1 << 31
    for group in parse_group(data):
        assert group.name
        assert 0 <= group.gid < 1 << 31
