"""The small codec against the protobuf runtime: every message of the API, both directions."""

from __future__ import annotations

import importlib
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message as RuntimeMessage
from google.protobuf.message_factory import GetMessageClass
from hypothesis import example, given
from hypothesis import strategies as st

import kontti.api
from kontti.errors import InvalidArgument
from kontti.wire.messages.services.containers.v1.containers import Container
from kontti.wire.messages.types.mount import Mount
from kontti.wire.protobuf import Message

API = Path(next(iter(kontti.api.__path__)))
TEXT = ["", "a", "name", "sha256:00", "käyttäjä", "\U0001f433", "x" * 300]


def pairs() -> Iterator[tuple[type[Message], Descriptor]]:
    for path in sorted(API.rglob("*_pb2.py")):
        name = ".".join(path.relative_to(API).with_suffix("").parts)
        runtime = importlib.import_module(f"kontti.api.{name}")
        small = importlib.import_module(f"kontti.wire.messages.{name.removesuffix('_pb2')}")
        classes = [c for c in vars(small).values() if isinstance(c, type)]
        by_name = {c.NAME: c for c in classes if issubclass(c, Message)}
        for descriptor in walk(runtime.DESCRIPTOR.message_types_by_name.values()):
            yield by_name[descriptor.full_name], descriptor


def walk(descriptors: object) -> Iterator[Descriptor]:
    for descriptor in descriptors:  # type: ignore[attr-defined]
        if not descriptor.GetOptions().map_entry:
            yield descriptor
            yield from walk(descriptor.nested_types)


PAIRS = list(pairs())


def fill(message: RuntimeMessage, rng: random.Random, depth: int = 0) -> None:
    """Random values in random fields."""
    for field in message.DESCRIPTOR.fields:
        if rng.random() < 0.3 or depth > 3:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            fill_map(getattr(message, field.name), field.message_type, rng, depth)
        elif field.message_type is not None and field.is_repeated:
            for _ in range(rng.randint(0, 3)):
                fill(getattr(message, field.name).add(), rng, depth + 1)
        elif field.message_type is not None:
            getattr(message, field.name).SetInParent()
            fill(getattr(message, field.name), rng, depth + 1)
        elif field.is_repeated:
            getattr(message, field.name).extend(value(field, rng) for _ in range(rng.randint(0, 4)))
        else:
            setattr(message, field.name, value(field, rng))


def fill_map(target: Any, entry: Any, rng: random.Random, depth: int) -> None:
    key, item = entry.fields
    for _ in range(rng.randint(0, 3)):
        if item.message_type is None:
            target[value(key, rng)] = value(item, rng)
        else:
            fill(target[value(key, rng)], rng, depth + 1)


def value(field: Any, rng: random.Random) -> object:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        text = rng.choice(TEXT)
        return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return rng.random() < 0.5
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        assert field.enum_type is not None
        return rng.choice([v.number for v in field.enum_type.values])
    if kind == FieldDescriptor.CPPTYPE_DOUBLE:
        return rng.choice([0.0, -0.0, 1.5, -2e300])
    bits = 32 if kind in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32) else 64
    signed = kind in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64)
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    return rng.choice([0, 1, low, high, rng.randint(low, high)])


@pytest.mark.parametrize(
    ("small", "descriptor"), [pytest.param(s, d, id=d.full_name) for s, d in PAIRS]
)
def test_agrees_with_the_runtime(small: type[Message], descriptor: Descriptor) -> None:
    rng = random.Random(descriptor.full_name)
    runtime = GetMessageClass(descriptor)
    for _ in range(20):
        theirs = runtime()
        fill(theirs, rng)
        ours = small.decode(theirs.SerializeToString())
        assert runtime.FromString(ours.encode()) == theirs
        assert small.decode(ours.encode()) == ours


@given(st.binary(max_size=200))
@example(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f")
@example(b"\x0b" * 150)
@example(b"\x22\x00" * 50)
def test_hostile_bytes_decode_or_are_refused(data: bytes) -> None:
    try:
        Container.decode(data)
    except InvalidArgument:
        return


@given(st.binary(max_size=100))
def test_what_the_runtime_accepts_we_read_the_same(data: bytes) -> None:
    runtime = GetMessageClass(dict(PAIRS)[Mount])
    try:
        theirs = runtime.FromString(data)
    except Exception:  # noqa: BLE001 the runtime's error is not part of its API
        return
    ours = Mount.decode(data)
    assert (ours.type, ours.source, list(ours.options)) == (
        theirs.type,  # type: ignore[attr-defined]
        theirs.source,  # type: ignore[attr-defined]
        list(theirs.options),  # type: ignore[attr-defined]
    )


def test_out_of_range_is_refused() -> None:
    from kontti.wire.messages.services.tasks.v1.tasks import KillRequest

    with pytest.raises(InvalidArgument):
        KillRequest(signal=-1).encode()
    with pytest.raises(InvalidArgument):
        KillRequest(signal=1 << 32).encode()


def test_unknown_fields_are_skipped() -> None:
    known = Mount(type="bind", options=["ro"]).encode()
    unknown = b"\xfa\x01\x03abc" + b"\xf9\x01" + struct.pack("<d", 1.0) + b"\xf8\x01\x96\x01"
    assert Mount.decode(unknown + known + unknown) == Mount(type="bind", options=["ro"])
