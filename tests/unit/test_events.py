"""The exchange: who hears what, and what is refused."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontti.errors import InvalidArgument
from kontti.events.base import Envelope
from kontti.events.exchange import LocalExchange
from kontti.events.types import message_class
from kontti.values import AnyValue
from kontti.wire.messages.events.container import ContainerCreate, ContainerCreateRuntime
from kontti.wire.messages.events.image import ImageCreate
from kontti.wire.messages.events.task import TaskExit
from kontti.wire.protobuf import Message


def heard(filters: list[str], event: Message, topic: str = "/test/event") -> bool:
    exchange, got = LocalExchange(), list[Envelope]()
    exchange.subscribe(filters, got.append)
    exchange.publish("default", topic, event)
    return bool(got)


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        ([], True),
        (["topic==/images/create"], True),
        (['topic=="/images/create"'], True),
        (["topic~=/images/"], True),
        (["topic~=|^/tasks/|"], False),
        (["namespace==default"], True),
        (["namespace==other", "topic~=images"], True),
        (["namespace==other,topic~=images"], False),
        (["event.name==a"], True),
        (["event.name!=a"], False),
        (["event.labels.color==red"], True),
        (['event.labels."a.b/c"==1'], True),
        (["event.labels.nothing"], False),
        (["event.nothing"], False),
        (["nothing"], False),
    ],
)
def test_filters(filters: list[str], wanted: bool) -> None:
    event = ImageCreate(name="a", labels={"color": "red", "a.b/c": "1"})
    assert heard(filters, event, "/images/create") is wanted


def test_filters_reach_into_messages() -> None:
    created = ContainerCreate(id="c", runtime=ContainerCreateRuntime(name="runc"))
    assert heard(["event.runtime.name==runc"], created)
    assert not heard(["event.runtime.name==runc"], ContainerCreate(id="c"))
    assert heard(
        ["event.container_id==c,event.exit_status==137"],
        TaskExit(container_id="c", exit_status=137),
    )


def test_what_is_heard() -> None:
    exchange, got = LocalExchange(), list[Envelope]()
    subscription = exchange.subscribe([], got.append)
    exchange.publish("default", "/images/create", ImageCreate(name="a"))
    (envelope,) = got
    assert (envelope.namespace, envelope.topic) == ("default", "/images/create")
    assert envelope.timestamp > 0
    assert envelope.event.type_url == "containerd.services.images.v1.ImageCreate"
    assert ImageCreate.decode(envelope.event.value).name == "a"
    forwarded = Envelope(1, "other", "/tasks/exit", AnyValue("unknown.Type", b"\xff"))
    exchange.forward(forwarded)
    assert got[1] is forwarded
    subscription.close()
    subscription.close()
    exchange.forward(forwarded)
    assert len(got) == 2


def test_broken_subscriber_takes_nothing_from_others(caplog: pytest.LogCaptureFixture) -> None:
    exchange, got = LocalExchange(), list[Envelope]()

    def broken(_: Envelope) -> None:
        raise ValueError("broken")

    exchange.subscribe([], broken)
    exchange.subscribe([], got.append)
    with caplog.at_level(logging.CRITICAL):
        exchange.publish("default", "/a/b", ImageCreate())
    assert len(got) == 1


def test_subscriber_may_end_itself_while_it_hears() -> None:
    exchange, got = LocalExchange(), list[Envelope]()

    def once(envelope: Envelope) -> None:
        got.append(envelope)
        subscription.close()

    subscription = exchange.subscribe([], once)
    exchange.publish("default", "/a/b", ImageCreate())
    exchange.publish("default", "/a/b", ImageCreate())
    assert len(got) == 1


@pytest.mark.parametrize(
    ("namespace", "topic", "timestamp"),
    [
        ("", "/a", 1),
        ("../x", "/a", 1),
        ("n", "", 1),
        ("n", "a", 1),
        ("n", "/", 1),
        ("n", "/a/", 1),
        ("n", "//a", 1),
        ("n", "/a b", 1),
        ("n", "/a/../b", 1),
        ("n", "/a\n", 1),
        ("n", "/a", 0),
    ],
)
def test_malformed_events_are_refused(namespace: str, topic: str, timestamp: int) -> None:
    got: list[Envelope] = []
    exchange = LocalExchange()
    exchange.subscribe([], got.append)
    with pytest.raises(InvalidArgument):
        exchange.forward(Envelope(timestamp, namespace, topic, AnyValue("", b"")))
    assert got == []


def test_topic_of_unknown_task_events_passes() -> None:
    assert heard([], ImageCreate(), "/tasks/?")


def test_bad_filters_are_refused() -> None:
    with pytest.raises(InvalidArgument):
        LocalExchange().subscribe(["topic=="], lambda _: None)


@pytest.mark.parametrize(
    "name",
    [
        "containerd.services.images.v1.ImageDelete",
        "containerd.events.ContainerDelete",
        "containerd.events.ContentCreate",
        "containerd.events.NamespaceUpdate",
        "containerd.events.SandboxExit",
        "containerd.events.SnapshotCommit",
        "containerd.events.TaskOOM",
        "type.googleapis.com/containerd.events.TaskExit",
    ],
)
def test_every_subject_has_its_class(name: str) -> None:
    cls = message_class(name)
    assert cls is not None
    assert name.endswith(cls.NAME)


@pytest.mark.parametrize("name", ["", "x", "containerd.events.", "containerd.events.Message"])
def test_other_types_have_none(name: str) -> None:
    assert message_class(name) is None


@given(st.text(max_size=40), st.binary(max_size=60), st.text(max_size=30))
def test_hostile_events_are_delivered_or_refused(url: str, value: bytes, topic: str) -> None:
    got: list[Envelope] = []
    exchange = LocalExchange()
    exchange.subscribe(["event.container_id==x", "topic"], got.append)
    for type_url in (url, "containerd.events.TaskExit"):
        try:
            exchange.forward(Envelope(1, "n", "/" + topic, AnyValue(type_url, value)))
        except InvalidArgument:
            continue
        assert got.pop().event.value == value
