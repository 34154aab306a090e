"""Pull, push, import, export and tag: done by the daemon, where it has a Transfer service.

``--local``, a flag that only this side knows, or an older daemon: done on this side instead.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack

from kontti.client.transfer import Transfer
from kontti.cmd.ctr.grammar import Call, UsageError
from kontti.cmd.ctr.progress import shown
from kontti.cmd.ctr.session import connect, key_values
from kontti.errors import Unimplemented
from kontti.wire.messages.types.platform import Platform
from kontti.wire.messages.types.transfer.imagestore import (
    ImageReference,
    ImageStore,
    UnpackConfiguration,
)
from kontti.wire.messages.types.transfer.importexport import ImageExportStream, ImageImportStream
from kontti.wire.messages.types.transfer.registry import (
    AuthResponse,
    AuthType,
    HTTPDebug,
    OCIRegistry,
    RegistryResolver,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kontti.registry.auth import Credentials
    from kontti.values import Platform as Value
    from kontti.wire.messages.types.transfer.progress import Progress
    from kontti.wire.protobuf import Message

    Ends = Callable[[Transfer], tuple[Message, Message]]

_TLS = frozenset(("skip-verify", "tlscacert", "tlscert", "tlskey"))
ONLY_LOCAL = {
    "pull": _TLS | {"max-concurrent-downloads", "print-chainid", "sync-fs"},
    "push": _TLS
    | {
        "manifest",
        "manifest-type",
        "max-concurrent-uploaded-layers",
        "allow-non-distributable-blobs",
    },
    # the service names the archive's index by digest too, which nobody has asked for
    "import": frozenset(("digests", "discard-unpacked-layers", "sync-fs")),
    "export": frozenset[str](),
    "tag": frozenset[str](),
}


def moved(call: Call, what: str, ends: Ends, tell: Callable[[Progress], object]) -> bool:
    """Have the daemon do it; False where it is for this side to do."""
    if call.bool("local") or call.given & ONLY_LOCAL[what]:
        return False
    with connect(call) as client:
        transfer = Transfer(client)
        try:
            progress = transfer.progress(tell)
        except Unimplemented:
            return False
        transfer.run(*ends(transfer), progress)
    return True


def pull(call: Call) -> None:
    """Pull an image and unpack it."""
    name = call.arg(0, "please provide an image reference to pull")
    chosen = platforms(call)
    if chosen and call.bool("all-platforms"):
        raise UsageError("cannot specify both --platform and --all-platforms")
    wanted = chosen or [host()]

    def ends(transfer: Transfer) -> tuple[Message, Message]:
        store = ImageStore(
            name=name,
            labels=key_values(call.list("label")),
            platforms=() if call.bool("all-platforms") else wanted,
            all_metadata=not call.bool("skip-metadata"),
            unpacks=[unpack(call, platform) for platform in wanted],
        )
        return registry(call, transfer), store

    if not moved(call, "pull", ends, shown()):
        from kontti.cmd.ctr import transfers

        transfers.pull(call)


def push(call: Call) -> None:
    """Push an image."""
    name = call.arg(0, "please provide a remote image reference to push")
    local = call.args[1] if len(call.args) > 1 else name

    def ends(transfer: Transfer) -> tuple[Message, Message]:
        return ImageStore(name=local, platforms=platforms(call)), registry(call, transfer)

    if not moved(call, "push", ends, shown()):
        from kontti.cmd.ctr import transfers

        transfers.push(call)


def import_(call: Call) -> None:
    """Import an archive from a file, or from stdin for ``-``."""
    from kontti.cmd.ctr import transfers

    transfers.check_import(call)
    path = call.arg(0, "please provide a path to import, or - for stdin")
    verb, done = ("imported", "") if call.bool("no-unpack") else ("unpacking", "...done")

    def tell(progress: Progress) -> None:
        if progress.event == "saved" and progress.desc is not None:
            print(f"{verb} {progress.name} ({progress.desc.digest}){done}")

    def ends(transfer: Transfer) -> tuple[Message, Message]:
        stream = transfer.source(lambda count: os.read(file, count))
        source = ImageImportStream(stream=stream, force_compress=call.bool("compress-blobs"))
        return source, import_store(call)

    # not by a buffered file: a thread that waits for stdin would hold its lock at the end
    file = 0 if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        finished = moved(call, "import", ends, tell)
    finally:
        if file:
            os.close(file)
    if not finished:
        transfers.import_(call)


def import_store(call: Call) -> ImageStore:
    """How what is imported is named, filtered and unpacked."""
    base = call.str("base-name")
    named = ImageReference(
        name=base or time.strftime("import-%Y-%m-%d"),
        is_prefix=True,
        allow_overwrite=not base,
    )
    wanted = host() if call.bool("all-platforms") else (platforms(call) or [host()])[0]
    return ImageStore(
        name=call.str("index-name"),
        labels=key_values(call.list("label")),
        platforms=() if call.bool("all-platforms") else (platforms(call) or [host()]),
        extra_references=[named],
        unpacks=() if call.bool("no-unpack") else [unpack(call, wanted)],
    )


def export(call: Call) -> None:
    """Write images as an archive to a file, or to stdout for ``-``."""
    path = call.arg(0, "please provide both an output filename and an image reference to export")
    call.arg(1, "please provide both an output filename and an image reference to export")
    stack = ExitStack()

    def ends(transfer: Transfer) -> tuple[Message, Message]:
        target = sys.stdout.buffer if path == "-" else open(path, "wb")  # noqa: SIM115 closed below
        if path != "-":
            stack.enter_context(target)
        names = [ImageReference(name=name) for name in call.args[1:]]
        archive = ImageExportStream(
            stream=transfer.sink(target.write),
            platforms=platforms(call),
            all_platforms=call.bool("all-platforms"),
            skip_compatibility_manifest=call.bool("skip-manifest-json"),
            skip_non_distributable=call.bool("skip-non-distributable"),
        )
        return ImageStore(extra_references=names), archive

    with stack:
        finished = moved(call, "export", ends, lambda _: None)
    if not finished:
        from kontti.cmd.ctr import transfers

        transfers.export(call)


def tag(call: Call) -> None:
    """Give an image more names; prints each. The service replaces what has a name already."""
    source = call.arg(0, "please provide an image reference to tag from")
    call.arg(1, "please provide an image reference to tag to")
    if call.bool("force") and not call.bool("local"):
        with connect(call) as client:
            try:
                for name in call.args[1:]:
                    Transfer(client).run(ImageStore(name=source), ImageStore(name=name))
                    print(name)
            except Unimplemented:
                pass
            else:
                return
    from kontti.cmd.ctr import images

    images.tag(call)


def registry(call: Call, transfer: Transfer) -> OCIRegistry:
    """The registry of the command's reference, as the flags say."""
    debug = (HTTPDebug.DEBUG if call.bool("http-dump") else 0) | (
        HTTPDebug.TRACE if call.bool("http-trace") else 0
    )
    logs = transfer.sink(_to_stderr, "http-debug-logs") if debug else ""
    folder = call.str("hosts-dir")
    resolver = RegistryResolver(
        auth_stream=transfer.credentials(answers(call)),
        host_dir=os.path.abspath(folder) if folder else "",
        default_scheme="http" if call.bool("plain-http") else "",
        http_debug=debug,
        logs_stream=logs,
    )
    return OCIRegistry(reference=call.args[0], resolver=resolver)


def _to_stderr(data: bytes) -> None:
    sys.stderr.buffer.write(data)
    sys.stderr.buffer.flush()


def answers(call: Call) -> Callable[[str], AuthResponse]:
    """Who the user is to a host. A password is asked for now, the rest looked up when needed."""
    if call.str("user"):
        from kontti.cmd.ctr.registries import user_or_docker

        source = user_or_docker(call)
        return lambda host: response(source(host))

    def answer(host: str) -> AuthResponse:
        from kontti.cmd.ctr.registries import user_or_docker

        return response(user_or_docker(call)(host))

    return answer


def response(found: Credentials | None) -> AuthResponse:
    """Credentials as a message."""
    if found is None:
        return AuthResponse()
    if found.token:
        return AuthResponse(authType=AuthType.HEADER, secret=f"Bearer {found.token}")
    kind = AuthType.CREDENTIALS if found.username else AuthType.REFRESH
    return AuthResponse(authType=kind, username=found.username, secret=found.secret)


def unpack(call: Call, platform: Platform) -> UnpackConfiguration:
    """What a platform is unpacked with."""
    return UnpackConfiguration(platform=platform, snapshotter=call.str("snapshotter"))


def platforms(call: Call) -> list[Platform]:
    """The platforms that the flags name."""
    from kontti.images.platforms import parse

    given = call.flags.get("platform")
    names = given if isinstance(given, list) else [str(given)] if given else []
    return [_wire(parse(name)) for name in names]


def host() -> Platform:
    """This machine's."""
    from kontti.images.platforms import default

    return _wire(default())


def _wire(platform: Value) -> Platform:
    return Platform(
        os=platform.os,
        architecture=platform.architecture,
        variant=platform.variant,
        os_version=platform.os_version,
    )
