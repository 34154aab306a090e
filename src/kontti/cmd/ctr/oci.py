"""``ctr oci``."""

from __future__ import annotations

import json

from kontti.cmd.ctr.grammar import Call, Command, Flag
from kontti.cmd.ctr.output import print_json
from kontti.cmd.ctr.session import namespace_of


def spec(call: Call) -> None:
    """The default OCI spec."""
    from kontti.errors import Unimplemented
    from kontti.images.platforms import parse
    from kontti.oci.base import Context, build
    from kontti.oci.encode import encode

    wanted = call.str("platform")
    if wanted and parse(wanted).os != "linux":
        raise Unimplemented(f"a spec for {wanted}: only Linux's are made here")
    print_json(json.loads(encode(build(Context(namespace_of(call), ""), []))))


COMMANDS = (Command("spec", spec, "output OCI runtime spec", flags=[Flag("platform")]),)
