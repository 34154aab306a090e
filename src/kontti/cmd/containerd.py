"""``containerd``: the daemon's command line."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import tomllib

import kontti
from kontti.engine.stores import StoreSettings
from kontti.errors import Error
from kontti.server.daemon import DaemonSettings, Listen, serve


def main() -> int:
    """Run the daemon in the foreground until it is told to stop."""
    parser = argparse.ArgumentParser(prog="containerd", description="kontti's daemon")
    parser.add_argument("-c", "--config", default="/etc/containerd/config.toml")
    parser.add_argument("-l", "--log-level", default="info")
    parser.add_argument("-a", "--address", default="/run/containerd/containerd.sock")
    parser.add_argument("--root", default="/var/lib/containerd")
    parser.add_argument("--state", default="/run/containerd")
    parser.add_argument(
        "-v", "--version", action="version", version=f"containerd kontti {kontti.__version__}"
    )
    options = parser.parse_args()
    logging.basicConfig(level=options.log_level.upper(), stream=sys.stderr)
    if os.path.exists(options.config):
        with open(options.config, "rb") as file:
            tomllib.load(file)
    uid, gid = os.geteuid(), os.getegid()
    settings = DaemonSettings(
        StoreSettings(root=options.root, owner=f"the daemon at {options.address}"),
        options.state,
        Listen(options.address, uid, gid),
        Listen(options.address + ".ttrpc", uid, gid),
    )
    try:
        asyncio.run(serve(settings))
    except Error as error:
        print(f"containerd: {error.message}", file=sys.stderr)
        return 1
    return 0
