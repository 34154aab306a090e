"""ctr's command line: Go's flag grammar as tables and one parser. Imports nothing slow.

``-x``, ``--x``, ``-x=v`` and ``-x v`` are the same flag. A command that runs something stops at its
first argument, so that what follows belongs to the container. Other commands take their flags after
an argument too; what is no flag of theirs there is an argument.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    # a Call has methods of the types' names
    Str = str
    Int = int
    Float = float
    Bool = bool
    Texts = list[str]
    Value = bool | str | int | float | list[str]

BOOL, STRING, LIST, FLOAT, DURATION = "bool", "string", "list", "float", "duration"
INT, UINT = "int", "uint"
_ZERO: dict[str, bool | str | int | float] = {
    BOOL: False,
    STRING: "",
    INT: 0,
    UINT: 0,
    FLOAT: 0.0,
    DURATION: 0.0,
}
_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")


class UsageError(Exception):
    """The command line is wrong; the message says how."""


class MissingFlag(UsageError):
    """A flag that must be given is not."""


class Flag:
    """One option. ``names`` are the long name and its aliases."""

    __slots__ = ("default", "env", "help", "kind", "names", "required")

    def __init__(
        self,
        names: str,
        kind: str = STRING,
        help: str = "",
        *,
        default: Value | None = None,
        env: str = "",
        required: bool = False,
    ) -> None:
        self.names = tuple(names.split(","))
        self.kind = kind
        self.help = help
        self.default = default
        self.env = env
        self.required = required

    def initial(self) -> Value:
        """The value where the flag is not given."""
        if self.env and os.environ.get(self.env):
            return convert(self, os.environ[self.env], self.names[0])
        if self.default is not None:
            return self.default
        return [] if self.kind == LIST else _ZERO[self.kind]


class Command:
    """A leaf: its arguments' description, flags, and the function that does it."""

    __slots__ = ("aliases", "args", "flags", "help", "name", "passthrough", "run")

    def __init__(
        self,
        names: str,
        run: Callable[[Call], int | None],
        help: str,
        *,
        args: str = "",
        flags: Iterable[Flag] = (),
        passthrough: bool = False,
    ) -> None:
        self.name, *aliases = names.split(",")
        self.aliases = tuple(aliases)
        self.run = run
        self.help = help
        self.args = args
        self.flags = tuple(flags)
        self.passthrough = passthrough


class Group:
    """A word that ``commands`` stand behind, or (where that is one Command) a leaf by itself."""

    __slots__ = ("aliases", "commands", "flags", "help", "name")

    def __init__(
        self,
        names: str,
        help: str,
        commands: Command | Sequence[Command | Group],
        flags: Sequence[Flag] = (),
    ) -> None:
        self.name, *aliases = names.split(",")
        self.aliases = tuple(aliases)
        self.help = help
        self.commands = commands
        self.flags = flags


class Call:
    """A parsed command line: values by flag name, positional arguments, and the global flags."""

    __slots__ = ("args", "flags", "given", "globals")

    def __init__(
        self,
        flags: Mapping[str, Value],
        args: Sequence[str],
        given: frozenset[str] = frozenset(),
        globals: Call | None = None,
    ) -> None:
        self.flags = flags
        self.args = list(args)
        self.given = given
        self.globals = globals

    def bool(self, name: Str) -> Bool:
        """A boolean flag."""
        return bool(self.flags[name])

    def str(self, name: Str) -> Str:
        """A string flag."""
        return str(self.flags[name])

    def int(self, name: Str) -> Int:
        """An integer flag."""
        value = self.flags[name]
        return value if isinstance(value, int) else 0

    def float(self, name: Str) -> Float:
        """A number or, in seconds, a duration."""
        value = self.flags[name]
        return float(value) if isinstance(value, int | float) else 0.0

    def list(self, name: Str) -> Texts:
        """A repeated flag."""
        value = self.flags[name]
        return value if isinstance(value, list) else []

    def arg(self, index: Int, what: Str) -> Str:
        """A required argument; raises UsageError with containerd's wording."""
        if index >= len(self.args) or not self.args[index]:
            raise UsageError(what)
        return self.args[index]


def parse(
    flags: Sequence[Flag], argv: Sequence[str], passthrough: bool
) -> tuple[dict[str, Value], list[str], frozenset[str]]:
    """Values by name, the positional arguments, and which flags were given."""
    by_name = {name: flag for flag in flags for name in flag.names}
    values: dict[str, Value] = {flag.names[0]: flag.initial() for flag in flags}
    given: set[str] = set()
    args: list[str] = []
    index = 0
    while index < len(argv):
        word = argv[index]
        if word == "--":
            args.extend(argv[index + 1 :])
            break
        if not word.startswith("-") or word == "-" or (args and _name(word) not in by_name):
            if passthrough:
                args.extend(argv[index:])
                break
            args.append(word)
            index += 1
            continue
        index = _take(by_name, argv, index, values, given)
    if "help" not in given:
        _check_required(flags, given)
    return values, args, frozenset(given)


def _take(
    by_name: Mapping[str, Flag],
    argv: Sequence[str],
    index: int,
    values: dict[str, Value],
    given: set[str],
) -> int:
    """Read the flag at ``index``; gives the index after it."""
    name = _name(argv[index])
    if not name or name.startswith("-"):
        raise UsageError(f"bad flag syntax: {argv[index]}")
    _, equals, text = argv[index].partition("=")
    flag = by_name.get(name)
    if flag is None:
        raise UsageError(f"flag provided but not defined: -{name}")
    key = flag.names[0]
    index += 1
    if not equals:
        if flag.kind == BOOL:
            text = "true"
        elif index >= len(argv):
            raise UsageError(f"flag needs an argument: -{name}")
        else:
            text = argv[index]
            index += 1
    value = convert(flag, text, name)
    old = values[key]
    if flag.kind == LIST and isinstance(value, list) and isinstance(old, list):
        value = [*old, *value] if key in given else value
    values[key] = value
    given.add(key)
    return index


def _name(word: str) -> str:
    """The flag that a word names: what is behind one or two dashes, up to a ``=``."""
    return word[2 if word.startswith("--") else 1 :].partition("=")[0]


def _check_required(flags: Sequence[Flag], given: set[str]) -> None:
    for flag in flags:
        if flag.required and flag.names[0] not in given:
            raise MissingFlag(f'Required flag "{flag.names[0]}" not set')


def convert(flag: Flag, text: str, name: str) -> Value:
    """A flag's text as its value; ``name`` as it was given. Raises UsageError with Go's wording."""
    kind = flag.kind
    if kind == STRING:
        return text
    if kind == LIST:
        return [text]
    try:
        return _CONVERT[kind](text)
    except OverflowError:
        problem = "value out of range"
    except ValueError:
        problem = "parse error"
    what = f'boolean value "{text}" for' if kind == BOOL else f'value "{text}" for flag'
    raise UsageError(f"invalid {what} -{name}: {problem}")


def _bool(text: str) -> bool:
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError(text)


def _integer(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        value = int(text, 0)
        if not low <= value <= high:
            raise OverflowError if low or value > 0 else ValueError
        return value

    return read


def _duration(text: str) -> float:
    """Go's duration syntax (``1m30s``), in seconds."""
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
    if text in ("0", ""):
        return 0.0
    total, number, unit = 0.0, "", ""
    for char in text + "0":
        if (char.isdigit() or char == ".") and unit:
            if unit not in units:
                raise ValueError(text)
            total += float(number) * units[unit]
            number, unit = char, ""
        elif char.isdigit() or char == ".":
            number += char
        else:
            unit += char
    if len(number) > 1 or not text[-1].isalpha():
        raise ValueError(text)
    return total


_CONVERT: dict[str, Callable[[str], Value]] = {
    BOOL: _bool,
    INT: _integer(-(1 << 63), (1 << 63) - 1),
    UINT: _integer(0, (1 << 64) - 1),
    FLOAT: float,
    DURATION: _duration,
}
