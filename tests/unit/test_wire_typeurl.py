"""Messages in Any: named as containerd names them, read whatever the prefix."""

from __future__ import annotations

import pytest
from google.protobuf.any_pb2 import Any as RuntimeAny

from kontti.api.types.mount_pb2 import Mount as RuntimeMount
from kontti.errors import InvalidArgument
from kontti.wire.messages.google import Any, Empty
from kontti.wire.messages.types.mount import Mount
from kontti.wire.typeurl import PROCESS_URL, SPEC_URL, name_of, pack, unpack

MOUNT = Mount(type="bind", source="/a", options=["ro"])


def test_packed_by_bare_name() -> None:
    packed = pack(MOUNT)
    assert packed == Any(type_url="containerd.types.Mount", value=MOUNT.encode())
    assert unpack(packed, Mount) == MOUNT


def test_what_the_runtime_packs_is_read() -> None:
    theirs = RuntimeAny()
    theirs.Pack(RuntimeMount(type="bind", source="/a", options=["ro"]))
    packed = Any.decode(theirs.SerializeToString())
    assert packed.type_url == "type.googleapis.com/containerd.types.Mount"
    assert unpack(packed, Mount) == MOUNT


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("containerd.types.Mount", "containerd.types.Mount"),
        ("type.googleapis.com/containerd.types.Mount", "containerd.types.Mount"),
        ("example.com/a/b/containerd.types.Mount", "containerd.types.Mount"),
        ("/containerd.types.Mount", "containerd.types.Mount"),
        ("", ""),
        ("type.googleapis.com/", ""),
    ],
)
def test_names(url: str, name: str) -> None:
    assert name_of(url) == name


@pytest.mark.parametrize(
    "url", ["", "Mount", "xcontainerd.types.Mount", "containerd.types.Mount/", "a.b/types.Mount"]
)
def test_another_type_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgument, match=r"where containerd\.types\.Mount is wanted"):
        unpack(Any(type_url=url, value=MOUNT.encode()), Mount)


def test_garbage_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        unpack(Any(type_url=Mount.NAME, value=b"\x0a\xff"), Mount)


def test_a_message_of_nothing() -> None:
    assert pack(Empty()) == Any(type_url="google.protobuf.Empty", value=b"")
    assert unpack(pack(Empty()), Empty) == Empty()


def test_specs_are_named_as_their_go_types() -> None:
    assert SPEC_URL == "types.containerd.io/opencontainers/runtime-spec/1/Spec"
    assert PROCESS_URL == "types.containerd.io/opencontainers/runtime-spec/1/Process"
