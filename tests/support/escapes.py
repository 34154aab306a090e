"""Layers that try to reach a directory of the host, by every way that is known."""

from __future__ import annotations

import tarfile

from tests.support.hostile import escapes
from tests.support.images import Entry, directory, symlink
from tests.support.trees import device, hard_link

GOOD = [directory("kept"), Entry("kept/file", b"kept"), directory("etc"), Entry("etc/x", b"x")]
Layers = list[list[Entry]]
FIFO = tarfile.FIFOTYPE


def ways(outside: str) -> dict[str, Layers]:
    """The layers over one of ``GOOD`` that are an attack on ``outside``, by its name."""
    one = {f"{name}, one layer": [entries] for name, entries in escapes(outside).items()}
    # what one layer prepares, the next uses
    two = {
        f"{name}, two layers": [entries[:1], entries[1:]]
        for name, entries in escapes(outside).items()
        if len(entries) > 1
    }
    return one | two | _names(outside) | _changing(outside) | _linked(outside) | _noted(outside)


def _names(outside: str) -> dict[str, Layers]:
    up, bare = "../" * 40, outside.lstrip("/")
    names = {
        "dots and nothing": f"{up}{bare}/victim",
        "dot first": f"./{up}{bare}/victim",
        "dots in the middle": f"kept/./{up}/./{bare}/victim",
        "many slashes": f"//{outside}//victim",
        "slashes and dots": f"/{up}/{bare}//victim",
        "through a file": f"kept/file/{up}{bare}/victim",
        "the root's parent": "../victim",
        "neighbour": "../../1/fs/kept/file",
        "process root": f"proc/self/root/{bare}/victim",
    }
    found: dict[str, Layers] = {
        name: [[Entry("innocent", b"owned", pax={"path": path})]] for name, path in names.items()
    }
    found["link target of a header"] = [
        [Entry("link", kind=tarfile.SYMTYPE, link="kept", pax={"linkpath": outside})],
        [Entry("link/victim", b"owned")],
    ]
    found["hard link target of a header"] = [
        [Entry("hard", kind=tarfile.LNKTYPE, link="x", pax={"linkpath": f"{up}{bare}/victim"})],
    ]
    return found


def _changing(outside: str) -> dict[str, Layers]:
    """A name that is one thing first, and then another."""
    link, owned = symlink("etc", outside), Entry("etc/victim", b"owned")
    return {
        "directory becomes a link": [[directory("etc"), link, owned]],
        "directory becomes a link in its layer": [[link], [owned]],
        "whiteout, then a link": [[Entry(".wh.etc"), link, owned]],
        "whiteout in one, a link in the next": [[Entry(".wh.etc")], [link], [owned]],
        "link, then opaque": [[link, Entry("etc/.wh..wh..opq"), owned]],
        "opaque below a parent's link": [[link], [Entry("etc/.wh..wh..opq")]],
        "whiteout below a parent's link": [[link], [Entry("etc/.wh.victim")]],
        "whiteout of a directory below a parent's link": [[link], [Entry("etc/.wh.made")]],
        "directory over a parent's link": [[link], [directory("etc", 0o777), owned]],
        "link over a link": [[symlink("a", "etc"), link, Entry("a/victim", b"owned")]],
        "fifo becomes a file": [[Entry("f", kind=FIFO), Entry("f", b"owned")]],
        "device becomes a file": [[device("d", 1, 1), Entry("d", b"owned")]],
        "device becomes a file above": [[device("d", 1, 1)], [Entry("d", b"owned")]],
        "fifo becomes a file above": [[Entry("f", kind=FIFO)], [Entry("f", b"owned")]],
    }


def _linked(outside: str) -> dict[str, Layers]:
    """Links to links."""
    out = symlink("out", f"{outside}/victim")
    chain = [symlink(f"l{n}", f"l{n + 1}") for n in range(30)]
    return {
        "hard link to a link": [[out, hard_link("h", "out"), Entry("h", b"owned")]],
        "hard link to a parent's link": [[out], [hard_link("h", "out"), Entry("h", b"owned")]],
        "hard link through a link above": [[symlink("d", outside)], [hard_link("h", "d/victim")]],
        "mode of a link's target": [[out], [symlink("out", outside), directory("out", 0o777)]],
        "long chain": [[*chain, symlink("l30", outside), Entry("l0/victim", b"owned")]],
        "process root by link": [
            [symlink("p", f"/proc/self/root{outside}"), Entry("p/victim", b"owned")]
        ],
        "first process by link": [
            [symlink("p", f"/proc/1/root{outside}"), Entry("p/victim", b"owned")]
        ],
        "working directory by link": [
            [symlink("p", f"/proc/self/cwd/../..{outside}"), Entry("p/victim", b"owned")]
        ],
        "open file by link": [[symlink("p", "/proc/self/fd/3"), Entry("p/victim", b"owned")]],
        "own link as a parent": [[symlink("s", "."), Entry("s/s/s/../../victim", b"owned")]],
        "link to the root's parent": [[symlink("s", ".."), Entry("s/victim", b"owned")]],
        "link to itself": [[symlink("s", "s"), Entry("s/victim", b"owned")]],
    }


def _noted(outside: str) -> dict[str, Layers]:
    """Extended attributes by which overlayfs finds other files."""
    found: dict[str, Layers] = {}
    for space in ("trusted", "user"):
        for name, value in {
            "redirect": outside,
            "metacopy": "",
            "opaque": "y",
            "origin": "x",
            "whiteouts": "y",
            "overlay.opaque": "y",
        }.items():
            pax = {f"SCHILY.xattr.{space}.overlay.{name}": value or "x"}
            entries = [
                Entry("kept", kind=tarfile.DIRTYPE, mode=0o755, pax=pax),
                Entry("note", b"own", pax=pax),
            ]
            found[f"{space} {name}"] = [entries]
    return found
