"""The groups of flags that ``run`` and ``containers create`` share."""

from __future__ import annotations

from kontti.cmd.ctr.grammar import BOOL, FLOAT, INT, LIST, UINT, Flag
from kontti.cmd.ctr.session import SNAPSHOTTER

DEFAULT_RUNTIME = "io.containerd.runc.v2"

CONTAINER = (
    Flag("config,c", help="path to the runtime-specific spec config file"),
    Flag("cwd", help="specify the working directory of the process"),
    Flag("env", LIST, "specify additional container environment variables (e.g. FOO=bar)"),
    Flag("env-file", help="specify additional container environment variables in a file"),
    Flag("label", LIST, "specify additional labels (e.g. foo=bar)"),
    Flag("annotation", LIST, "specify additional OCI annotations (e.g. foo=bar)"),
    Flag("mount", LIST, "specify additional container mount (type=bind,src=..,dst=..,options=..)"),
    Flag("net-host", BOOL, "enable host networking for the container"),
    Flag("privileged", BOOL, "run privileged container"),
    Flag("read-only", BOOL, "set the containers filesystem as readonly"),
    Flag("sandbox", help="create the container in the given sandbox"),
    Flag("tty,t", BOOL, "allocate a TTY for the container"),
    Flag("with-ns", LIST, "specify existing Linux namespaces to join (<type>:<path>)"),
    Flag("pid-file", help="file path to write the task's pid"),
    Flag("gpus", LIST, "add gpus to the container"),
    Flag("allow-new-privs", BOOL, "turn off OCI spec's NoNewPrivileges feature flag"),
    Flag("memory-limit", UINT, "memory limit (in bytes) for the container"),
    Flag("cap-add", LIST, "add Linux capabilities (Set capabilities with 'CAP_' prefix)"),
    Flag("cap-drop", LIST, "drop Linux capabilities (Set capabilities with 'CAP_' prefix)"),
    Flag("seccomp", BOOL, "enable the default seccomp profile"),
    Flag("seccomp-profile", help="file path to custom seccomp profile"),
    Flag("apparmor-default-profile", help="enable AppArmor with the default profile"),
    Flag("apparmor-profile", help="enable AppArmor with an existing custom profile"),
    Flag("blockio-config-file", help="file path to blockio class definitions"),
    Flag("blockio-class", help="name of the blockio class to associate the container with"),
    Flag("rdt-class", help="name of the RDT class to associate the container with"),
    Flag("hostname", help="set the container's host name"),
    Flag("user,u", help="username or user id, group optional (format: <name|uid>[:<group|gid>])"),
    Flag("rootfs", BOOL, "use custom rootfs that is not managed by containerd snapshotter"),
    Flag("no-pivot", BOOL, "disable use of pivot-root (linux only)"),
    Flag("cpu-quota", INT, "limit CPU CFS quota", default=-1),
    Flag("cpu-period", UINT, "limit CPU CFS period"),
    Flag("rootfs-propagation", help="set the propagation of the container rootfs"),
    Flag("device", LIST, "file path to a device to add to the container"),
)
RUNTIME = (
    Flag(
        "runtime", help="runtime name or absolute path to runtime binary", default=DEFAULT_RUNTIME
    ),
    Flag("runtime-config-path", help="optional runtime config path"),
    Flag("runc-binary", help="specify runc-compatible binary"),
    Flag("runc-root", help="specify runc-compatible root"),
    Flag("runc-systemd-cgroup", BOOL, "start runc with systemd cgroup manager"),
)
CREATE = (*CONTAINER, *RUNTIME, SNAPSHOTTER, Flag("snapshotter-label", LIST))
RUN = (
    Flag("rm", BOOL, "remove the container after running, cannot be used with --detach"),
    Flag("null-io", BOOL, "send all IO to /dev/null"),
    Flag("log-uri", help="log uri"),
    Flag("detach,d", BOOL, "detach from the task after it has started execution"),
    Flag("fifo-dir", help="directory used for storing IO FIFOs"),
    Flag("cgroup", help='cgroup path (To disable use of cgroup, set to "" explicitly)'),
    Flag("platform", help="run image for specific platform"),
    Flag("cni", BOOL, "enable cni networking for the container"),
    Flag("sync-fs", BOOL, "have what is unpacked on disk before the container is made"),
    Flag("dump-config", help="write the OCI config that is made to a file"),
    Flag("remap-labels", BOOL, "have the snapshotter map the owners of a user namespace"),
    Flag("privileged-without-host-devices", BOOL, "give a privileged container no host devices"),
    Flag("cpus", FLOAT, "set the CFS cpu quota"),
    Flag("cpu-shares", INT, "set the cpu shares", default=1024),
    Flag("cpuset-cpus", help="set the CPUs the container will run in (e.g., 1-2,4)"),
    Flag("cpuset-mems", help="set the memory nodes the container will run in (e.g., 1-2,4)"),
    Flag("rlimit-nofile", help="set RLIMIT_NOFILE (soft:hard)"),
    Flag("uidmap", LIST, "run inside a user namespace with the specified UID mapping range"),
    Flag("gidmap", LIST, "run inside a user namespace with the specified GID mapping range"),
    *CREATE,
)
