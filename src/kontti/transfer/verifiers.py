"""Judges of images: whether one may be pulled, asked before any of it is fetched.

The programs of a directory, as containerd's ``io.containerd.image-verifier.v1.bindir`` calls them:
https://github.com/containerd/containerd/blob/main/docs/image-verification.md
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from kontti.errors import Error
from kontti.images.documents import dump_descriptor
from kontti.linux import process
from kontti.values import Descriptor

log = logging.getLogger(__name__)
DEFAULT_FOLDER = "/opt/containerd/image-verifier/bin"
DESCRIPTOR_TYPE = "application/vnd.oci.descriptor.v1+json"
OUTPUT_BYTES = 32 << 10


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether an image may be pulled, and why."""

    ok: bool
    reason: str


class Verifier(Protocol):
    """Judges images."""

    @property
    def name(self) -> str:
        """As the plugin is called."""
        ...

    def judge(self, reference: str, target: Descriptor) -> Judgement:
        """Raises Error where there is no judgement."""
        ...


def verify(verifiers: Iterable[Verifier], reference: str, target: Descriptor) -> None:
    """Return where all of them let an image be pulled; raises Error with the reason."""
    what = f"pull of {reference} with digest {target.digest}"
    for verifier in verifiers:
        try:
            judgement = verifier.judge(reference, target)
        except (Error, OSError) as error:
            said = error.message if isinstance(error, Error) else str(error)
            problem = f"image verifier {verifier.name} returned error: {said}"
            raise Error(f"blocking {what}: {problem}") from error
        if not judgement.ok:
            log.warning("image verifier %s blocked %s", verifier.name, what)
            blocked = f"image verifier {verifier.name} blocked {what}"
            raise Error(f"{blocked} for reason: {judgement.reason}")
        log.debug("image verifier %s allowed %s: %s", verifier.name, what, judgement.reason)


@dataclass(frozen=True, slots=True)
class BinDir:
    """Every program of ``folder`` in the order of their names, ``most`` of them (below 0: all).

    One that takes longer than ``seconds`` is killed, with what it started.
    """

    folder: str = DEFAULT_FOLDER
    most: int = 10
    seconds: float = 10.0

    @property
    def name(self) -> str:
        """Verifier.name."""
        return "bindir"

    def judge(self, reference: str, target: Descriptor) -> Judgement:
        """The first one's that refuses; raises Error where one does not answer, OSError."""
        try:
            names = sorted(os.listdir(self.folder), key=os.fsencode)
        except FileNotFoundError:
            return Judgement(True, f"image verifier directory {self.folder} does not exist")
        if not names:
            return Judgement(True, f"no image verifier binaries found in {self.folder}")
        chosen = names if self.most < 0 else names[: self.most]
        if len(chosen) < len(names):
            log.warning(
                "image verifiers are skipped: directory %s has %d entries, more than the %d of "
                "max_verifiers", self.folder, len(names), self.most,
            )  # fmt: skip
        reasons = []
        for program in chosen:
            code, reason = self._run(program, reference, target)
            if code:
                refused = f"verifier {program} rejected image (exit code {code}): {reason}"
                return Judgement(False, refused)
            reasons.append(f"{program} => {reason}")
        return Judgement(True, ", ".join(reasons))

    def _run(self, program: str, reference: str, target: Descriptor) -> tuple[int, str]:
        argv = [
            os.path.join(self.folder, program),
            "-name", reference,
            "-digest", str(target.digest),
            "-stdin-media-type", DESCRIPTOR_TYPE,
        ]  # fmt: skip
        given = json.dumps(dump_descriptor(target)).encode() + b"\n"
        began = time.monotonic()
        try:
            # a byte more than is shown, to tell that there is more
            limit = OUTPUT_BYTES + 1
            done = process.run(argv, timeout=self.seconds, input=given, limit=limit, group=True)
            if done.returncode < 0:
                raise Error(f"signal: {-done.returncode}")
        except (Error, OSError) as error:
            said = f"failed to call verifier {program} (runtime {time.monotonic() - began:.3f}s)"
            raise Error(f"{said}: {error}") from error
        for line in _shown(done.stderr).splitlines():
            log.debug("image verifier %s: %s", program, line)
        return done.returncode, _shown(done.stdout)


def _shown(output: bytes) -> str:
    text = output[:OUTPUT_BYTES].decode(errors="replace").strip()
    return f"{text}(truncated)" if len(output) > OUTPUT_BYTES else text
