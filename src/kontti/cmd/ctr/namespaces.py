"""``ctr namespaces``."""

from __future__ import annotations

from kontti.cmd.ctr.grammar import BOOL, Call, Command, Flag
from kontti.cmd.ctr.output import error, labels_text, write_table
from kontti.cmd.ctr.session import NAMESPACES, connect, key_values
from kontti.errors import Error, NotFound
from kontti.wire.messages.google import Empty, FieldMask
from kontti.wire.messages.services.namespaces.v1.namespace import (
    CreateNamespaceRequest,
    CreateNamespaceResponse,
    DeleteNamespaceRequest,
    ListNamespacesRequest,
    ListNamespacesResponse,
    Namespace,
    UpdateNamespaceRequest,
    UpdateNamespaceResponse,
)


def create(call: Call) -> None:
    """Make a namespace with labels."""
    name = call.arg(0, "please specify a namespace")
    made = Namespace(name=name, labels=key_values(call.args[1:]))
    with connect(call) as client:
        request = CreateNamespaceRequest(namespace=made)
        client.unary(NAMESPACES + "Create", request, CreateNamespaceResponse)


def label(call: Call) -> None:
    """Set labels; an empty value removes one."""
    name = call.arg(0, "please specify a namespace")
    labels = key_values(call.args[1:])
    with connect(call) as client:
        for key, value in labels.items():
            request = UpdateNamespaceRequest(
                namespace=Namespace(name=name, labels={key: value}),
                update_mask=FieldMask(paths=[f"labels.{key}"]),
            )
            client.unary(NAMESPACES + "Update", request, UpdateNamespaceResponse)


def list_(call: Call) -> None:
    """Every namespace, or with -q its name."""
    with connect(call) as client:
        answer = client.unary(NAMESPACES + "List", ListNamespacesRequest(), ListNamespacesResponse)
    if call.bool("quiet"):
        for found in answer.namespaces:
            print(found.name)
        return
    rows = [(n.name, labels_text(n.labels, empty="")) for n in answer.namespaces]
    write_table([("NAME", "LABELS"), *rows])


def remove(call: Call) -> int:
    """Remove empty namespaces; one that is not there is no error."""
    failed = 0
    with connect(call) as client:
        for name in call.args:
            try:
                client.unary(NAMESPACES + "Delete", DeleteNamespaceRequest(name=name), Empty)
            except NotFound:
                pass
            except Error as problem:
                failed = 1
                error(f"unable to delete {name}", problem.message)
                continue
            print(name)
    return failed


COMMANDS = (
    Command("create,c", create, "create a new namespace", args="<name> [<key>=<value>]"),
    Command("list,ls", list_, "list namespaces", flags=[Flag("quiet,q", BOOL)]),
    Command(
        "remove,rm", remove, "remove namespaces", args="<name> ...", flags=[Flag("cgroup,c", BOOL)]
    ),
    Command("label", label, "set and clear labels", args="<name> [<key>=<value>, ...]"),
)
