"""The generated API against the facts: every service, rpc, message, field and enum of containerd's.

``tests/data/api-facts.json``: services (rpc: request, response, streaming), messages (number, type,
label and name of each field) and enums.
"""

from __future__ import annotations

import json
import pkgutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

import kontti.api
from kontti.wire.messages.services_table import METHODS

FACTS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "data" / "api-facts.json").read_text()
)
POOL = descriptor_pool.Default()
STREAMING = {
    (False, False): "unary",
    (False, True): "server",
    (True, False): "client",
    (True, True): "bidi",
}


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """Every generated module, in the pool."""
    for module in pkgutil.walk_packages(kontti.api.__path__, "kontti.api."):
        if module.name.endswith("_pb2"):
            import_module(module.name)


def type_name(field: FieldDescriptor) -> str:
    if field.message_type is not None and is_map(field):
        key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        return f"map<{type_name(key)}, {type_name(value)}>"
    if field.message_type is not None:
        return str(field.message_type.full_name)
    if field.enum_type is not None:
        return f"enum {field.enum_type.full_name}"
    kinds = {
        getattr(FieldDescriptor, name): name.removeprefix("TYPE_").lower()
        for name in dir(FieldDescriptor)
        if name.startswith("TYPE_")
    }
    return kinds[field.type]


def is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def label(field: FieldDescriptor) -> str:
    if is_map(field):
        return "map"
    if field.is_repeated:
        return "repeated"
    oneof = field.containing_oneof
    if oneof is None:
        return ""
    # proto3's optional is a oneof of one field, made up by the compiler
    return "optional" if oneof.name == f"_{field.name}" else f"oneof {oneof.name}"


def fields(message: Descriptor) -> list[list[object]]:
    return [[f.number, type_name(f), label(f), f.name] for f in message.fields]


def streaming(method: MethodDescriptor) -> str:
    return STREAMING[method.client_streaming, method.server_streaming]


@pytest.mark.parametrize("name", FACTS["services"])
def test_service(name: str) -> None:
    service = POOL.FindServiceByName(name)
    found = {
        m.name: [m.input_type.full_name, m.output_type.full_name, streaming(m)]
        for m in service.methods
    }
    assert found == FACTS["services"][name]


@pytest.mark.parametrize("name", FACTS["messages"])
def test_message(name: str) -> None:
    assert fields(POOL.FindMessageTypeByName(name)) == FACTS["messages"][name]


@pytest.mark.parametrize("name", FACTS["enums"])
def test_enum(name: str) -> None:
    found = {v.name: v.number for v in POOL.FindEnumTypeByName(name).values}
    assert found == FACTS["enums"][name]


def test_nothing_is_missing_from_the_facts_themselves() -> None:
    rpcs = sum(len(service) for service in FACTS["services"].values())
    messages = FACTS["messages"].values()
    assert (len(FACTS["services"]), rpcs, len(messages)) == (20, 132, 299)
    assert sum(len(message) for message in messages) == 735
    assert len(FACTS["enums"]) == 7


@pytest.mark.parametrize("name", FACTS["services"])
def test_the_small_codecs_table(name: str) -> None:
    found = {
        rpc.removeprefix(f"{name}/"): [named(request), named(response), STREAMING[client, server]]
        for rpc, (request, response, client, server) in METHODS.items()
        if rpc.startswith(f"{name}/")
    }
    assert found == FACTS["services"][name]


def named(place: str) -> str:
    """The full name of the message class at ``module:name``."""
    module, _, cls = place.partition(":")
    return str(getattr(import_module(module), cls).NAME)
