"""``containerd``: the daemon's command line."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys

import kontti
from kontti.config import dump
from kontti.config.load import Overrides, load
from kontti.errors import Error
from kontti.server.daemon import serve
from kontti.server.logging import set_up
from kontti.server.settings import settings_of

DEFAULT_CONFIG = "/etc/containerd/config.toml"
log = logging.getLogger("kontti")


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    made = argparse.ArgumentParser(
        prog="containerd", description="kontti's daemon: containerd, in Python"
    )
    made.add_argument("-c", "--config", default="", help=f"(default {DEFAULT_CONFIG})")
    made.add_argument(
        "-l", "--log-level", default="", help="trace, debug, info, warn, error, fatal or panic"
    )
    made.add_argument("-a", "--address", default="", help="the gRPC socket")
    made.add_argument("--root", default="", help="directory of what is kept")
    made.add_argument("--state", default="", help="directory of what a reboot may lose")
    version = f"containerd kontti {kontti.__version__}"
    made.add_argument("-v", "--version", action="version", version=version)
    groups = made.add_subparsers(dest="group")
    config = groups.add_parser("config", help="information on the configuration")
    config.add_argument("action", choices=("default", "dump", "migrate"))
    return made


def main() -> int:
    """Run the daemon in the foreground until it is told to stop; gives the exit code."""
    options = parser().parse_args()
    try:
        return show_config(options) if options.group == "config" else run(options)
    except Error as error:
        print(f"containerd: {error.message}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"containerd: {error}", file=sys.stderr)
        return 1


def config_path(options: argparse.Namespace) -> str | None:
    """The file to read: the one named, or the default one if it is there."""
    if options.config:
        return str(options.config)
    return DEFAULT_CONFIG if os.path.exists(DEFAULT_CONFIG) else None


def overrides(options: argparse.Namespace) -> Overrides:
    """What the command line says over the file."""
    return Overrides(options.address, options.root, options.state, options.log_level)


def run(options: argparse.Namespace) -> int:
    """Serve."""
    config = load(config_path(options), overrides(options))
    set_up(config.debug.level, config.debug.format)
    for warning in config.warnings:
        log.warning("%s", warning)
    if config.temp:
        os.environ["TMPDIR"] = config.temp
    asyncio.run(serve(settings_of(config)))
    return 0


def show_config(options: argparse.Namespace) -> int:
    """Print a configuration."""
    if options.action == "default":
        print(dump.default_text(), end="")
    elif options.action == "dump":
        print(dump.dump_text(config_path(options), overrides(options)), end="")
    else:
        print(dump.migrate_text(config_path(options) or DEFAULT_CONFIG), end="")
    return 0
