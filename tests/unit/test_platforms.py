"""Platforms are spelled, matched and ordered as containerd's are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontti.errors import InvalidArgument
from kontti.images.platforms import (
    any_of,
    default,
    format_platform,
    normalize,
    only,
    only_strict,
    parse,
    select,
)
from kontti.values import Descriptor, Digest, Platform

DIGEST = Digest("sha256:" + "0" * 64)


@pytest.mark.parametrize(
    ("text", "usual"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("Linux/AArch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/v9", "linux/arm64/v9"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/arm/5", "linux/arm/v5"),
        ("linux/i686", "linux/386"),
        ("linux/ppc64le", "linux/ppc64le"),
        ("macos/arm64", "darwin/arm64"),
        ("windows(10.0.17763)/amd64", "windows/amd64"),
    ],
)
def test_spellings(text: str, usual: str) -> None:
    assert format_platform(parse(text)) == usual
    assert parse(usual) == normalize(parse(usual))


def test_one_word_is_completed_by_this_machine() -> None:
    assert parse("linux") == default()
    assert parse("s390x") == Platform("linux", "s390x")
    assert parse("windows(10.0)/amd64").os_version == "10.0"


@pytest.mark.parametrize(
    "text", ["", "/", "linux/", "linux/*", "a/b/c/d", "tofu", "lin ux/amd64", "linux//v8"]
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse(text)


@given(st.text(max_size=20))
def test_any_text_is_a_platform_or_refused(text: str) -> None:
    try:
        parse(text)
    except InvalidArgument:
        pass


@pytest.mark.parametrize(
    ("machine", "order"),
    [
        ("linux/amd64", ["linux/amd64", "linux/386"]),
        ("linux/amd64/v3", ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64", "linux/386"]),
        ("linux/arm64", ["linux/arm64", "linux/arm/v8", "linux/arm/v7", "linux/arm/v6"]),
        ("linux/arm/v7", ["linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]),
        ("linux/s390x", ["linux/s390x"]),
    ],
)
def test_what_a_machine_runs_best_first(machine: str, order: list[str]) -> None:
    matcher = only(parse(machine))
    ranked = sorted(order, key=lambda text: matcher.rank(parse(text)))
    assert all(matcher.match(parse(text)) for text in order)
    assert ranked == order


@pytest.mark.parametrize(
    ("machine", "other"),
    [
        ("linux/amd64", "linux/arm64"),
        ("linux/amd64", "linux/amd64/v3"),
        ("linux/amd64", "windows/amd64"),
        ("linux/arm/v6", "linux/arm/v7"),
        ("linux/386", "linux/amd64"),
    ],
)
def test_what_a_machine_does_not_run(machine: str, other: str) -> None:
    assert not only(parse(machine)).match(parse(other))


def test_strict_and_several() -> None:
    assert not only_strict(parse("linux/arm64")).match(parse("linux/arm/v7"))
    several = any_of([parse("linux/amd64"), parse("linux/s390x")])
    assert several.match(parse("linux/s390x"))
    assert not several.match(parse("linux/386"))
    assert any_of([]).match(parse("plan9/mips"))


def test_selection_is_best_first_and_limited() -> None:
    texts = ["linux/386", "linux/arm64", "linux/amd64"]
    entries = [Descriptor("m", DIGEST, 1, platform=parse(text)) for text in texts]
    entries.append(Descriptor("m", DIGEST, 1))
    found = select(entries, only(parse("linux/amd64")))
    assert [str(d.platform) for d in found] == ["linux/amd64", "linux/386", "None"]
    assert len(select(entries, only(parse("linux/amd64")), 1)) == 1
