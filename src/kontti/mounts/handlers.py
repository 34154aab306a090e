"""Who makes the mounts: the kernel as it is, loop devices, and EROFS images."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from dataclasses import replace

from kontti.errors import FailedPrecondition, Unimplemented
from kontti.linux import libc, loop, mounts
from kontti.values import Mount

BUSY_SECONDS = 1.0
BUSY_PAUSE = 0.02
DMVERITY = "X-containerd.dmverity="


class SystemHandler:
    """Any type that the kernel knows."""

    def mount(self, mount: Mount, target: str) -> Mount:
        """Handler.mount."""
        os.mkdir(target, 0o700)
        mounts.mount_all([mount], target)
        return mount

    def unmount(self, target: str) -> None:
        """Handler.unmount. Raises FailedPrecondition where it is in use for a second."""
        unmount(target)


class LoopHandler:
    """``loop``: a file as a block device, by a link at the target. Read-only with ``ro``."""

    def mount(self, mount: Mount, target: str) -> Mount:
        """Handler.mount."""
        with loop.attach(mount.source, readonly="ro" in mount.options) as device:
            os.symlink(device.path, target)
            device.keep(True)
        return mount

    def unmount(self, target: str) -> None:
        """Handler.unmount. The device goes when its last user does."""
        try:
            path = os.readlink(target)
            with loop.device(path) as device:
                device.keep(False)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in (errno.ENXIO, errno.EINVAL):  # none any more, or never one
                raise
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target)


class ErofsHandler:
    """``erofs``: from the image file itself (kernel 6.12), or through loop devices."""

    def mount(self, mount: Mount, target: str) -> Mount:
        """Handler.mount."""
        if any(option.startswith(DMVERITY) for option in mount.options):
            raise Unimplemented("EROFS with dm-verity")
        options = tuple(option for option in mount.options if option != "loop")
        plain = replace(mount, options=options)
        os.mkdir(target, 0o700)
        try:
            mounts.mount_one(plain, target)
        except OSError as error:
            if error.errno != errno.ENOTBLK:
                raise
            return self._mount_devices(plain, target)
        return plain

    @staticmethod
    def _mount_devices(mount: Mount, target: str) -> Mount:
        with contextlib.ExitStack() as stack:

            def attached(file: str) -> str:
                return stack.enter_context(loop.attach(file, readonly=True)).path

            options = tuple(
                f"device={attached(o.removeprefix('device='))}" if o.startswith("device=") else o
                for o in mount.options
            )
            made = replace(mount, source=attached(mount.source), options=options)
            mounts.mount_one(made, target)
        return made

    def unmount(self, target: str) -> None:
        """Handler.unmount."""
        unmount(target)


def unmount(target: str) -> None:
    """Undo what is mounted on ``target``; raises FailedPrecondition where it stays in use."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            libc.umount2(target, libc.UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return
            if error.errno != errno.EBUSY:
                raise
            if time.monotonic() > deadline:
                raise FailedPrecondition(f"{target} is in use") from None
            time.sleep(BUSY_PAUSE)
