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
    Group,
    MissingFlag,
    UsageError,
    parse,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kontti.cmd.ctr.grammar import Value

HELP = ("help", "h")
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
    ("pprof", (), "profiles of a daemon, from its debug socket", "pprof"),
    ("run", (), "run a container", "run"),
    ("sandboxes", ("sandbox", "sb", "s"), "manage sandboxes", "sandboxes"),
    ("shim", (), "interact with a shim directly", "shim"),
    ("snapshots", ("snapshot",), "manage snapshots", "snapshots"),
    ("tasks", ("t", "task"), "manage tasks", "tasks"),
    ("install", (), "install a new package", "install"),
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
    values, rest, given = checked(GLOBAL_FLAGS, words, print_help)
    globals_ = Call(values, (), given)
    if globals_.bool("version"):
        return print_version()
    if not rest or globals_.bool("help") or rest in (["help"], ["h"]):
        return print_help()
    if rest[0] in HELP:
        return dispatch([*rest[1:], "--help"])
    for name, aliases, help, module in GROUPS:
        if rest[0] == name or rest[0] in aliases:
            group = group_of(name, help, import_module(f"kontti.cmd.ctr.{module}"))
            return run_group(name, group, rest[1:], globals_)
    return unknown(rest[0])


def group_of(name: str, help: str, module: object) -> Group:
    """What a module holds: its ``COMMANDS``, and ``FLAGS`` if the group has any."""
    return Group(name, help, module.COMMANDS, getattr(module, "FLAGS", ()))  # type: ignore[attr-defined]


def run_group(path: str, group: Group, words: Sequence[str], outer: Call) -> int:
    """Run the leaf that ``words`` begin with; ``path`` is the words up to here."""
    commands = group.commands
    if isinstance(commands, Command):
        return run_leaf(path, commands, words, outer)
    flags = (*group.flags, Flag("help,h", BOOL))
    values, rest, given = checked(flags, words, lambda: print_group(path, group))
    if not rest or values["help"] or rest in (["help"], ["h"]):
        return print_group(path, group)
    if rest[0] in HELP:
        return run_group(path, group, [rest[1], "--help"], outer)
    for command in commands:
        if rest[0] == command.name or rest[0] in command.aliases:
            inner = Call({**outer.flags, **values}, (), outer.given | given)
            run = run_group if isinstance(command, Group) else run_leaf
            return run(f"{path} {command.name}", command, rest[1:], inner)  # type: ignore[arg-type]
    return unknown(rest[0])


def run_leaf(path: str, command: Command, words: Sequence[str], outer: Call) -> int:
    """Parse a command's own flags and run it."""
    flags = (*command.flags, Flag("help,h", BOOL))

    def help() -> int:
        return print_leaf(path, command)

    values, args, given = checked(flags, words, help, passthrough=command.passthrough)
    if values["help"]:
        return help()
    return command.run(Call(values, args, given, outer)) or 0


def checked(
    flags: Sequence[Flag],
    words: Sequence[str],
    help: Callable[[], int],
    *,
    passthrough: bool = True,
) -> tuple[dict[str, Value], list[str], frozenset[str]]:
    """``grammar.parse``, with ``help`` shown where a flag is wrong."""
    try:
        return parse(flags, words, passthrough)
    except UsageError as error:
        if not isinstance(error, MissingFlag):
            print(f"Incorrect Usage: {error}\n")
        help()
        raise


def unknown(word: str) -> int:
    """No such command; the original's exit code for it."""
    print(f"No help topic for '{word}'", file=sys.stderr)
    return 3


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


def print_group(path: str, group: Group) -> int:
    """Every command of a group, one line each."""
    commands = () if isinstance(group.commands, Command) else group.commands
    print(f"NAME:\n   ctr {path} - {group.help}\n")
    print(f"USAGE:\n   ctr {path} command [command options] [arguments...]\n\nCOMMANDS:")
    for command in commands:
        print(f"   {', '.join((command.name, *command.aliases)):32}{command.help}")
    if group.flags:
        print("\nOPTIONS:")
        print_flags(group.flags)
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
