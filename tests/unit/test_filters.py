"""The filter grammar, and what it selects."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontti.errors import InvalidArgument
from kontti.filters import Adaptor, field_adaptor, parse, parse_all

IMAGE = field_adaptor(
    {"name": "docker.io/library/alpine:3", "target.digest": "sha256:aa", "empty": ""},
    {"labels": {"color": "red", "containerd.io/gc.root": "1", "none": ""}},
)


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("", True),
        ("name", True),
        ("empty", False),
        ("other", False),
        ("name==docker.io/library/alpine:3", True),
        ('name=="docker.io/library/alpine:3"', True),
        ("name != foo", True),
        ("absent!=foo", True),
        ("absent==", None),
        ("name~=alpine", True),
        ("name~=^alpine", False),
        ('name~="^docker[.]io/"', True),
        ("name~=/library\\/al/", True),
        ("name~=|library/al|", True),
        ("target.digest==sha256:aa", True),
        ("labels.color==red", True),
        ("labels.color", True),
        ("labels.none", True),
        ('labels."containerd.io/gc.root"', True),
        ('labels."containerd.io/gc.root"==2', False),
        ("labels.color==red,name~=alpine", True),
        ("labels.color==red, name~=busybox", False),
        ('labels."c\\x6flor"=="\\u0072\\145d"', True),
        ("name~=(a+)+b", None),
        ("name~=([a-z]+|x)*y", None),
        ("name~=(al)+", True),
        ("name~=[", None),
        ("name~=/open", None),
        ('name=="open', None),
        ('name=="\\q"', None),
        ("name=alpine", None),
        ("==x", None),
        ("name,", None),
        ("name==a b", None),
        ("na-me==a", None),
    ],
)
def test_selects(expression: str, wanted: bool | None) -> None:
    if wanted is None:
        with pytest.raises(InvalidArgument, match=r"at position \d+"):
            parse(expression)
    else:
        assert parse(expression).match(IMAGE) is wanted


def test_filters_are_alternatives_and_none_matches_all() -> None:
    assert parse_all([]).match(IMAGE)
    assert parse_all(["name==x", "labels.color==red"]).match(IMAGE)
    assert not parse_all(["name==x", "labels.color==blue"]).match(IMAGE)
    assert parse_all(["name==x", ""]).match(IMAGE)


def test_too_long_is_refused_and_not_echoed() -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse("a" * 100_000)
    assert len(caught.value.message) < 400


def quoted(text: str) -> str:
    return (
        '"' + "".join(f"\\U{ord(c):08x}" if ord(c) > 126 or c in '"\\' else c for c in text) + '"'
    )


@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    st.text(st.characters(exclude_categories=["Cs"])),
)
def test_any_text_can_be_quoted(key: str, value: str) -> None:
    adaptor: Adaptor = field_adaptor({}, {"labels": {key: value}})
    assert parse(f"labels.{quoted(key)}=={quoted(value)}").match(adaptor)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of patterns such as [[
@given(st.text(max_size=60))
def test_anything_parses_or_says_why(expression: str) -> None:
    try:
        parse(expression).match(IMAGE)
    except InvalidArgument:
        pass


@pytest.mark.parametrize("operator", ["===", "=", "!", "=~", "~", "==!"])
def test_operators_that_are_none(operator: str) -> None:
    with pytest.raises(InvalidArgument, match="unsupported operator"):
        parse_all([f"name{operator}x"])
