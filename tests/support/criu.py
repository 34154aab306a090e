"""An OCI runtime that can checkpoint where CRIU cannot: a real one, but for two of its commands.

``checkpoint`` writes what could be CRIU's files, and ends the container unless it is to go on.
``restore`` wants these files back, and begins the container's bundle anew. Every command line is
noted, and whose streams it was given.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

IMAGES = ("inventory.img", "pages-1.img", "sub/core-1.img")
_SCRIPT = """#!/bin/sh
real={real} notes={notes} head=
{{ for word; do printf '%s\\037' "$word"; done; echo; }} >> "$notes"
argv="$*"
owners=$(stat -Lc %u:%g /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2)
echo $owners >> "$notes.owners"
while [ $# -gt 0 ]; do
  case "$1" in
    --root|--log|--log-format) head="$head $1 $2"; shift 2 ;;
    --*) head="$head $1"; shift ;;
    *) break ;;
  esac
done
command="$1"; shift
if [ "$command" = update ] && [ -e "$notes.resources" ]; then exec cp "$2" "$notes.resources"; fi
case "$command" in checkpoint|restore) ;; *) exec "$real" $head "$command" "$@" ;; esac
image= work= bundle= pid= console= leave=
while [ $# -gt 1 ]; do
  case "$1" in
    --image-path) image="$2"; shift ;;
    --work-path) work="$2"; shift ;;
    --bundle) bundle="$2"; shift ;;
    --pid-file) pid="$2"; shift ;;
    --console-socket) console="--console-socket $2"; shift ;;
    --manage-cgroups-mode|--empty-ns|--parent-path) shift ;;
    --leave-running) leave=yes ;;
  esac
  shift
done
if [ -e "{failing}" ]; then
  [ "$command" = checkpoint ] && log=dump.log || log=restore.log
  echo "(00.001) Error (criu/vdso.c:381): vdso: Unexpected rt vDSO area bounds" > "$work/$log"
  log=$(echo "$argv" | sed 's/.*--log \\([^ ]*\\).*/\\1/')
  printf '%s\\n' '{{"level":"error","msg":"criu failed: type NOTIFY errno 0\\nlog: x"}}' >> "$log"
  exit 1
fi
if [ "$command" = checkpoint ]; then
  mkdir -p "$image/sub"
  for name in {images}; do echo "$name" > "$image/$name"; done
  [ "$leave" ] || "$real" $head kill "$1" KILL
  exit 0
fi
for name in {images}; do [ "$(cat "$image/$name")" = "$name" ] || exit 4; done
"$real" $head create --bundle "$bundle" --pid-file "$pid" $console "$1" || exit
exec "$real" $head start "$1"
"""


@dataclass(frozen=True)
class StandIn:
    """The stand-in at ``path``, and where it notes its command lines."""

    path: Path
    notes: Path
    failing: Path

    def owners(self) -> list[list[str]]:
        """To whom ``uid:gid`` stdin, stdout and stderr belonged at each call."""
        text = self.notes.with_name(f"{self.notes.name}.owners").read_text()
        return [line.split() for line in text.splitlines()]

    def keep_resources(self) -> Path:
        """Have ``update`` do nothing but copy what it is given, to the file this gives."""
        kept = self.notes.with_name(f"{self.notes.name}.resources")
        kept.touch()
        return kept

    def fail(self) -> None:
        """Have both commands fail from now on, as CRIU does on a kernel that it does not know."""
        self.failing.touch()

    def commands(self, name: str) -> list[list[str]]:
        """The arguments of each call of a command, those for every command left out."""
        found = []
        for line in self.notes.read_text().splitlines():
            words = line.split("\x1f")[:-1]
            if name in words:
                found.append(words[words.index(name) + 1 :])
        return found


def stand_in(folder: Path, real: str) -> StandIn:
    """A stand-in for the runtime ``real``, of the same name, in a new folder."""
    folder.mkdir()
    made = StandIn(folder / Path(real).name, folder / "argv", folder / "failing")
    made.notes.touch()
    script = _SCRIPT.format(
        real=shlex.quote(real),
        notes=shlex.quote(str(made.notes)),
        failing=made.failing,
        images=" ".join(IMAGES),
    )
    made.path.write_text(script)
    made.path.chmod(0o755)
    return made
