"""What options are, and how they make a spec.

An option is made from checked values by a function named as containerd's clients call it. It
changes nothing but the spec it is given, and reads the host only where its name says so.
"""

from __future__ import annotations

from kontti.oci.accounts import AccountSource
from kontti.oci.default import default_spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    from kontti.oci.spec import Linux, Process, Resources, Spec

    Option = Callable[["Context", Spec], None]


class Context:
    """The container a spec is for. ``rootfs`` gives a path of its root, mounting it if it must."""

    __slots__ = ("accounts", "id", "namespace")

    def __init__(
        self,
        namespace: str,
        id: str,
        rootfs: Callable[[], AbstractContextManager[str]] | None = None,
    ) -> None:
        self.namespace = namespace
        self.id = id
        self.accounts = AccountSource(rootfs)


def build(context: Context, options: Iterable[Option], base: Spec | None = None) -> Spec:
    """The default spec, or ``base``, after ``options`` in their order."""
    spec = default_spec(context.namespace, context.id) if base is None else base
    for option in options:
        option(context, spec)
    return spec


def process_of(spec: Spec) -> Process:
    """``process``, made if it is not there."""
    return spec.setdefault("process", {})


def linux_of(spec: Spec) -> Linux:
    """``linux``, made if it is not there."""
    return spec.setdefault("linux", {})


def resources_of(spec: Spec) -> Resources:
    """``linux.resources``, made if it is not there."""
    return linux_of(spec).setdefault("resources", {})
