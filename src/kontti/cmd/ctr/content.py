"""``ctr content``."""

from __future__ import annotations

import re
import sys

from kontti.cmd.ctr.grammar import BOOL, DURATION, INT, LIST, Call, Command, Flag
from kontti.cmd.ctr.output import age, decimal_size, error, labels_text
from kontti.cmd.ctr.session import CONTENT, connect, expiring, key_values
from kontti.errors import Error, NotFound
from kontti.wire.messages.google import Empty, FieldMask
from kontti.wire.messages.services.content.v1.content import (
    DeleteContentRequest,
    Info,
    InfoRequest,
    InfoResponse,
    ListContentRequest,
    ListContentResponse,
    ListStatusesRequest,
    ListStatusesResponse,
    ReadContentRequest,
    ReadContentResponse,
    UpdateRequest,
    UpdateResponse,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kontti.client.client import Client

CHUNK = 1 << 20
COLLECT_SECONDS = 3600.0


def blobs(client: Client, filters: list[str]) -> Iterator[Info]:
    """Every blob that matches."""
    request = ListContentRequest(filters=filters)
    for page in client.stream(CONTENT + "List", request, ListContentResponse):
        yield from page.info


def list_(call: Call) -> None:
    """Digest, size, age and labels of each."""
    with connect(call) as client:
        found = list(blobs(client, call.args))
    if call.bool("quiet"):
        for info in found:
            print(info.digest)
        return
    print("DIGEST\t\t\t\t\t\t\t\t\tSIZE\tAGE\t\tLABELS")
    for info in found:
        stamp = info.created_at
        made = stamp.seconds * 10**9 + stamp.nanos if stamp else 0
        words = age(made)
        print(f"{info.digest}\t{decimal_size(info.size)}\t{words}\t{labels_text(info.labels)}")


def get(call: Call) -> None:
    """Write a blob to stdout."""
    digest = check(call.arg(0, "must specify a digest"))
    with connect(call) as client:
        print_blob(client, digest)


def check(digest: str) -> str:
    """``digest`` if it is one; raises InvalidArgument."""
    from kontti.values import Digest

    return Digest.parse(digest)


def print_blob(client: Client, digest: str) -> None:
    """A blob's bytes to stdout, as they arrive."""
    client.unary(CONTENT + "Info", InfoRequest(digest=digest), InfoResponse)
    sys.stdout.flush()
    request = ReadContentRequest(digest=digest)
    for page in client.stream(CONTENT + "Read", request, ReadContentResponse):
        sys.stdout.buffer.write(page.data)
    sys.stdout.buffer.flush()


def verify(call: Call) -> int:
    """Read blobs, all where none is named, and tell those whose bytes are not their digest's."""
    failed = 0
    with connect(call) as client:
        named = [check(digest) for digest in call.args]
        for digest in named or [blob.digest for blob in blobs(client, [])]:
            problem = verify_blob(client, digest)
            if problem and not named and is_gone(client, digest):
                continue  # collected since it was listed
            if problem:
                failed = 1
                error(f"failed to verify {digest}", problem)
            elif not call.bool("quiet"):
                print(digest)
    return failed


def verify_blob(client: Client, digest: str) -> str:
    """What is wrong with a blob, "" for nothing."""
    import hashlib

    algorithm, _, encoded = digest.partition(":")
    total = hashlib.new(algorithm)
    try:
        request = ReadContentRequest(digest=digest)
        for page in client.stream(CONTENT + "Read", request, ReadContentResponse):
            total.update(page.data)
    except Error as problem:
        return problem.message
    found = total.hexdigest()
    return "" if found == encoded else f"its bytes are those of {algorithm}:{found}"


def is_gone(client: Client, digest: str) -> bool:
    """Whether the store has no such blob (any more)."""
    try:
        client.unary(CONTENT + "Info", InfoRequest(digest=digest), InfoResponse)
    except NotFound:
        return True
    return False


def delete_blob(client: Client, digest: str) -> None:
    """Remove one blob; raises NotFound."""
    client.unary(CONTENT + "Delete", DeleteContentRequest(digest=digest), Empty)


def delete(call: Call) -> int:
    """Remove blobs; goes on after a failure and reports it."""
    call.arg(0, "must specify a digest")
    failed = 0
    with connect(call) as client:
        for digest in call.args:
            try:
                delete_blob(client, check(digest))
            except Error as problem:
                failed = 1
                error(f"failed to delete {digest}", problem.message)
                continue
            print(digest)
    return failed


def label(call: Call) -> None:
    """Set and clear a blob's labels; prints what it has then."""
    digest = check(call.arg(0, "please specify a digest"))
    labels = key_values(call.args[1:])
    request = UpdateRequest(
        info=Info(digest=digest, labels=labels),
        update_mask=FieldMask(paths=[f"labels.{key}" for key in labels]),
    )
    with connect(call) as client:
        # an update that names no label would clear them all, and with them what the blob keeps
        if labels:
            found = client.unary(CONTENT + "Update", request, UpdateResponse).info
        else:
            found = client.unary(CONTENT + "Info", InfoRequest(digest=digest), InfoResponse).info
    shown = found.labels if found else {}
    print(",".join(f"{key}={value}" for key, value in shown.items()))


def active(call: Call) -> None:
    """Ingests under way."""
    pattern = re.compile(call.args[0]) if call.args else None
    with connect(call) as client:
        answer = client.unary(CONTENT + "ListStatuses", ListStatusesRequest(), ListStatusesResponse)
    print("REF\tSIZE\tAGE\t")
    for status in answer.statuses:
        if pattern and not pattern.search(status.ref):
            continue
        stamp = status.started_at
        started = stamp.seconds * 10**9 + stamp.nanos if stamp else 0
        print(f"{status.ref}\t{decimal_size(status.offset)}\t{age(started)}\t")


def ingest(call: Call) -> None:
    """Take stdin in as a blob, its size and digest checked where they are given."""
    ref = call.arg(0, "must specify a transaction reference")
    from kontti.client.stores import RemoteContent

    with connect(call) as client:
        store = RemoteContent(client)
        size, expected = call.int("expected-size"), call.str("expected-digest")
        with store.writer(ref, size, expected) as writer:
            if writer.status().offset:
                writer.truncate(0)
            while data := sys.stdin.buffer.read(CHUNK):
                writer.write(data)
            writer.commit(size, expected)


def fetch(call: Call) -> None:
    """Fetch an image's content without making an image of it unpacked."""
    from kontti.cmd.ctr.transfers import fetch as run

    run(call)


def prune(call: Call) -> None:
    """Drop the references from manifests to layers that are unpacked already."""
    call.arg(0, "please say what to prune: references")
    layer = re.compile(r"containerd\.io/gc\.ref\.content\.l\.\d+$")
    with connect(call) as client:
        for info in list(blobs(client, [])):
            keys = [key for key in info.labels if layer.match(key)]
            if not keys:
                continue
            for key in keys:
                print(f"{info.digest} {key}")
            if not call.bool("dry"):
                request = UpdateRequest(
                    info=Info(digest=info.digest),
                    update_mask=FieldMask(paths=[f"labels.{key}" for key in keys]),
                )
                client.unary(CONTENT + "Update", request, UpdateResponse)
    if not call.bool("dry"):
        collect(call)


def collect(call: Call) -> None:
    """Have the daemon collect now: deleting a lease with sync waits for it."""
    from kontti.client.stores import RemoteLeases

    with connect(call) as client:
        leases = RemoteLeases(client)
        made = leases.create("", expiring(COLLECT_SECONDS))
        leases.delete(made.id, sync=not call.bool("async"))


def edit(call: Call) -> None:
    """Have an editor change a copy of a blob; prints the new one's digest."""
    from kontti.cmd.ctr.editing import edit as run

    run(call)


def single(name: str) -> Callable[[Call], None]:
    """The function ``name`` for one blob at a registry, imported when it is wanted."""

    def run(call: Call) -> None:
        from kontti.cmd.ctr import objects

        getattr(objects, name)(call)

    return run


def registry_flags() -> tuple[Flag, ...]:
    """The {registry} flags."""
    return (
        Flag("skip-verify,k", BOOL, "skip SSL certificate validation"),
        Flag("plain-http", BOOL, "allow connections using plain HTTP"),
        Flag("user,u", help="user[:password] Registry user and password"),
        Flag("refresh", help="refresh token for authorization server"),
        Flag("hosts-dir", help="Custom hosts configuration directory"),
        Flag("tlscacert", help="path to TLS root CA"),
        Flag("tlscert", help="path to TLS client certificate"),
        Flag("tlskey", help="path to TLS client key"),
        Flag("http-dump", BOOL),
        Flag("http-trace", BOOL),
    )


COMMANDS = (
    Command(
        "active",
        active,
        "display active transfers",
        args="[<regexp>]",
        flags=[Flag("timeout,t", DURATION), Flag("root")],
    ),
    Command("delete,del,remove,rm", delete, "permanently delete blobs", args="[<digest>, ...]"),
    Command(
        "edit",
        edit,
        "edit a blob and return a new digest",
        args="[flags] <digest>",
        flags=[Flag("validate"), Flag("editor", env="EDITOR")],
    ),
    Command(
        "fetch",
        fetch,
        "fetch all content for an image into containerd",
        args="[flags] <remote> <object>",
        flags=[
            *registry_flags(),
            Flag("label", LIST),
            Flag("platform", LIST),
            Flag("all-platforms", BOOL),
            Flag("all-metadata", BOOL),
            Flag("skip-metadata", BOOL),
            Flag("metadata-only", BOOL),
        ],
    ),
    Command(
        "fetch-object",
        single("fetch_object"),
        "retrieve objects from a remote",
        args="[flags] <remote> <object> [<hint>, ...]",
        flags=registry_flags(),
    ),
    Command(
        "fetch-blob",
        single("fetch_blob"),
        "retrieve blobs from a remote",
        args="[flags] <remote> [<digest>, ...]",
        flags=[*registry_flags(), Flag("media-type")],
    ),
    Command(
        "push-object",
        single("push_object"),
        "push an object to a remote",
        args="[flags] <remote> <object> <type>",
        flags=registry_flags(),
    ),
    Command("get", get, "get the data for an object", args="[<digest>, ...]"),
    Command(
        "ingest",
        ingest,
        "accept content into the store",
        args="[flags] <key>",
        flags=[Flag("expected-size", INT), Flag("expected-digest")],
    ),
    Command("label", label, "add labels to content", args="<digest> [<label>=<value> ...]"),
    Command("list,ls", list_, "list all blobs in the store", flags=[Flag("quiet,q", BOOL)]),
    Command(
        "prune",
        prune,
        "prunes content from the content store",
        args="references",
        flags=[Flag("async", BOOL), Flag("dry", BOOL)],
    ),
    Command(
        "verify",
        verify,
        "compare blobs with their digests",
        args="[<digest>, ...]",
        flags=[Flag("quiet,q", BOOL)],
    ),
)
