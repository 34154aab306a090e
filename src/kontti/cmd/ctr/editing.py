"""``ctr content edit``: a blob through an editor, to another blob."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile

from kontti.client.content import RemoteContent
from kontti.cmd.ctr.grammar import Call, UsageError
from kontti.cmd.ctr.session import connect
from kontti.errors import AlreadyExists, FailedPrecondition
from kontti.linux import process
from kontti.values import Digest

CHUNK = 1 << 20


def edit(call: Call) -> None:
    """Copy a blob to a file, run the editor, take the file in; the blob itself stays."""
    if call.str("validate"):
        raise UsageError("validating the edit result not supported")
    digest = Digest.parse(call.arg(0, "must specify a digest"))
    if not call.str("editor"):
        raise UsageError("editor is required")
    with (
        connect(call) as client,
        tempfile.TemporaryDirectory(
            prefix="edit-", dir=os.environ.get("XDG_RUNTIME_DIR") or None
        ) as folder,
    ):
        store, path = RemoteContent(client), os.path.join(folder, "blob")
        copy_out(store, digest, path)
        run(call.str("editor"), path)
        print(take_in(store, f"edit-{digest}", path))


def copy_out(store: RemoteContent, digest: Digest, path: str) -> None:
    """Write a blob to a file."""
    with store.reader(digest) as reader, open(path, "xb") as file:
        file.writelines(reader.read_at(offset, CHUNK) for offset in range(0, reader.size, CHUNK))


def run(editor: str, path: str) -> None:
    """Wait for an editor on our terminal; raises FailedPrecondition where it fails."""
    # the editor is a person's words for a shell, as elsewhere: EDITOR="emacs -nw"
    argv = ["/bin/sh", "-c", f"{editor} {shlex.quote(path)}"]
    sys.stdout.flush()
    code = process.wait(process.spawn(argv, stdin=0, stdout=1, stderr=2), None)
    if code:
        raise FailedPrecondition(f"editor: exit status {code}")


def take_in(store: RemoteContent, ref: str, path: str) -> str:
    """The digest of a file that is a blob now."""
    # by name: editors put another file in the place of the one they were given
    with open(path, "rb") as file, store.writer(ref) as writer:
        if writer.status().offset:
            writer.truncate(0)
        while data := file.read(CHUNK):
            writer.write(data)
        digest = writer.digest()
        try:
            writer.commit(0, digest)
        except AlreadyExists:
            # nothing was changed
            pass
    return digest
