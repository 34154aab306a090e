"""``kontti``: containers from the command line, with a daemon or with none."""

from __future__ import annotations

import sys
from importlib import import_module

from kontti.cmd.kontti.grammar import parser

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

DAEMON = "/run/containerd/containerd.sock"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; gives its exit code."""
    args = parser().parse_args(sys.argv[1:] if argv is None else argv)
    from kontti.errors import Error

    try:
        return dispatch(args)
    except Error as error:
        print(f"kontti: {error.message}", file=sys.stderr)
    except BrokenPipeError:
        sys.stderr.close()
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        print(f"kontti: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
    return 1


def dispatch(args: argparse.Namespace) -> int:
    """Call the command's function in its module."""
    from kontti.cmd.kontti.root import Root

    module, name = args.function
    function = getattr(import_module(f"kontti.cmd.kontti.{module}"), name)
    address = args.address or (DAEMON if args.daemon else "")
    return int(function(Root(args.root, args.state, args.namespace, address), args))


if __name__ == "__main__":
    sys.exit(main())
