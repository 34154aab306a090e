"""``containerd``: the daemon's command line."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Sequence

import kontti
from kontti.cmd.ctr.grammar import BOOL, Call, Flag, UsageError, parse
from kontti.cmd.ctr.main import print_flags
from kontti.config import dump
from kontti.config.load import Overrides, load
from kontti.errors import Error
from kontti.linux import libc
from kontti.server.daemon import serve
from kontti.server.logging import set_up
from kontti.server.settings import settings_of

DEFAULT_CONFIG = "/etc/containerd/config.toml"
log = logging.getLogger("kontti")


FLAGS = (
    Flag("config,c", help="path to the configuration file", default=DEFAULT_CONFIG),
    Flag("log-level,l", help="trace, debug, info, warn, error, fatal or panic"),
    Flag("address,a", help="address of the gRPC socket"),
    Flag("root", help="directory of what is kept"),
    Flag("state", help="directory of what a reboot may lose"),
    Flag("help,h", BOOL, "show help"),
    Flag("version,v", BOOL, "print the version"),
)
ACTIONS = {
    "default": "see the output of the default config",
    "dump": "see the output of the final main config with imported in subconfig files",
    "migrate": "migrate the current configuration file to the latest version",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon in the foreground until it is told to stop; gives the exit code."""
    try:
        return dispatch(sys.argv[1:] if argv is None else argv)
    except UsageError as error:
        print(f"containerd: {error}", file=sys.stderr)
    except Error as error:
        print(f"containerd: {error.message}", file=sys.stderr)
    except OSError as error:
        print(f"containerd: {error}", file=sys.stderr)
    return 1


def dispatch(words: Sequence[str]) -> int:
    """Do what the command line says; raises UsageError, Error."""
    values, rest, given = parse(FLAGS, words, passthrough=True)
    call = Call(values, rest, given)
    if call.bool("version"):
        print(f"containerd kontti {kontti.__version__}")
        return 0
    if call.bool("help") or rest[:1] in (["help"], ["h"]):
        return print_help()
    if not rest:
        return run(call)
    if rest[0] != "config" or rest[2:] or (rest[1:] and rest[1] not in ACTIONS):
        raise UsageError(f"unknown command {' '.join(rest)!r:.100}")
    return show_config(call, rest[1]) if rest[1:] else print_help()


def print_help() -> int:
    """Flags and commands, one line each."""
    print("NAME:\n   containerd - kontti's daemon: containerd, in Python\n")
    print("USAGE:\n   containerd [global options] [command]\n\nCOMMANDS:")
    for name, help in ACTIONS.items():
        print(f"   config {name:25}{help}")
    print("\nGLOBAL OPTIONS:")
    print_flags(FLAGS)
    return 0


def config_path(call: Call) -> str | None:
    """The file to read: the one named, or the default one if it is there."""
    if "config" in call.given:
        return call.str("config")
    return DEFAULT_CONFIG if os.path.exists(DEFAULT_CONFIG) else None


def overrides(call: Call) -> Overrides:
    """What the command line says over the file."""
    names = ("address", "root", "state", "log-level")
    return Overrides(*(call.str(name) for name in names))


def run(call: Call) -> int:
    """Serve."""
    # a heap for each thread would hold more than the threads ever share out
    libc.mallopt(libc.M_ARENA_MAX, 1)
    config = load(config_path(call), overrides(call))
    set_up(config.debug.level, config.debug.format)
    for warning in config.warnings:
        log.warning("%s", warning)
    if config.temp:
        os.environ["TMPDIR"] = config.temp
    asyncio.run(serve(settings_of(config)))
    return 0


def show_config(call: Call, action: str) -> int:
    """Print a configuration."""
    if action == "default":
        print(dump.default_text(), end="")
    elif action == "dump":
        print(dump.dump_text(config_path(call), overrides(call)), end="")
    else:
        print(dump.migrate_text(config_path(call) or DEFAULT_CONFIG), end="")
    return 0
