"""Containers as a library: python examples/run_container.py ARCHIVE

ARCHIVE is an image as `docker save` or `skopeo copy ... oci-archive:` write it. Needs root.
"""

import sys
import tempfile

from kontti import Engine
from kontti.engine.values import Options


def main(archive: str) -> None:
    # a root and state of its own; without arguments: /var/lib/kontti and /run/kontti
    with (
        tempfile.TemporaryDirectory(prefix="kontti-") as root,
        tempfile.TemporaryDirectory(prefix="kontti-", dir="/run") as state,
        Engine(root, state) as engine,
    ):
        image = engine.import_image(archive)[0].name  # or engine.pull("alpine").name

        # to its end, with its output
        result = engine.run(image, ["sh", "-c", "echo hello; exit 3"])
        print(result.stdout.decode().strip(), "and exit code", result.exit_code)
        result = engine.run(image, ["wc", "-c"], input=b"twelve bytes")
        print("it counted", result.stdout.decode().strip(), "bytes")

        # in the background
        script = "while true; do echo tick; sleep 1; done"
        engine.start(image, ["sh", "-c", script], Options(name="clock", memory=64 << 20))
        print("exec says", engine.exec("clock", ["hostname"]).stdout.decode().strip())
        for container in engine.containers():
            print(container.id, "is", container.status)
        print("stopped with exit code", engine.stop("clock", timeout=0.5))
        print("it had written", b"".join(engine.logs("clock")).split(b"\n")[0].decode())
        engine.remove("clock")
        engine.remove_image(image)
        print(len(engine.images()), "images are left")


if __name__ == "__main__":
    main(sys.argv[1])
