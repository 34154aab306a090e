"""Layers that attack, lie or are damaged, imported and pulled: refused or held, and nothing left.

What is expected of Debian's containerd proves the archives; where it takes one, ours may be
stricter.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import hostile
from tests.support.hostile import LAYER, Draft, layer_of, other_layer, packed, swapped, with_layer
from tests.support.images import Entry, digest_of, directory, layer, symlink
from tests.support.leftovers import Target, target, unchanged
from tests.support.shims import short_folder
from tests.support.trees import device, hard_link
from tests.support.web import Answer, Asked, serving

pytestmark = pytest.mark.root
CONTAINERD = "containerd/debian"
KINDS = ("kontti/debian", "embedded", CONTAINERD)
GOOD = layer(hostile.GOOD)
RANDOM = layer([Entry("random", os.urandom(200_000))])


@pytest.fixture(scope="module", params=KINDS)
def place(request: pytest.FixtureRequest) -> Iterator[tuple[str, Target]]:
    with target(request.param) as made:
        yield request.param, made


@pytest.fixture(scope="module", params=("kontti/ours", CONTAINERD))
def daemon(request: pytest.FixtureRequest) -> Iterator[tuple[str, Target]]:
    with target(request.param) as made:
        yield request.param, made


@pytest.fixture(scope="module")
def outside() -> Iterator[Path]:
    """A directory of the host that no layer may touch."""
    with short_folder() as folder:
        (folder / "victim").write_text("untouched")
        yield folder


def state_of(folder: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in (folder, *sorted(folder.iterdir())):
        status = path.lstat()
        data = path.read_bytes() if path.is_file() else b""
        found[path.name] = (status.st_mode, status.st_mtime_ns, status.st_nlink, data)
    return found


@pytest.mark.parametrize("how", hostile.escapes("/x"))
def test_nothing_is_written_outside(place: tuple[str, Target], outside: Path, how: str) -> None:
    _, at = place
    before = state_of(outside)
    with unchanged(at):
        message = at.import_error(with_layer(hostile.escapes(str(outside))[how]).archive())
    assert state_of(outside) == before
    # a hard link needs a file that is there; all else is done inside of the layer's root
    assert ("hardlink" in message or "link " in message) == ("hard link" in how), message
    assert "hard link" in how or message == ""


def test_a_link_to_a_file_of_the_host_is_not_that_file(
    place: tuple[str, Target], outside: Path
) -> None:
    """The kernel would let a hard link be made within one file system."""
    _, at = place
    victim = outside / "victim"
    entries = [directory("etc"), hard_link("etc/shadow", str(victim))]
    with unchanged(at):
        assert at.import_error(with_layer(entries).archive()) != ""
    assert victim.stat().st_nlink == 1


# name: entries, what we say, what containerd says ("" where it takes them)
REFUSED: dict[str, tuple[list[Entry], str, str]] = {
    "hard link out": (
        [hard_link("x", "../../etc/passwd/none")],
        r"invalid hardlink 'x' -> '../../etc/passwd/none': invalid argument",
        r"link .*: (no such file|not a directory)",
    ),
    "hard link to nothing": (
        [hard_link("x", "none")],
        r"invalid hardlink 'x' -> 'none': no such file or directory: invalid argument",
        r"no such file or directory: unknown",
    ),
    "hard link to a directory": (
        [directory("d"), hard_link("x", "d")],
        r"invalid hardlink 'x' -> 'd': operation not permitted: invalid argument",
        r"operation not permitted: unknown",
    ),
    "below a file": (
        [Entry("f"), Entry("f/x")],
        r"failed to extract 'f/x': not a directory: invalid argument",
        r"not a directory: unknown",
    ),
    "symlink loop": (
        [symlink("a", "b"), symlink("b", "a"), Entry("a/x")],
        r"too many levels of symbolic links: invalid argument",
        r"too many links: unknown",
    ),
    "root as a file": ([Entry("./")], r"root of a layer must be a directory", ""),
    "no name": ([Entry("")], r"root of a layer must be a directory", ""),
    "whiteout of nothing": (
        [Entry("d/.wh.")],
        r"invalid whiteout name 'd/\.wh\.': invalid argument",
        r"invalid whiteout name",
    ),
    "whiteout of here": (
        [Entry("d/.wh..")],
        r"invalid whiteout name 'd/\.wh\.\.': invalid argument",
        r"invalid whiteout name",
    ),
    "whiteout of the parent": (
        [Entry("d/.wh...")],
        r"invalid whiteout name 'd/\.wh\.\.\.': invalid argument",
        r"invalid whiteout name",
    ),
    "long component": (
        [Entry("n" * 256)],
        r"failed to extract 'n{200}': file name too long: invalid argument",
        r"file name too long",
    ),
    "long path": (
        [Entry("n/" * 2048 + "n")],
        r"file name too long: invalid argument",
        r"file name too long",
    ),
    "long symlink": (
        [symlink("s", "t" * 4096)],
        r"link target of 's': file name too long: invalid argument",
        r"file name too long",
    ),
    "unknown type": (
        [Entry("x", kind=b"V")],
        r"unhandled tar header type 86 of 'x': invalid argument",
        r"unhandled tar header type 86",
    ),
    "sparse": (
        [Entry("x", kind=b"S")],
        r"archive/tar: invalid tar header: sparse file in an archive that is not GNU tar's",
        r"archive/tar: invalid tar header",
    ),
    "NUL in a name": (
        [Entry("x", pax={"path": "a\0b"})],
        r"archive/tar: invalid tar header: NUL in name 'a\\x00b': invalid argument",
        r"archive/tar: invalid tar header",
    ),
    "negative owner": (
        [Entry("x", pax={"uid": "-5"})],
        r"archive/tar: invalid tar header: number '-5': invalid argument",
        "",
    ),
    "size without end": (
        [Entry("x", pax={"size": "9" * 20})],
        r"archive/tar: invalid tar header: size 9{20} of 'x': invalid argument",
        r"archive/tar: invalid tar header",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_layer_cannot_be_is_refused(place: tuple[str, Target], name: str) -> None:
    kind, at = place
    entries, ours, theirs = REFUSED[name]
    wanted = theirs if kind == CONTAINERD else ours
    with unchanged(at):
        message = at.import_error(with_layer(entries).archive())
    assert bool(message) == bool(wanted)
    assert re.search(wanted, message), message
    assert "failed to extract layer sha256:" in message or not wanted


def test_a_good_layer_over_a_refused_one(place: tuple[str, Target]) -> None:
    _, at = place
    with unchanged(at):
        assert at.import_error(with_layer([Entry("f"), Entry("f/x")]).archive()) != ""
        assert at.import_error(with_layer([device("null", 1, 3), Entry("f")]).archive()) == ""


# name: image, what we say, what containerd says
DAMAGED: dict[str, tuple[Draft, str, str]] = {
    "truncated gzip": (
        other_layer(packed(RANDOM)[:-5000], RANDOM),
        r"unexpected EOF in gzip stream: invalid argument",
        r"unexpected EOF",
    ),
    "gzip without its end": (
        other_layer(packed(RANDOM)[:-3], RANDOM),
        r"unexpected EOF in gzip stream: invalid argument",
        r"unexpected EOF",
    ),
    "junk behind gzip": (
        other_layer(packed(RANDOM) + b"junk", RANDOM),
        r"in gzip stream: invalid argument",
        r"unexpected EOF|gzip: invalid header",
    ),
    "truncated tar": (
        other_layer(packed(RANDOM[:1000]), RANDOM),
        r"unexpected EOF in tar entry: invalid argument",
        r"unexpected EOF",
    ),
    "another tar": (
        other_layer(packed(GOOD), RANDOM),
        r'wrong diff id calculated on extraction "sha256:[0-9a-f]{64}": failed precondition',
        r'wrong diff id calculated on extraction "sha256:',
    ),
    "no tar": (
        other_layer(b"hello" * 1000, b"hello" * 1000),
        r"archive/tar: invalid tar header: number 'lohelloh': invalid argument",
        r"archive/tar: invalid tar header",
    ),
    "unknown kind of layer": (
        other_layer(packed(GOOD), GOOD, "application/vnd.oci.image.layer.v1.tar+lzma"),
        r"currently unsupported media type '.*\+lzma': not implemented",
        r"unexpected EOF",
    ),
    "other bytes of that size": (
        swapped(hostile.image(RANDOM), bytes(len(packed(RANDOM)))),
        r"unexpected commit digest sha256:[0-9a-f]{64}, expected sha256:.*: failed precondition",
        r"unexpected commit digest|content digest sha256:[0-9a-f]{64}: not found",
    ),
    "fewer bytes": (
        swapped(hostile.image(RANDOM), packed(GOOD)),
        r"body is shorter than \d+ bytes|unexpected commit digest .*: failed precondition",
        r"unexpected EOF|content digest sha256:[0-9a-f]{64}: not found",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_layers_of_an_archive(daemon: tuple[str, Target], name: str) -> None:
    kind, at = daemon
    draft, ours, theirs = DAMAGED[name]
    with unchanged(at):
        message = at.import_error(draft.archive())
    assert re.search(theirs if kind == CONTAINERD else ours, message), message


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_layers_of_a_registry(daemon: tuple[str, Target], name: str) -> None:
    kind, at = daemon
    draft, ours, theirs = DAMAGED[name]
    with serving(draft.registry()) as web, unchanged(at):
        message = at.pull_error(f"{web.host}/a/b:1")
    assert re.search(theirs if kind == CONTAINERD else ours, message), message


def lying(draft: Draft, lie: Callable[[Answer], Answer]) -> Callable[[Asked], Answer]:
    """A registry that answers with ``lie`` for the last layer."""
    registry, layer = draft.registry(), digest_of(layer_of(draft))

    def answer(asked: Asked) -> Answer:
        true = registry(asked)
        return lie(true) if asked.path.endswith(layer) else true

    return answer


# name: what is answered for a layer, what we say, what containerd says
LIES: dict[str, tuple[Callable[[Answer], Answer], str, str]] = {
    "a short body": (
        lambda true: Answer(true.status, true.headers, true.body[:5000]),
        r"body is shorter than \d+ bytes: failed precondition",
        r"failed to read expected number of bytes: unexpected EOF",
    ),
    "a long body": (
        lambda true: Answer(true.status, true.headers, true.body + b"more"),
        r"body is longer than \d+ bytes: failed precondition",
        r"failed size validation: \d+ != \d+: failed precondition",
    ),
    "not there": (lambda true: Answer(404), r"404 Not Found: not found", r": not found"),
    "forbidden": (
        lambda true: Answer(403, {}, b'{"errors":[{"code":"DENIED","message":"no"}]}'),
        r"403 Forbidden.*: permission denied",
        r"403 Forbidden",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_registry_that_lies(daemon: tuple[str, Target], name: str) -> None:
    kind, at = daemon
    lie, ours, theirs = LIES[name]
    with serving(lying(hostile.image(RANDOM), lie)) as web, unchanged(at):
        message = at.pull_error(f"{web.host}/a/b:1")
    assert re.search(theirs if kind == CONTAINERD else ours, message), message


def test_what_a_broken_connection_brought_is_resumed() -> None:
    """The one thing that a failed pull leaves, for a day: the bytes that were right."""
    draft = hostile.image(RANDOM)
    name = f"layer-{digest_of(layer_of(draft))}"

    def cut(true: Answer) -> Answer:
        return Answer(true.status, true.headers, true.body[:1000], len(true.body))

    with target("kontti/ours") as at, unchanged(at):
        with serving(lying(draft, cut)) as web:
            assert "unexpected EOF: unavailable" in at.pull_error(f"{web.host}/a/b:1")
        at.collect()
        assert list(at.picture()["ingests"]) == [name]
        with serving(draft.registry()) as web:
            assert at.pull_error(f"{web.host}/a/b:1") == ""
            asked = [a for a in web.asked if a.path.endswith(name.removeprefix("layer-"))]
        assert [a.headers["range"] for a in asked] == ["bytes=3000-"]


@pytest.mark.parametrize("kind", ["kontti/ours", "kontti/debian", CONTAINERD])
def test_a_damaged_download_is_not_gone_on_with(kind: str) -> None:
    """A client that leaves its ingest to its lease can pull again when that is collected."""
    draft = hostile.image(RANDOM)
    bad = swapped(hostile.image(RANDOM), bytes(len(packed(RANDOM))))
    with target(kind) as at, unchanged(at):
        with serving(bad.registry()) as web:
            assert "unexpected commit digest" in at.pull_error(f"{web.host}/a/b:1")
        at.collect()
        assert at.picture()["ingests"].total() == 0
        with serving(draft.registry()) as web:
            assert at.pull_error(f"{web.host}/a/b:1") == ""


def test_layers_of_no_known_kind_are_not_unpacked() -> None:
    """As containerd 2 has it: an artifact may have anything for layers."""
    draft = other_layer(packed(GOOD), GOOD, "application/x-unknown")
    with target("embedded") as at, unchanged(at):
        assert at.import_error(draft.archive()) == ""
    mixed = Draft()
    layers = [mixed.put(packed(GOOD), LAYER), mixed.put(b"x", "application/x-unknown")]
    mixed.manifest(mixed.config([GOOD, b"x"]), layers)
    with target("embedded") as at, unchanged(at):
        message = at.import_error(mixed.archive())
        assert message.endswith("unsupported media type 'application/x-unknown': not implemented")
