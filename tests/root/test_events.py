"""``ctr events``: every topic there is, in order, and no other where filters are given."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
import pytest

from kontti.api.services.events.v1 import events_pb2
from kontti.linux import cgroups
from tests.support import images
from tests.support.host import IMAGE, Host, host

pytestmark = pytest.mark.root
SECONDS = 15.0
HELLO = images.digest_of(b"hello\n")


@dataclass(frozen=True)
class Event:
    """A line of ``ctr events``."""

    namespace: str
    topic: str
    body: dict[str, object]


class Watcher:
    """A running ``ctr events``."""

    def __init__(self, here: Host, *filters: str) -> None:
        self._here = here
        self._process = subprocess.Popen(here.argv("events", *filters), stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self._out = self._process.stdout.fileno()
        self._left = b""
        self.seen: list[Event] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.wait(SECONDS)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def until(self, topic: str, **fields: object) -> Event:
        """Read on until an event of a topic, with these fields, comes."""
        deadline = time.monotonic() + SECONDS
        while not self._has(topic, fields):
            with selectors.DefaultSelector() as ready:
                ready.register(self._out, selectors.EVENT_READ)
                assert ready.select(deadline - time.monotonic()), (topic, fields, self.topics())
            data = os.read(self._out, 65536)
            assert data, "ctr events ended"
            *lines, self._left = (self._left + data).split(b"\n")
            self.seen += [parse(line.decode()) for line in lines]
        return next(e for e in self.seen if e.topic == topic and fields.items() <= e.body.items())

    def _has(self, topic: str, fields: dict[str, object]) -> bool:
        return any(e.topic == topic and fields.items() <= e.body.items() for e in self.seen)

    def topics(self, prefix: str = "/") -> list[str]:
        """What was seen, in order."""
        return [e.topic for e in self.seen if e.topic.startswith(prefix)]


def parse(line: str) -> Event:
    """``DATE TIME ZONE UTC NAMESPACE TOPIC JSON``."""
    _day, _time, zone, utc, namespace, topic, *body = line.split(" ", 6)
    assert (zone, utc) == ("+0000", "UTC")
    return Event(namespace, topic, json.loads(body[0]) if body else {})


@pytest.fixture(scope="module")
def here() -> Iterator[Host]:
    with host(image=False) as made:
        yield made


def ready(here: Host, watcher: Watcher) -> None:
    """Whether it listens is known when it has heard something."""
    deadline = time.monotonic() + SECONDS
    request = events_pb2.PublishRequest(topic="/ready/now")
    while not watcher.seen:
        assert time.monotonic() < deadline
        publish(here, request)
        with selectors.DefaultSelector() as waiting:
            waiting.register(watcher._out, selectors.EVENT_READ)
            if waiting.select(0.05):
                watcher.until("/ready/now")


def publish(here: Host, request: events_pb2.PublishRequest) -> None:
    """Have the daemon tell of an event of ours."""
    metadata = (("containerd-namespace", here.namespace),)
    with grpc.insecure_channel(f"unix:{here.address}") as channel:
        call: Callable[..., Any] = channel.unary_unary(
            "/containerd.services.events.v1.Events/Publish"
        )
        call(request.SerializeToString(), timeout=SECONDS, metadata=metadata)


def watch(here: Host, *filters: str) -> Watcher:
    watcher = Watcher(here, *filters, 'topic=="/ready/now"') if filters else Watcher(here)
    ready(here, watcher)
    return watcher


def test_all_that_happens_to_an_image(here: Host) -> None:
    tag = "docker.io/library/busybox:other"
    with watch(here) as watcher:
        here.import_image()
        created = watcher.until("/images/create")
        assert created.namespace == here.namespace
        assert created.body["name"] == IMAGE
        here.out("images", "tag", IMAGE, tag)
        here.out("images", "label", tag, "colour=red")
        here.out("images", "rm", "--sync", tag)
        watcher.until("/images/delete", name=tag)
        updated = [e for e in watcher.seen if e.topic == "/images/update" and e.body["name"] == tag]
        assert updated[-1].body["labels"]["colour"] == "red"  # type: ignore[index]
        topics = watcher.topics()
        # index.json, manifest, configuration and two layers, before the image that is made of them
        assert topics.index("/images/create") > topics.index("/content/create") + 3
        assert topics.count("/content/create") == 5
        layers = watcher.topics("/snapshot/")
        # layers are unpacked at the same time, and what that takes goes again
        assert layers.count("/snapshot/commit") == 2
        made, gone = layers.count("/snapshot/prepare"), layers.count("/snapshot/remove")
        assert made == 2 + gone


def test_content_that_comes_and_goes(here: Host) -> None:
    with watch(here, 'topic~="^/content/"') as watcher:
        here.out("content", "ingest", "--expected-size", "6", "one", stdin=b"hello\n")
        made = watcher.until("/content/create")
        assert made.body == {"digest": HELLO, "size": 6}
        here.out("content", "rm", HELLO)
        assert watcher.until("/content/delete").body == {"digest": HELLO}


def test_namespaces(here: Host) -> None:
    name = f"{here.namespace}-blue"
    with watch(here, 'topic~="^/namespaces/"') as watcher:
        here.out("namespaces", "create", name, "a=b")
        here.out("namespaces", "label", name, "a=c")
        here.out("namespaces", "rm", name)
        assert watcher.until("/namespaces/create").body == {"name": name, "labels": {"a": "b"}}
        assert watcher.until("/namespaces/update").body["labels"] == {"a": "c"}
        assert watcher.until("/namespaces/delete").body == {"name": name}
        assert watcher.topics("/names") == [
            f"/namespaces/{w}" for w in ("create", "update", "delete")
        ]


def test_snapshots_and_containers(here: Host) -> None:
    if IMAGE not in here.out("images", "ls", "-q"):
        here.import_image()
    with watch(here) as watcher:
        here.out("containers", "create", IMAGE, "one", "true")
        here.out("containers", "label", "one", "colour=red")
        here.out("containers", "rm", "one")
        assert watcher.until("/snapshot/prepare").body["key"] == "one"
        assert watcher.until("/containers/create").body["image"] == IMAGE
        assert watcher.until("/containers/update").body["labels"]["colour"] == "red"  # type: ignore[index]
        assert watcher.until("/containers/delete").body == {"id": "one"}
        assert watcher.until("/snapshot/remove").body["key"] == "one"
        assert watcher.topics("/containers/") == [
            f"/containers/{w}" for w in ("create", "update", "delete")
        ]


def test_a_tasks_whole_life(here: Host) -> None:
    if IMAGE not in here.out("images", "ls", "-q"):
        here.import_image()
    with watch(here, 'topic~="^/tasks/"') as watcher:
        here.out("run", "-d", IMAGE, "life", "sleep", "1000")
        pid = here.until("life", "RUNNING")
        done = here.ctr("tasks", "exec", "--exec-id", "e1", "life", "sh", "-c", "exit 3")
        assert done.returncode == 3
        watcher.until("/tasks/exit", id="e1")
        here.out("tasks", "pause", "life")
        here.out("tasks", "resume", "life")
        here.out("tasks", "kill", "-s", "KILL", "life")
        ended = watcher.until("/tasks/exit", id="life")
        here.out("tasks", "rm", "life")
        here.out("containers", "rm", "life")
        deleted = watcher.until("/tasks/delete", container_id="life", pid=pid)
        assert (ended.body["container_id"], ended.body["exit_status"]) == ("life", 137)
        assert (ended.body["pid"], deleted.body["exit_status"]) == (pid, 137)
        assert watcher.topics("/tasks/") == [
            f"/tasks/{w}"
            for w in (
                "create", "start", "exec-added", "exec-started", "exit",
                "paused", "resumed", "exit", "delete",
            )
        ]  # fmt: skip
        added = watcher.until("/tasks/exec-added")
        assert added.body == {"container_id": "life", "exec_id": "e1"}
        assert watcher.until("/tasks/create").body["container_id"] == "life"
        assert watcher.until("/tasks/start").body == {"container_id": "life", "pid": pid}


@pytest.mark.skipif(cgroups.mode() == cgroups.UNIFIED, reason="told of on cgroup v1 hosts here")
def test_out_of_memory_is_told(here: Host) -> None:
    if IMAGE not in here.out("images", "ls", "-q"):
        here.import_image()
    eat = "x=a; while true; do x=$x$x; done"
    with watch(here, 'topic~="^/tasks/"') as watcher:
        done = here.ctr("run", "--rm", "--memory-limit", "16777216", IMAGE, "eats", "sh", "-c", eat)
        assert done.returncode == 137
        assert watcher.until("/tasks/oom").body == {"container_id": "eats"}
        watcher.until("/tasks/delete")


def test_filters(here: Host) -> None:
    one, two = f"{here.namespace}-one", f"{here.namespace}-two"
    wanted = f'topic=="/namespaces/create",event.name=={one}'
    with watch(here, wanted, 'topic=="/namespaces/delete"') as watcher:
        for name in (two, one):
            here.out("namespaces", "create", name)
            here.out("namespaces", "rm", name)
        watcher.until("/namespaces/delete", name=one)
        # any of the filters lets an event through; all parts of one have to match
        assert [(e.topic[12:], e.body["name"]) for e in watcher.seen if e.topic[1] == "n"] == [
            ("delete", two), ("create", one), ("delete", one),
        ]  # fmt: skip


def test_other_namespaces_are_seen_unless_filtered(here: Host) -> None:
    with watch(here) as everything, watch(here, f"namespace=={here.namespace}") as own:
        elsewhere = ("--namespace", f"{here.namespace}-else")
        for where in (elsewhere, ()):
            here.ctr(*where, "leases", "create", "--id", "l")
            here.ctr(*where, "content", "ingest", "--expected-size", "6", "x", stdin=b"hello\n")
        everything.until("/content/create")
        own.until("/content/create")
        assert {e.namespace for e in own.seen} == {here.namespace}
        assert f"{here.namespace}-else" in {e.namespace for e in everything.seen}


def test_a_bad_filter_is_refused(here: Host) -> None:
    done = here.ctr("events", "===")
    assert done.returncode == 1
    assert b"invalid argument" in done.stderr


def test_our_own_events_pass_through(here: Host) -> None:
    request = events_pb2.PublishRequest(topic="/mine/own")
    request.event.type_url = "example.com/unknown.Type"
    request.event.value = b"\xff\xfe"
    with watch(here, 'topic=="/mine/own"') as watcher:
        publish(here, request)
        assert watcher.until("/mine/own").namespace == here.namespace
