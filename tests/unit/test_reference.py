"""References: containerd's grammar, and what a person types."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontti.errors import InvalidArgument
from kontti.registry.reference import Reference, docker_normalize

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "host", "path", "tag", "digest"),
    [
        ("docker.io/library/alpine:3.20", "docker.io", "library/alpine", "3.20", None),
        ("127.0.0.1:5000/a:b", "127.0.0.1:5000", "a", "b", None),
        ("[::1]:5000/a/b/c", "[::1]:5000", "a/b/c", "", None),
        (f"example.org/a@{DIGEST}", "example.org", "a", "", DIGEST),
        (f"example.org/a:t@{DIGEST}", "example.org", "a", "t", DIGEST),
        ("alpine", "alpine", "", "", None),
        ("localhost:5000", "localhost:5000", "", "", None),
    ],
)
def test_parts(text: str, host: str, path: str, tag: str, digest: str | None) -> None:
    reference = Reference.parse(text)
    assert (reference.host, reference.path, reference.tag) == (host, path, tag)
    assert reference.digest == digest
    assert str(reference) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/a:b",
        "http://docker.io/a:b",
        "docker.io/../etc:a",
        "docker.io/a//b:c",
        "docker.io/a:b:c",
        "docker.io/a?x=y:b",
        "docker.io/a#b:c",
        "docker.io/a%2f:c",
        "docker.io/a:b\nX: y",
        "docker.io/a b:c",
        "docker.io/a@sha256:12",
        "docker.io/a@md5:" + "a" * 32,
        "docker.io/a@",
        "docker.io/:a",
        "user@docker.io/a:b",
        "docker.io:99999999/a:b",
        "docker.io/" + "a" * 2000 + ":b",
    ],
)
def test_not_references(text: str) -> None:
    with pytest.raises(InvalidArgument):
        Reference.parse(text)


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3", "docker.io/library/alpine:3"),
        ("user/app", "docker.io/user/app:latest"),
        ("index.docker.io/library/alpine", "docker.io/library/alpine:latest"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app", "localhost:5000/app:latest"),
        ("example.org/a/b:c", "example.org/a/b:c"),
        (f"alpine@{DIGEST}", f"docker.io/library/alpine@{DIGEST}"),
    ],
)
def test_what_a_person_types(name: str, full: str) -> None:
    assert docker_normalize(name) == full
    assert docker_normalize(full) == full


@pytest.mark.parametrize("name", ["", "a" * 64, "Alpine", "example.org/App", "alpine:", "a b"])
def test_what_a_person_must_not_type(name: str) -> None:
    with pytest.raises(InvalidArgument):
        docker_normalize(name)


COMPONENT = st.from_regex(r"[a-z0-9]+(?:[._-][a-z0-9]+)?", fullmatch=True)
TAG = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)


@given(
    st.lists(COMPONENT, min_size=1, max_size=4),
    st.none() | TAG,
    st.none() | st.binary(min_size=32, max_size=32),
)
def test_round_trip(path: list[str], tag: str | None, digest: bytes | None) -> None:
    text = "example.org:5000/" + "/".join(path)
    text += f":{tag}" if tag else ""
    text += f"@sha256:{digest.hex()}" if digest else ""
    reference = Reference.parse(text)
    assert str(reference) == text
    assert (reference.tag, reference.path) == (tag or "", "/".join(path))


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except InvalidArgument:
        return
    assert Reference.parse(str(reference)) == reference
    assert reference.host
    assert not set(text) & set(" \n\r\t?#%\\")
    assert ".." not in reference.path.split("/")
