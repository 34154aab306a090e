"""``ctr``: containerd's client grammar, for any containerd."""

from __future__ import annotations

import sys
from importlib import import_module

from kontti.cmd.ctr.grammar import (
    BOOL,
    DURATION,
    STRING,
    Call,
    Command,
    Flag,
    UsageError,
    parse,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

GLOBAL_FLAGS = (
    Flag("debug", BOOL, "enable debug output in logs"),
    Flag(
        "address,a",
        STRING,
        "address for containerd's GRPC server",
        default="/run/containerd/containerd.sock",
        env="CONTAINERD_ADDRESS",
    ),
    Flag("timeout", DURATION, "total timeout for ctr commands"),
    Flag("connect-timeout", DURATION, "timeout for connecting to containerd"),
    Flag(
        "namespace,n",
        STRING,
        "namespace to use with commands",
        default="default",
        env="CONTAINERD_NAMESPACE",
    ),
    Flag("help,h", BOOL, "show help"),
    Flag("version,v", BOOL, "print the version"),
)

# name, aliases, help, module; a module holds FLAGS for its group and its COMMANDS
GROUPS: tuple[tuple[str, tuple[str, ...], str, str], ...] = (
    ("plugins", ("plugin",), "provides information about containerd plugins", "plugins"),
    ("version", (), "print the client and server versions", "version"),
    ("containers", ("c", "container"), "manage containers", "containers"),
    ("content", (), "manage content", "content"),
    ("events", ("event",), "display containerd events", "events"),
    ("images", ("image", "i"), "manage images", "images"),
    ("leases", (), "manage leases", "leases"),
    ("namespaces", ("namespace", "ns"), "manage namespaces", "namespaces"),
    ("run", (), "run a container", "run"),
    ("snapshots", ("snapshot",), "manage snapshots", "snapshots"),
    ("tasks", ("t", "task"), "manage tasks", "tasks"),
    ("oci", (), "OCI tools", "oci"),
    ("info", (), "print the server info", "info"),
    ("deprecations", (), "show what is deprecated and used", "deprecations"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; gives its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    from kontti.errors import Error

    try:
        return dispatch(words)
    except UsageError as error:
        print(f"ctr: {error}", file=sys.stderr)
    except Error as error:
        print(f"ctr: {error.message}", file=sys.stderr)
    except BrokenPipeError:
        sys.stderr.close()
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        what = f"open {error.filename}: " if error.filename else ""
        print(f"ctr: {what}{(error.strerror or str(error)).lower()}", file=sys.stderr)
    return 1


def dispatch(words: Sequence[str]) -> int:
    """Find the command, parse its flags, run it."""
    values, rest, given = parse(GLOBAL_FLAGS, words, passthrough=True)
    globals_ = Call(values, (), given)
    if globals_.bool("version"):
        return print_version()
    if not rest or globals_.bool("help") or rest[0] in ("help", "h"):
        return print_help()
    for name, aliases, _, module in GROUPS:
        if rest[0] == name or rest[0] in aliases:
            return run_group(name, import_module(f"kontti.cmd.ctr.{module}"), rest[1:], globals_)
    print(f"No help topic for '{rest[0]}'", file=sys.stderr)
    return 3


def run_group(name: str, module: object, words: Sequence[str], globals_: Call) -> int:
    """Run a group's leaf, or a leaf that stands alone (its COMMANDS is one Command)."""
    commands: Command | tuple[Command, ...] = module.COMMANDS  # type: ignore[attr-defined]
    if isinstance(commands, Command):
        return run_leaf(name, commands, words, globals_)
    group_flags: tuple[Flag, ...] = getattr(module, "FLAGS", ())
    flags = (*group_flags, Flag("help,h", BOOL))
    values, rest, given = parse(flags, words, passthrough=True)
    values = {**globals_.flags, **values}
    if not rest or values["help"] or rest[0] in ("help", "h"):
        return print_group(name, commands)
    for command in commands:
        if rest[0] == command.name or rest[0] in command.aliases:
            outer = Call(values, (), globals_.given | given)
            return run_leaf(f"{name} {command.name}", command, rest[1:], outer)
    print(f"No help topic for '{rest[0]}'", file=sys.stderr)
    return 3


def run_leaf(path: str, command: Command, words: Sequence[str], outer: Call) -> int:
    """Parse a command's own flags and run it."""
    flags = (*command.flags, Flag("help,h", BOOL))
    try:
        values, args, given = parse(flags, words, command.passthrough)
    except UsageError as error:
        print(f"Incorrect Usage: {error}\n", file=sys.stderr)
        raise
    if values["help"]:
        return print_leaf(path, command)
    return command.run(Call(values, args, given, outer)) or 0


def print_version() -> int:
    """One line."""
    import kontti

    print(f"ctr kontti {kontti.__version__}")
    return 0


def print_help() -> int:
    """Every group, one line each."""
    print("NAME:\n   ctr - containerd's client\n")
    print("USAGE:\n   ctr [global options] command [command options] [arguments...]\n")
    print("COMMANDS:")
    for name, aliases, help, _ in GROUPS:
        print(f"   {', '.join((name, *aliases)):32}{help}")
    print("\nGLOBAL OPTIONS:")
    print_flags(GLOBAL_FLAGS)
    return 0


def print_group(name: str, commands: Sequence[Command]) -> int:
    """Every command of a group, one line each."""
    print(f"USAGE:\n   ctr {name} command [command options] [arguments...]\n\nCOMMANDS:")
    for command in commands:
        print(f"   {', '.join((command.name, *command.aliases)):32}{command.help}")
    return 0


def print_leaf(path: str, command: Command) -> int:
    """One command's flags."""
    print(f"NAME:\n   ctr {path} - {command.help}\n")
    print(f"USAGE:\n   ctr {path} [command options] {command.args}\n\nOPTIONS:")
    print_flags(command.flags)
    return 0


def print_flags(flags: Sequence[Flag]) -> None:
    """Flags, one line each."""
    for flag in flags:
        names = ", ".join(("-" if len(n) == 1 else "--") + n for n in flag.names)
        value = "" if flag.kind == BOOL else " value"
        default = f" (default: {flag.default!r})" if flag.default not in (None, "") else ""
        print(f"   {names + value:40}{flag.help}{default}")


if __name__ == "__main__":
    sys.exit(main())
