"""Checkpoint and restore: what the OCI runtime, and CRIU through it, is asked for.

A container that is restored is only noted by its creation; it comes to life when it is started.
CRIU keeps its logs in a work directory, and they say more than the runtime does.
"""

from __future__ import annotations

import os

from kontti.errors import Error, InvalidArgument
from kontti.linux import fs
from kontti.wire.messages.types.runc.options.oci import CheckpointOptions
from kontti.wire.typeurl import name_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kontti.shim.oci_runtime import OciRuntime
    from kontti.shim.stdio import Stdio
    from kontti.wire.messages.google import Any
    from kontti.wire.messages.types.runc.options.oci import Options

MAX_LOG = 1 << 20
DUMP_LOG, RESTORE_LOG = "criu-dump.log", "criu-restore.log"


def read_options(packed: Any | None) -> CheckpointOptions:
    """The request's options, none for none; raises InvalidArgument for those of another type."""
    if packed is None or not packed.type_url:
        return CheckpointOptions()
    if name_of(packed.type_url) != CheckpointOptions.NAME:
        raise InvalidArgument(f"invalid task checkpoint option {packed.type_url:.200}")
    return CheckpointOptions.decode(packed.value)


def checkpoint_arguments(path: str, work: str, options: CheckpointOptions) -> list[str]:
    """``checkpoint`` into the directory ``path``, with CRIU's logs in ``work``."""
    chosen = ["--image-path", path, "--work-path", work]
    if options.parent_path:
        chosen += ["--parent-path", options.parent_path]
    switches = (
        ("--leave-running", not options.exit),
        ("--tcp-established", options.open_tcp),
        ("--ext-unix-sk", options.external_unix_sockets),
        ("--shell-job", options.terminal),
        ("--file-locks", options.file_locks),
    )
    chosen += [flag for flag, wanted in switches if wanted]
    if options.cgroups_mode:
        chosen += ["--manage-cgroups-mode", options.cgroups_mode]
    for name in options.empty_namespaces:
        chosen += ["--empty-ns", name]
    return chosen


class Checkpointing:
    """A container's checkpoints: ``bundle`` is its directory, ``runtime`` what makes them."""

    def __init__(self, id: str, bundle: str, runtime: OciRuntime) -> None:
        self._id = id
        self._bundle = bundle
        self._runtime = runtime

    @property
    def _work(self) -> str:
        return os.path.join(self._bundle, "work", "criu-work")

    def write(self, path: str, options: CheckpointOptions) -> None:
        """Write the container's state to the directory ``path``; raises Error.

        Where that fails the container goes on as it was.
        """
        if not path:
            raise InvalidArgument("checkpoint needs the path of a directory")
        work = options.work_path or self._work
        try:
            os.makedirs(work, mode=0o700, exist_ok=True)
            self._run("checkpoint", *checkpoint_arguments(path, work, options))
        except OSError as error:
            raise Error(f"failed to checkpoint: {error}") from None
        except Error as error:
            said, kept = self._keep_log(os.path.join(work, "dump.log"), DUMP_LOG)
            why = f"{first_line(error)}{said or self._hint(error)}"
            raise Error(f"{why} path= {kept}") from None
        finally:
            if not options.work_path:
                forget(work)

    def restore(self, image: str, options: Options, stdio: Stdio, pid_file: str) -> None:
        """Have the runtime bring the container back to life from the directory ``image``."""
        work = options.criu_work_path or self._work
        args = ["--image-path", image, "--work-path", work, "--detach", "--pid-file", pid_file]
        if stdio.console_path:
            args += ["--console-socket", stdio.console_path]
        if options.no_pivot_root:
            args.append("--no-pivot")
        if self._runtime.name != "crun":
            # crun is no subreaper, and does not know the word
            args.append("--no-subreaper")
        try:
            os.makedirs(work, mode=0o700, exist_ok=True)
            streams = (stdio.stdin, stdio.stdout, stdio.stderr)
            self._run("restore", *args, "--bundle", self._bundle, stdio=streams)
        except OSError as error:
            raise Error(f"OCI runtime restore failed: {error}: unknown") from None
        except Error as error:
            said, _ = self._keep_log(os.path.join(work, "restore.log"), RESTORE_LOG)
            why = f"{first_line(error)}{said or self._hint(error)}"
            raise Error(f"OCI runtime restore failed: {why}: unknown") from None
        finally:
            if not options.criu_work_path:
                forget(work)

    def _run(
        self, *args: str, stdio: tuple[int | None, int | None, int | None] = (None, None, None)
    ) -> None:
        self._runtime.forget_log()
        self._runtime.run(*args, self._id, stdio=stdio)

    def _hint(self, error: Error) -> str:
        # a runtime that was built without CRIU does not know the word, and logs nothing
        mute = "exit code" in error.message
        return f" ({self._runtime.name} may be built without CRIU)" if mute else ""

    def _keep_log(self, source: str, name: str) -> tuple[str, str]:
        """Copy a log of CRIU's to where it outlives the work directory.

        Gives its last error in brackets ("" for none), and where the copy is.
        """
        kept = os.path.join(self._bundle, name)
        try:
            with open(source, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - MAX_LOG))
                data = file.read(MAX_LOG)
            with open(kept, "wb") as copy:
                copy.write(data)
        except OSError:
            return "", kept  # CRIU did not come so far
        return last_error(data), kept


def first_line(error: Error) -> str:
    """What the runtime says; what follows is where its log was."""
    return error.message.partition("\n")[0].strip()


def last_error(log: bytes) -> str:
    """The last error in a log of CRIU's, in brackets; "" where there is none."""
    lines = log.decode(errors="replace").splitlines()
    found = [line for line in lines if "Error (" in line]
    return f" [{found[-1].strip():.300}]" if found else ""


def forget(work: str) -> None:
    """Remove a work directory of ours."""
    try:
        fs.remove_tree(work)
    except OSError:
        return  # it goes with the bundle
