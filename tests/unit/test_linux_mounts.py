"""Mount options as words, without making a mount."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontti.errors import InvalidArgument
from kontti.linux import libc, mounts, overlays
from kontti.values import Mount

WORDS = sorted([*mounts.FLAGS, *mounts.PROPAGATION])
DATA = st.from_regex(r"[a-z]{1,8}=[a-z0-9/:]{0,8}", fullmatch=True)


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        (["ro", "rw"], 0),
        (["rw", "ro"], libc.MS_RDONLY),
        (["nosuid", "nodev", "suid"], libc.MS_NODEV),
        (["defaults"], 0),
        (["bind", "ro"], libc.MS_BIND | libc.MS_RDONLY),
        (["rbind"], libc.MS_BIND | libc.MS_REC),
        (["noatime", "atime", "relatime"], libc.MS_RELATIME),
        (["sync", "async", "dirsync"], libc.MS_DIRSYNC),
    ],
)
def test_later_words_undo_earlier_ones(options: list[str], flags: int) -> None:
    assert mounts.parse_options(options) == (flags, 0, [])


def test_the_last_propagation_holds() -> None:
    assert mounts.parse_options(["rshared", "private"])[1] == libc.MS_PRIVATE
    assert mounts.parse_options(["rslave"])[1] == libc.MS_SLAVE | libc.MS_REC


@given(st.lists(st.one_of(st.sampled_from(WORDS), DATA)))
def test_what_is_no_word_is_for_the_file_system_in_its_order(options: list[str]) -> None:
    flags, propagation, data = mounts.parse_options(options)
    assert data == [option for option in options if option not in WORDS]
    words = [option for option in options if option in WORDS]
    assert mounts.parse_options(words) == (flags, propagation, [])


def test_loop_is_refused() -> None:
    assert mounts.parse_options(["ro", "loop"]) == (libc.MS_RDONLY, 0, [])


def test_options_that_the_kernel_would_cut_off_are_refused() -> None:
    options = ["size=1m"] * 600
    with pytest.raises(InvalidArgument, match="longer than a page"):
        mounts.mount_one(Mount("tmpfs", "tmpfs", tuple(options)), "/nonexistent")


@pytest.mark.parametrize(
    ("release", "version"),
    [("6.18.0-1-amd64", (6, 18)), ("5.10.0", (5, 10)), ("4.19-rc1", (4, 19)), ("6.x", (6, 0))],
)
def test_kernel_version(
    release: str, version: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    named = os.uname_result(("Linux", "host", release, "#1", "x86_64"))
    monkeypatch.setattr(os, "uname", lambda: named)
    assert overlays.kernel_version() == version
