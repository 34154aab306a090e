"""What ``kontti`` is told on its command line."""

from __future__ import annotations

import argparse
import os

from kontti.wire.log_uri import DRIVERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, _SubParsersAction

    Commands = _SubParsersAction[ArgumentParser]

DESCRIPTION = "Containers, in the daemon that has the root, or with no daemon."


def parser() -> ArgumentParser:
    """The command line's grammar."""
    made = argparse.ArgumentParser(prog="kontti", description=DESCRIPTION, allow_abbrev=False)
    root = os.environ.get("KONTTI_ROOT", "/var/lib/kontti")
    state = os.environ.get("KONTTI_STATE", "/run/kontti")
    made.add_argument("--root", default=root, help="what is kept (default %(default)s)")
    made.add_argument("--state", default=state, help="what a reboot may lose (%(default)s)")
    made.add_argument("-n", "--namespace", default="default", help="(default %(default)s)")
    address = os.environ.get("KONTTI_ADDRESS", "")
    made.add_argument("-a", "--address", default=address, help="work in the daemon at this socket")
    made.add_argument("--daemon", action="store_true", help="work in containerd, where it listens")
    commands = made.add_subparsers(required=True, metavar="COMMAND")
    add_run(commands)
    add_images(commands)
    add_disk(commands)
    add_containers(commands)
    return made


def add(commands: Commands, name: str, where: tuple[str, str], help: str) -> ArgumentParser:
    """A command, done by a function of a module here."""
    made = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
    made.set_defaults(function=where)
    return made


def add_run(commands: Commands) -> None:
    """``run`` and ``exec``."""
    run = add(commands, "run", ("run", "run"), "run a command in a new container")
    run.add_argument("-d", "--detach", action="store_true", help="in the background")
    run.add_argument("--rm", action="store_true", help="remove the container at its end")
    run.add_argument("--name", default="", help="the container's name (default: random)")
    add_process_flags(run)
    run.add_argument("-v", "--volume", action="append", default=[], help="SOURCE:TARGET[:ro]")
    run.add_argument("--hostname", default="", help="(default: the container's name)")
    run.add_argument("--network", default="none", choices=("none", "host"), help="(none)")
    run.add_argument("--read-only", action="store_true", help="a root that cannot be written")
    run.add_argument("--privileged", action="store_true", help="all of the host's devices")
    run.add_argument("-m", "--memory", default="", help="limit of memory, such as 512m")
    run.add_argument("--cpus", type=float, default=0, help="limit of processors, such as 1.5")
    run.add_argument("--snapshotter", default="overlayfs", help="(default %(default)s)")
    run.add_argument("--runtime", default="", help="(default: the built-in one)")
    run.add_argument("--log-driver", default="cri", choices=DRIVERS, help="(%(default)s)")
    run.add_argument("--log-opt", action="append", default=[], help="max-size=10m, max-file=5, …")
    run.add_argument("-l", "--label", action="append", default=[], help="NAME=VALUE")
    run.add_argument("--restart", default="", help="always, unless-stopped, on-failure[:MOST], no")
    add_format(run)
    run.add_argument("image", metavar="IMAGE")
    run.add_argument("command", metavar="COMMAND", nargs=argparse.REMAINDER)
    run = add(commands, "exec", ("run", "exec_"), "run a command in a running container")
    run.add_argument("-d", "--detach", action="store_true", help="in the background")
    add_process_flags(run)
    add_format(run)
    run.add_argument("container", metavar="CONTAINER")
    run.add_argument("command", metavar="COMMAND", nargs=argparse.REMAINDER)


def add_process_flags(command: ArgumentParser) -> None:
    """What a process is given, whether a container's first or another."""
    command.add_argument("-i", "--interactive", action="store_true", help="give it our stdin")
    command.add_argument("-t", "--tty", action="store_true", help="give it a terminal")
    command.add_argument("-e", "--env", action="append", default=[], help="NAME=VALUE or NAME")
    command.add_argument("-w", "--workdir", default="", help="its working directory")
    command.add_argument("-u", "--user", default="", help="name or number[:group]")


def add_images(commands: Commands) -> None:
    """Commands on images."""
    pull = add(commands, "pull", ("images", "pull"), "pull an image from its registry")
    push = add(commands, "push", ("images", "push"), "push an image to its registry")
    for command in (pull, push):
        command.add_argument("--plain-http", action="store_true", help="allow HTTP without TLS")
        command.add_argument("-u", "--user", default="", help="USER[:PASSWORD] for the registry")
        command.add_argument("image", metavar="IMAGE")
    pull.add_argument("--snapshotter", default="overlayfs", help="(default %(default)s)")
    push.add_argument("source", metavar="SOURCE", nargs="?", default="", help="(default: IMAGE)")
    load = add(commands, "load", ("images", "load"), "store the images of an archive")
    load.add_argument("-i", "--input", default="-", help="a file (default: stdin)")
    images = add(commands, "images", ("images", "images"), "list images")
    images.add_argument("-q", "--quiet", action="store_true", help="only their names")
    images.add_argument("--digests", action="store_true", help="whole digests")
    images.add_argument(
        "--filter", action="append", default=[], help="such as reference=alpine*, dangling=true"
    )
    add_format(images)
    rmi = add(commands, "rmi", ("images", "rmi"), "remove images")
    rmi.add_argument("image", metavar="IMAGE", nargs="+")


def add_disk(commands: Commands) -> None:
    """Names and archives of images, and what things take on the disk."""
    tag = add(commands, "tag", ("disk", "tag"), "give an image more names")
    tag.add_argument("source", metavar="SOURCE")
    tag.add_argument("names", metavar="NAME", nargs="+")
    save = add(commands, "save", ("disk", "save"), "write images as an archive")
    save.add_argument("-o", "--output", default="-", help="a file (default: stdout)")
    save.add_argument("--platform", default="", help="OS/ARCH, or all (default: this host's)")
    save.add_argument("image", metavar="IMAGE", nargs="+")
    history = add(commands, "history", ("disk", "history"), "show how an image was built")
    history.add_argument("-q", "--quiet", action="store_true", help="only the layers' digests")
    history.add_argument("--no-trunc", action="store_true", help="every word of it")
    history.add_argument("image", metavar="IMAGE")
    df = add(commands, "df", ("disk", "df"), "show what images and containers take on the disk")
    prune = add(commands, "prune", ("disk", "prune"), "remove images that no tag names")
    prune.add_argument(
        "-a", "--all", action="store_true", help="all images not used, and ended containers"
    )
    prune.add_argument("-f", "--force", action="store_true", help="do not ask")
    for command in (history, df, prune):
        add_format(command)


def add_containers(commands: Commands) -> None:
    """Commands on containers that are there, and on kontti itself."""
    add_listing(commands)
    add_life(commands)
    logs = add(commands, "logs", ("logs", "logs"), "print what a container wrote")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until its end")
    logs.add_argument("--tail", type=int, default=None, help="only the last lines")
    logs.add_argument("--since", default="", help="from a time on, or 10m for ten minutes ago")
    logs.add_argument("--until", default="", help="up to a time, or 10m for ten minutes ago")
    logs.add_argument("-t", "--timestamps", action="store_true", help="say when, line by line")
    logs.add_argument("container", metavar="CONTAINER")
    cp = add(commands, "cp", ("copying", "cp"), "copy files to or from a container")
    cp.add_argument("-a", "--archive", action="store_true", help="keep owners and special files")
    cp.add_argument("-L", "--follow-link", action="store_true", help="what a symlink SOURCE is of")
    add_format(cp)
    cp.add_argument("source", metavar="SOURCE", help="CONTAINER:PATH, a path, or - for a tar")
    cp.add_argument("target", metavar="TARGET", help="a path, CONTAINER:PATH, or - for a tar")
    attach = add(commands, "attach", ("attach", "attach"), "be a running container's console")
    attach.add_argument("container", metavar="CONTAINER")
    add_format(add(commands, "version", ("containers", "version"), "print the version"))
    add_root(commands)
    daemon = add(commands, "daemon", ("containers", "daemon"), "become the daemon")
    daemon.add_argument("arguments", metavar="ARGUMENT", nargs=argparse.REMAINDER)


def add_root(commands: Commands) -> None:
    """Commands on all that is kept."""
    doctor = add(commands, "doctor", ("doctor", "doctor"), "check all that is kept, and mend it")
    doctor.add_argument("--repair", action="store_true", help="mend what can be mended")
    doctor.add_argument("--quick", action="store_true", help="look, and do not read every byte")
    doctor.add_argument("--rate", default="", help="most bytes to read in a second, such as 50m")
    doctor.add_argument("--plain-http", action="store_true", help="allow HTTP without TLS")
    add_format(doctor)
    migrate = add(commands, "migrate", ("migrate", "migrate"), "take over a containerd root")
    migrate.add_argument("--copy", action="store_true", help="copy blobs, from another file system")
    add_format(migrate)
    migrate.add_argument("source", metavar="ROOT", help="such as /var/lib/containerd; only read")


def add_listing(commands: Commands) -> None:
    """Commands that tell of containers."""
    ps = add(commands, "ps", ("listing", "ps"), "list containers")
    ps.add_argument("-a", "--all", action="store_true", help="those that ended as well")
    ps.add_argument("-q", "--quiet", action="store_true", help="names only")
    ps.add_argument("-f", "--filter", action="append", default=[], help="status=, name= or label=")
    add_format(ps)
    stats = add(commands, "stats", ("stats", "stats"), "show what containers use")
    stats.add_argument("--no-stream", action="store_true", help="once, on a terminal too")
    add_format(stats)
    stats.add_argument("container", metavar="CONTAINER", nargs="*")
    top = add(commands, "top", ("listing", "top"), "list the processes of a container")
    add_format(top)
    top.add_argument("container", metavar="CONTAINER")
    inspect = add(
        commands, "inspect", ("listing", "inspect"), "print all that is recorded, as JSON"
    )
    inspect.add_argument("--type", choices=("container", "image"), help="(default: either)")
    inspect.add_argument("--format", choices=("json",), default="json", help="(json)")
    inspect.add_argument("name", metavar="NAME", nargs="+")


def add_life(commands: Commands) -> None:
    """Commands that change how containers are."""
    stop = on_containers(commands, "stop", "ask containers to end, then make them")
    stop.add_argument("-t", "--time", type=float, default=10.0, help="seconds (%(default)s)")
    on_containers(commands, "start", "start containers that ended")
    restart = on_containers(commands, "restart", "stop containers and start them again")
    restart.add_argument("-t", "--time", type=float, default=10.0, help="seconds (%(default)s)")
    kill = on_containers(commands, "kill", "send a signal to containers")
    kill.add_argument("-s", "--signal", default="SIGKILL", help="(default %(default)s)")
    on_containers(commands, "pause", "freeze containers")
    on_containers(commands, "unpause", "let paused containers go on")
    rm = on_containers(commands, "rm", "remove containers")
    rm.add_argument("-f", "--force", action="store_true", help="those that run as well")
    on_containers(commands, "wait", "wait for containers and print their exit codes")


def on_containers(commands: Commands, name: str, help: str) -> ArgumentParser:
    """A command that takes containers."""
    made = add(commands, name, ("life", name), help)
    add_format(made)
    made.add_argument("container", metavar="CONTAINER", nargs="+")
    return made


def add_format(command: ArgumentParser) -> None:
    """``--format``."""
    command.add_argument("--format", choices=("table", "json"), default="table", help="(table)")
