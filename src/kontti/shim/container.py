"""A container: its bundle, its runtime, its processes."""

from __future__ import annotations

import os
import signal

from kontti.errors import AlreadyExists, Error, FailedPrecondition, InvalidArgument, NotFound
from kontti.linux import cgroups, mounts
from kontti.shim import spec
from kontti.shim.checkpoint import Checkpointing
from kontti.shim.oci_runtime import OciRuntime, find
from kontti.shim.oom import OomWatch
from kontti.shim.process import DELETE, PAUSED, STOPPED, Process
from kontti.shim.stdio import Names, Stdio
from kontti.wire.messages.types.runc.options.oci import Options
from kontti.wire.typeurl import name_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kontti.shim.loop import Loop
    from kontti.wire.messages.runtime.task.v2.shim import (
        CreateTaskRequest,
        ExecProcessRequest,
    )

DEFAULT_ROOT = "/run/containerd/runc"
MAX_SHOWN = 200


class Host:
    """What containers of one shim share: the loop, the namespace, the runtime to use by default.

    ``sealed`` maps a runtime's path to the path of a sealed copy to run in its place.
    """

    def __init__(self, loop: Loop, namespace: str, runtime: str, sealed: dict[str, str]) -> None:
        self.loop = loop
        self.namespace = namespace
        self.runtime = runtime
        self.sealed = sealed


class Container:
    """Made by ``create``; deleted when its first process is."""

    def __init__(self, host: Host, request: CreateTaskRequest) -> None:
        self.host = host
        self.id = request.id
        self.bundle = request.bundle
        self.options = _options(request)
        self.runtime = _runtime(host, self.options, self.bundle)
        names = Names(request.stdin, request.stdout, request.stderr, request.terminal)
        self.init = Process("", Stdio(host.loop, names, self.bundle))
        self.checkpoints = Checkpointing(self.id, self.bundle, self.runtime)
        self.image = request.checkpoint
        self.execs: dict[str, Process] = {}
        self.groups: dict[str, str] = {}
        self.mounted = False
        self._oom: OomWatch | None = None
        self._deleting = 0
        self._deleted = False
        self._rootfs = os.path.join(self.bundle, "rootfs")

    def create(self, request: CreateTaskRequest) -> None:
        """Mount the root file system and have the runtime create; a failure leaves nothing."""
        if self.runtime.knows(self.id):
            raise AlreadyExists(f"container {self.id} of another shim")
        spec.check_group(self.bundle)
        try:
            self._mount(request)
            self._open(self.init.stdio)
            self._create()
        except OSError as error:
            self._undo()
            raise Error(f"failed to create container: {error}") from None
        except Error:
            self._undo()
            raise

    def _open(self, stdio: Stdio) -> None:
        """Open a process's streams, and give them to whom the options name.

        A process that is not root can open /dev/stdout anew only where it owns what that is.
        """
        stdio.open((self.id, self.host.namespace))
        uid, gid = self.options.io_uid, self.options.io_gid
        if uid or gid:
            for fd in (stdio.stdin, stdio.stdout, stdio.stderr):
                if fd is not None:
                    os.fchown(fd, uid, gid)

    def _mount(self, request: CreateTaskRequest) -> None:
        if not request.rootfs:
            return
        try:
            if not os.path.isdir(self._rootfs):
                os.mkdir(self._rootfs, 0o711)
            mounts.mount_all(request.rootfs, self._rootfs)
        except OSError as error:
            raise Error(f"failed to mount rootfs: {error}") from None
        self.mounted = True

    @property
    def _pid_file(self) -> str:
        return os.path.join(self.bundle, "init.pid")

    def _create(self) -> None:
        # for whoever cleans up after a shim that died
        with open(os.path.join(self.bundle, "options.pb"), "wb") as options:
            options.write(self.options.encode())
        if self.image:
            return  # its processes are those of the checkpoint: they come when it is started
        stdio = self.init.stdio
        args = ["--bundle", self.bundle, "--pid-file", self._pid_file]
        if stdio.console_path:
            args += ["--console-socket", stdio.console_path]
        if self.options.no_pivot_root:
            args.append("--no-pivot")
        if self.options.no_new_keyring:
            args.append("--no-new-keyring")
        self.runtime.forget_log()
        try:
            self.runtime.run(
                "create", *args, self.id, stdio=(stdio.stdin, stdio.stdout, stdio.stderr)
            )
        except Error as error:
            raise Error(f"OCI runtime create failed: {error.message}: unknown") from None
        self._made()

    def _made(self) -> None:
        """The runtime has made the first process: note what there is of it."""
        self.init.pid = _read_pid(self._pid_file)
        self.init.stdio.started()
        self.groups = _groups(self.init.pid)
        with open(os.path.join(self.bundle, "cgroups"), "w") as file:
            file.write("\n".join(sorted(set(self.groups.values()))))

    def _undo(self) -> None:
        """Take back what a failed create made; crun forgets its control group."""
        self.init.stdio.close()
        try:
            self.runtime.run("delete", "--force", self.id)
        except Error:
            pass  # most often it was never created
        group = spec.group_path(self.bundle)
        for folder in cgroups.folders(group) if group.strip("/") else ():
            cgroups.remove(folder)
        self.unmount()

    def watch_oom(self, tell: Callable[[], None]) -> None:
        """Call ``tell`` when it runs out of memory, until it ends."""
        self._oom = OomWatch(self.host.loop, self.groups, tell)

    def forget_oom(self) -> None:
        """It has ended: tell what is not told yet, and watch no more."""
        if self._oom is not None:
            self._oom.finish()
            self._oom = None

    def unmount(self) -> None:
        """Undo the root file system's mounts."""
        if self.mounted:
            mounts.unmount_all(self._rootfs)
            self.mounted = False

    def start(self) -> None:
        """Let the first process go on, or bring it back to life from its checkpoint."""
        self.init.check("start")
        if self.image:
            self.checkpoints.restore(self.image, self.options, self.init.stdio, self._pid_file)
            try:
                self._made()
            except Error:
                self.runtime.run("delete", "--force", self.id)
                raise
            self.init.go("start")
            return
        try:
            self.runtime.run("start", self.id)
        except Error as error:
            raise Error(f"OCI runtime start failed: {error.message}: unknown") from None
        self.init.go("start")

    def process(self, exec_id: str) -> Process:
        """The first process, or an exec'd one; raises NotFound."""
        if not exec_id:
            return self.init
        try:
            return self.execs[exec_id]
        except KeyError:
            raise NotFound(f"process does not exist {exec_id:.{MAX_SHOWN}}") from None

    def check_exec(self) -> None:
        """Raises FailedPrecondition where no process can be added now."""
        if not self.init.pid:
            raise FailedPrecondition("cannot exec in a container that is not restored yet")
        if self.init.status in (STOPPED, PAUSED):
            # a runtime's process that joins a frozen group freezes
            state = "stopped" if self.init.status == STOPPED else "paused"
            raise FailedPrecondition(f"cannot exec in a {state} container")

    def add_exec(self, request: ExecProcessRequest) -> None:
        """Note a process to be started; raises AlreadyExists, InvalidArgument."""
        if "/" in request.exec_id or "\0" in request.exec_id:
            raise InvalidArgument(f"exec id {request.exec_id!r:.80}")
        if request.exec_id in self.execs:
            raise AlreadyExists(f"id {request.exec_id}")
        if request.spec is None:
            raise InvalidArgument("exec needs a process specification")
        names = Names(request.stdin, request.stdout, request.stderr, request.terminal)
        stdio = Stdio(self.host.loop, names, self.bundle)
        self.execs[request.exec_id] = Process(request.exec_id, stdio, request.spec.value)

    def start_exec(self, process: Process) -> None:
        """Have the runtime start an exec'd process; raises Error with the runtime's complaint."""
        process.check("start")
        self.check_exec()
        stem = os.path.join(self.bundle, f"exec-{process.exec_id}")
        spec_file, pid_file = f"{stem}.json", f"{stem}.pid"
        try:
            self._open(process.stdio)
            with open(spec_file, "wb") as file:
                file.write(process.spec)
            self._exec(process, spec_file, pid_file)
            process.pid = _read_pid(pid_file)
            process.stdio.started()
        except OSError as error:
            _undo_exec(process)
            raise Error(f"failed to start exec: {error}") from None
        except Error:
            _undo_exec(process)
            raise
        finally:
            for path in (spec_file, pid_file):
                _unlink(path)
        process.go("start")

    def _exec(self, process: Process, spec_file: str, pid_file: str) -> None:
        stdio = process.stdio
        args = ["--process", spec_file, "--pid-file", pid_file, "--detach"]
        if stdio.console_path:
            args += ["--console-socket", stdio.console_path]
        self.runtime.forget_log()
        try:
            self.runtime.run(
                "exec", *args, self.id, stdio=(stdio.stdin, stdio.stdout, stdio.stderr)
            )
        except Error as error:
            raise Error(f"OCI runtime exec failed: {error.message}: unknown") from None

    def begin_delete(self) -> None:
        """The first process has ended: have the runtime forget the container meanwhile.

        Whoever waits has still to ask for the deletion; what that would wait for is under way.
        """
        try:
            self._deleting = self.runtime.begin("delete", self.id)
        except Error:
            self._deleting = 0  # delete will try again, and say what is wrong

    def reaped(self, pid: int, status: int) -> bool:
        """Whether ``pid`` was the runtime's command that ``begin_delete`` started."""
        if pid != self._deleting:
            return False
        self._deleting = 0
        self._deleted = status == 0
        return True

    def delete(self) -> None:
        """Have the runtime forget the container, and unmount."""
        self.init.check(DELETE)
        if self._deleting:
            self.runtime.finish(self._deleting, "delete")
        elif self.init.pid and not self._deleted:
            self.runtime.run("delete", self.id)
        if self._oom is not None:
            self._oom.close()
        self.init.stdio.close()
        self.unmount()
        self.init.go(DELETE)

    def delete_exec(self, process: Process) -> None:
        """Forget an exec'd process."""
        process.go(DELETE)
        process.stdio.close()
        del self.execs[process.exec_id]

    def pids(self) -> list[int]:
        """Every process in the container's group."""
        for controller in ("", "pids", "memory", "cpu", "devices", "systemd", "freezer"):
            if controller in self.groups:
                found = cgroups.pids(self.groups[controller])
                if found:
                    return found
        return [self.init.pid] if self.init.pid and self.init.status != STOPPED else []

    def owns_pid_namespace(self) -> bool:
        """Whether the end of the first process, pid 1 of a namespace of its own, ends all."""
        return spec.owns_pid_namespace(self.bundle)


def _options(request: CreateTaskRequest) -> Options:
    packed = request.options
    if packed is None or name_of(packed.type_url) != Options.NAME:
        return Options()
    return Options.decode(packed.value)


def _runtime(host: Host, options: Options, bundle: str) -> OciRuntime:
    binary = find(options.binary_name) if options.binary_name else host.runtime or find("")
    root = os.path.join(options.root or DEFAULT_ROOT, host.namespace)
    os.makedirs(root, mode=0o711, exist_ok=True)
    runtime = OciRuntime(
        binary, root, os.path.join(bundle, "log.json"), systemd=options.systemd_cgroup
    )
    runtime.executable = host.sealed.get(binary, binary)
    return runtime


def _read_pid(path: str) -> int:
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError) as error:
        raise Error(f"the runtime left no pid: {error}") from None


def _groups(pid: int) -> dict[str, str]:
    try:
        return cgroups.paths_of(pid)
    except OSError:
        return {}


def _undo_exec(process: Process) -> None:
    """Close its streams, and end it, if the runtime has started it all the same."""
    process.stdio.close()
    pid, process.pid = process.pid, 0
    if pid:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
