"""The one list of commands that both clients run against both daemons.

A step names where containerd 1.6 and 2.x differ (``client_differs``), or where two daemons must
differ (``daemon_differs``): then the outputs are not compared along that axis, the exit codes are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

IMAGE = "docker.io/library/busybox:test"
TAG = "docker.io/library/busybox:second"
Normalise = Callable[[str], str]


@dataclass(frozen=True)
class Step:
    """One ``ctr`` command line; ``{tar}``, ``{registry}``, ``{manifest}`` … are filled in."""

    line: str
    code: int = 0
    client_differs: str = ""
    daemon_differs: str = ""
    codes_differ: str = ""
    only: Normalise = lambda text: text
    stdin: bytes | None = None
    until: str = ""
    """Repeat (bounded) until the output holds this: for what happens in the background."""


def first_line(text: str) -> str:
    return text.partition("\n")[0]


def sorted_lines(text: str) -> str:
    return "\n".join(sorted(text.splitlines()))


def sorted_labels(text: str) -> str:
    """Go prints a map in random order; a comma inside a value is left as it is."""
    return "\n".join(sorted(re.split(r",(?=[^,]*=)", text.strip())))


def json_keys(text: str) -> str:
    """The names and order of a JSON object's top-level fields, as printed."""
    return "\n".join(re.findall(r'^    "(\w+)":', text, re.MULTILINE))


def metric_names(text: str) -> str:
    return "\n".join(line.split(" ")[0] for line in text.splitlines())


TIMES = "1.6 and 2.x print times in different forms"
SINCE_17 = "the flag is there since 1.7"
NOW = "a whiteout has the time at which it is written"
LOGGED = "2.x logs in another form"

VERSIONS = [
    Step("version", daemon_differs="versions", client_differs="versions", only=lambda t: "\n".join(re.findall(r"^(\w+):", t, re.MULTILINE))),
    Step("info", client_differs="since 1.7", codes_differ="since 1.7"),
    Step("plugins ls", daemon_differs="each has its own plugins", client_differs="columns", only=first_line),
]  # fmt: skip

NAMESPACES = [
    Step("namespaces create blue team=a"),
    Step("namespaces create blue", code=1),
    Step("namespaces create bad/name", code=1),
    Step("namespaces label blue team=b extra=1"),
    Step("namespaces list"),
    Step("namespaces list -q"),
    Step("namespaces label blue extra="),
    Step("ns ls"),
    Step("namespaces remove blue"),
    Step("namespaces remove blue"),
    Step("ns ls"),
]

IMAGES = [
    Step("images list"),
    Step("images import {tar}", client_differs="2.x imports through the transfer service and prints its progress"),
    Step("images list"),
    Step("images list -q"),
    Step("images list name=={image}"),
    Step("images list name~=nothing"),
    Step("images list ===", code=1, client_differs="wording of a bad filter", daemon_differs="wording of a bad filter"),
    Step("images check"),
    Step("images tag {image} {tag}"),
    Step("images tag {image} {tag}", code=1),
    Step("images tag --force {image} {tag}"),
    Step("images label {image} colour=red", only=sorted_labels),
    Step("images ls"),
    Step("images remove {tag}"),
    Step("images ls -q"),
    Step("images rm nothing:here", client_differs=LOGGED, codes_differ="2.x fails"),
    Step("images label nothing:here a=b", code=1),
    Step("images import /nonexistent.tar", code=1),
    Step("images import -", code=1, stdin=b"this is not a tar archive, only some text\n" * 40, client_differs="wording", daemon_differs="wording"),
    Step("images convert --uncompress --oci {image} {tag}"),
    Step("images ls name=={tag}"),
    Step("images convert {image}", code=1),
    Step("images convert nothing:here {tag}", code=1),
    Step("images rm {tag}"),
    Step("images mount {image} {target}"),
    Step("images mount nothing:here {target}", code=1),
    Step("images mount {image}", code=1, client_differs="2.x needs no target"),
    Step("images mount", code=1),
    Step("images unmount --rm {target}"),
    Step("images unmount", code=1),
    Step("images mount --rw {image} {target}"),
    Step("images unmount --rm {target}"),
    Step("snapshots ls", only=sorted_lines),
    Step("leases ls -q"),
    Step("images export {out} {image}", client_differs="2.x exports through the transfer service"),
    Step("images import --base-name again --digests {out}", client_differs="2.x prints progress"),
]  # fmt: skip

REGISTRY = [
    Step("images pull --plain-http {registry}/busybox:test", client_differs="progress on stdout", daemon_differs="progress on stdout"),
    Step("images ls -q"),
    Step("images check -q", only=sorted_lines),
    Step("images pull --plain-http {registry}/busybox@{manifest}", client_differs="progress", daemon_differs="progress"),
    Step("images pull --plain-http {registry}/busybox:missing", code=1, client_differs="wording", daemon_differs="wording"),
    Step("images pull --plain-http {registry}/nothing/there:1", code=1, client_differs="wording", daemon_differs="wording"),
    Step("images pull not-a-reference", code=1, client_differs="wording"),
    Step("content fetch --plain-http {registry}/busybox:test", client_differs="progress", daemon_differs="progress"),
    Step("images push --plain-http {registry}/copy:1 {image}", client_differs="progress", daemon_differs="progress"),
    Step("images pull --plain-http {registry}/copy:1", client_differs="progress", daemon_differs="progress"),
    Step("images rm {registry}/busybox:test {registry}/copy:1 {registry}/busybox@{manifest}"),
]  # fmt: skip

CONTENT = [
    Step("content ls -q", only=sorted_lines),
    Step("content get {manifest}"),
    Step("content get sha256:0000", code=1, client_differs="wording"),
    Step("content get sha256:{zeros}", code=1),
    Step("content label {manifest} colour=blue", only=sorted_labels),
    Step("content label {manifest} colour=", only=sorted_labels),
    Step("content label {manifest}", only=sorted_labels),
    Step("content edit --editor true sha256:{zeros}", code=1),
    Step("content edit {manifest}", code=1),
    Step("content edit --validate json {manifest}", code=1),
    Step("content edit --editor {sed} {config}"),
    Step("content prune references --dry", only=sorted_lines, client_differs=LOGGED),
    Step("content active", only=first_line),
    # a collection that earlier deletions have planned would take what nothing refers to
    Step("leases create --id collect-now"),
    Step("leases delete --sync collect-now"),
    Step("content ingest --expected-size 6 --expected-digest {hello} one", stdin=b"hello\n"),
    Step(
        "content ingest --expected-size 7 two", code=1, stdin=b"hello\n", client_differs="wording"
    ),
    Step("content get {hello}"),
    Step("content delete {hello}"),
    Step("content get {hello}", code=1),
    Step("content delete {hello}", client_differs=LOGGED, code=1, codes_differ="2.x and 1.6"),
]

SNAPSHOTS = [
    # the next collection is a hundred changes away, and none of these is then taken by one
    Step("leases create --id collect-now"),
    Step("leases delete --sync collect-now"),
    Step("snapshots ls"),
    Step("snapshots tree"),
    Step("snapshots prepare work {chain}"),
    Step("snapshots prepare work {chain}", code=1),
    Step("snapshots prepare other nothing", code=1),
    Step("snapshots mounts /target work", daemon_differs="paths"),
    Step("snapshots info work"),
    Step("snapshots commit done work"),
    Step("snapshots commit done work", code=1),
    Step("snapshots view look done"),
    Step("snapshots ls", only=sorted_lines),
    Step("snapshots usage", only=sorted_lines),
    Step("snapshots rm done", code=1, daemon_differs="wording"),
    Step("snapshots rm look"),
    Step("snapshots rm done"),
    Step("snapshots rm done", code=1),
    Step("snapshots info done", code=1),
    # here, as a collection follows: a view of 1.6's client has no label that keeps it
    Step("snapshots diff --media-type {plain} {chain}", client_differs=NOW, daemon_differs=NOW),
    Step("snapshots diff nothing", code=1),
    Step("snapshots unpack {manifest}"),
    Step("snapshots unpack sha256:{zeros}", code=1),
    Step("snapshots --snapshotter nothere ls", code=1, daemon_differs="wording"),
    Step("snapshots --snapshotter native prepare empty"),
    Step("snapshots --snapshotter native ls"),
    Step("snapshots --snapshotter native rm empty"),
]

CONTAINERS = [
    Step("containers create {image} box sleep 1000"),
    Step("containers create {image} box sleep 1000", code=1),
    Step("containers create nothing:here other", code=1),
    Step("containers create {image} bad/id", code=1),
    Step("containers list"),
    Step("containers list -q"),
    Step("containers list id==box"),
    Step("containers info box", only=json_keys),
    Step("containers info nobody", code=1),
    Step("containers label box colour=red", only=sorted_labels),
    Step("containers ls labels.colour==red"),
    Step("tasks ls"),
    Step("tasks start -d box"),
    Step("tasks start -d box", code=1),
    Step("tasks ls"),
    Step("tasks ps box"),
    # Debian's client gives up streams that it has not opened yet when the process ends
    Step("tasks exec --exec-id e1 box sh -c {said}"),
    Step("tasks exec --exec-id e2 box sh -c {exit7}", code=7),
    Step("tasks exec --exec-id e3 --cwd /etc box sh -c {where}"),
    Step("tasks exec --exec-id e4 --user alice box sh -c {who}"),
    Step("tasks exec --exec-id e5 box sh -c {copy}", stdin=b"through the pipe\n"),
    Step("tasks exec --exec-id e6 box nosuchcommand", code=1, daemon_differs="runc and crun word it differently", client_differs="1.6 and 2.x"),
    Step("tasks metrics box", only=metric_names),
    Step("tasks pause box"),
    Step("tasks ls"),
    Step("tasks resume box"),
    Step("tasks ls"),
    Step("containers rm box", code=1),
    Step("tasks delete box", code=1),
    Step("tasks kill -s SIGKILL box"),
    Step("tasks ls", until="STOPPED"),
    Step("tasks delete box", client_differs=LOGGED),
    Step("tasks delete box", code=1, client_differs=LOGGED),
    Step("tasks kill box", code=1),
    Step("tasks ps box", code=1),
    Step("containers rm box"),
    Step("containers rm box", code=1),
    Step("containers ls"),
    Step("snapshots info box", code=1),
]  # fmt: skip

RUN = [
    Step("run --rm {image} r1 echo hello"),
    Step("run --rm {image} r1 sh -c {exit7}", code=7),
    Step("run --rm {image} r1 sh -c {streams}"),
    Step("run --rm --env A=b --env C=d {image} r1 env", only=sorted_lines),
    Step("run --rm --cwd /etc {image} r1 cat greeting"),
    Step("run --rm {image} r1 ls /etc"),
    Step("run --rm --user alice {image} r1 id", client_differs=SINCE_17, codes_differ=SINCE_17),
    Step("run --rm --user 1000:50 {image} r1 id", client_differs=SINCE_17, codes_differ=SINCE_17),
    Step("run --rm --user nobody-here {image} r1 id", code=1, client_differs=SINCE_17),
    Step("run --rm --read-only {image} r1 touch /x", code=1),
    Step("run --rm --mount type=bind,src={shared},dst=/mnt,options=rbind:ro {image} r1 cat /mnt/file"),
    Step("run --rm --mount type=bind,src=/nonexistent,dst=/mnt,options=rbind {image} r1 true", code=1, daemon_differs="runc and crun word it differently", client_differs="1.6 and 2.x"),
    Step("run --rm --hostname ship {image} r1 hostname", client_differs=SINCE_17, codes_differ=SINCE_17),
    Step("run --rm --memory-limit 67108864 {image} r1 cat /proc/1/comm"),
    Step("run --rm --cpus 0.5 {image} r1 true"),
    Step("run --rm --net-host {image} r1 true"),
    Step("run --rm --privileged {image} r1 true"),
    Step("run --rm --seccomp {image} r1 echo filtered"),
    Step("run --rm --null-io {image} r1 echo nothing"),
    Step("run --rm --snapshotter native {image} r1 cat /etc/greeting"),
    Step("run --rm --snapshotter nothere {image} r1 true", code=1, daemon_differs="wording", client_differs="wording"),
    Step("run --rm --runtime io.containerd.nothere.v1 {image} r1 true", code=1, daemon_differs="wording", client_differs="wording"),
    Step("run --rm --runc-binary /usr/sbin/runc {image} r1 echo by runc"),
    Step("run --rm --runc-binary /nonexistent {image} r1 true", code=1, daemon_differs="wording", client_differs="wording"),
    Step("run --rm {image} r1 nosuchcommand", code=1, daemon_differs="runc and crun word it differently", client_differs="1.6 and 2.x"),
    Step("run --rm nothing:here r1 true", code=1),
    Step("run -d --label team=a --pid-file {pidfile} --log-uri file://{logfile} {image} r2 sh -c {talk}"),
    Step("run -d {image} r2 true", code=1),
    Step("containers ls"),
    Step("tasks ls"),
    Step("tasks kill -s 9 r2"),
    Step("tasks ls", until="STOPPED"),
    Step("tasks rm r2", client_differs=LOGGED),
    Step("containers rm r2"),
    Step("run -d {image} r3 sleep 1000"),
    Step("tasks rm -f r3", client_differs=LOGGED),
    Step("containers rm r3"),
    Step("snapshots ls"),
    Step("tasks ls"),
]  # fmt: skip

LEASES = [
    Step("leases create --id l1 colour=red", client_differs=TIMES),
    Step("leases create --id l1", code=1),
    Step("leases ls", client_differs=TIMES),
    Step("leases ls -q"),
    Step("leases rm l1"),
    Step("leases rm l1", code=1, client_differs=LOGGED),
    Step("leases ls -q"),
]

END = [
    Step("oci spec", client_differs="2.x has other defaults", only=json_keys),
    Step("images rm --sync {image}", client_differs="2.x prints more"),
    Step("images ls -q", only=sorted_lines),
]

GROUPS: dict[str, list[Step]] = {
    "versions": VERSIONS,
    "namespaces": NAMESPACES,
    "images": IMAGES,
    "registry": REGISTRY,
    "content": CONTENT,
    "snapshots": SNAPSHOTS,
    "containers": CONTAINERS,
    "run": RUN,
    "leases": LEASES,
    "end": END,
}
