"""What can go wrong between a device and the repository."""

from __future__ import annotations

import errno
import os
from typing import ClassVar

from orchestrator.errors import Retryable, Terminal


class DeviceSizeMismatch(Terminal):
    """The device isn't the volume that the plan was made for."""

    reason: ClassVar[str] = "DeviceSizeMismatch"
    remedy: ClassVar[str] = "The clone's size differs from the snapshot's record; make a new recovery point."

    def __init__(self, path: str, found: int, expected: int) -> None:
        super().__init__(f"{path} has {found} bytes, the plan is for {expected}")


class DeviceMissing(Terminal):
    """The device or file can't be opened at all."""

    reason: ClassVar[str] = "DeviceMissing"
    remedy: ClassVar[str] = "Check that the path exists and that this process may open it."

    def __init__(self, path: str, cause: OSError) -> None:
        super().__init__(f"can't open {path}: {os.strerror(cause.errno or 0)}")


class DeviceUnavailable(Retryable):
    """The device is there, and can't be opened at this moment or from this node."""

    reason: ClassVar[str] = "DeviceUnavailable"
    remedy: ClassVar[str] = "The storage system or the node's connection to it fails; look at its own log."

    def __init__(self, path: str, cause: OSError) -> None:
        super().__init__(f"can't open {path}: {os.strerror(cause.errno or 0)}")


def open_failed(path: str, cause: OSError) -> DeviceMissing | DeviceUnavailable:
    """Return the error for an open that failed: the path's fault, or the storage's."""
    passing = (errno.EIO, errno.ENXIO, errno.EBUSY, errno.EAGAIN, errno.ENODEV, errno.ENOMEM, errno.ETIMEDOUT)
    return (DeviceUnavailable if cause.errno in passing else DeviceMissing)(path, cause)


class NotADevice(Terminal):
    """The path is neither a regular file nor a block device."""

    reason: ClassVar[str] = "NotADevice"
    remedy: ClassVar[str] = "Give a block device or a regular file."

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} is neither a block device nor a regular file")


class DeviceReadFailed(Retryable):
    """The device didn't give what it should hold (an I/O error, or fewer bytes than its size says)."""

    reason: ClassVar[str] = "DeviceReadFailed"
    remedy: ClassVar[str] = "The storage system or the node's connection to it fails; look at its own log."

    def __init__(self, path: str, offset: int, length: int, what: str) -> None:
        super().__init__(f"reading {length} bytes at {offset} of {path}: {what}")


class DeviceWriteFailed(Retryable):
    """The target didn't take what it was given."""

    reason: ClassVar[str] = "DeviceWriteFailed"
    remedy: ClassVar[str] = "The storage system or the node's connection to it fails; look at its own log."

    def __init__(self, path: str, offset: int, what: str) -> None:
        super().__init__(f"writing at {offset} of {path}: {what}")


class TargetFull(Terminal):
    """The target's file system or pool has no room left."""

    reason: ClassVar[str] = "TargetFull"
    remedy: ClassVar[str] = "Make room there or restore to another place; nothing in the repository changed."

    def __init__(self, path: str, offset: int) -> None:
        super().__init__(f"no space left for {path} at byte {offset}")


class TargetTooSmall(Terminal):
    """The target can't hold the volume; refused before the first write."""

    reason: ClassVar[str] = "TargetTooSmall"
    remedy: ClassVar[str] = "Restore to a target at least as large as the volume was."

    def __init__(self, path: str, found: int, needed: int) -> None:
        super().__init__(f"{path} has {found} bytes, the recovery point needs {needed}")


class TargetExists(Terminal):
    """A file is where a new one should be made."""

    reason: ClassVar[str] = "TargetExists"
    remedy: ClassVar[str] = "Name a new file, or say --overwrite to fill the one that is there."

    def __init__(self, path: str, restored: str = "") -> None:
        super().__init__(f"{path} exists already" + (f"; the volume is whole, in {restored}" if restored else ""))


class TargetUnfinished(Terminal):
    """A restore to the same new file is at work, or was killed."""

    reason: ClassVar[str] = "TargetUnfinished"
    remedy: ClassVar[str] = "Remove that file if no other restore is at work there: it is not whole. Then try again."

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} is left of another restore")


class ReadBackMismatch(Terminal):
    """The target, read again, doesn't hold what was written to it."""

    reason: ClassVar[str] = "ReadBackMismatch"
    remedy: ClassVar[str] = "Don't use this volume: its storage lost or changed what was written. Restore to another."

    def __init__(self, path: str, index: int) -> None:
        super().__init__(f"chunk {index} of {path} reads back different from what was written")


class Interrupted(Retryable):
    """The work was told to stop; what is stored so far is found again by the next try."""

    reason: ClassVar[str] = "Interrupted"
    remedy: ClassVar[str] = "Start it again: it carries on where it stopped."

    def __init__(self, what: str = "the copy") -> None:
        super().__init__(f"{what} was told to stop")


class PlanMismatch(Terminal):
    """The plan can't be what this engine is asked to run."""

    reason: ClassVar[str] = "PlanMismatch"
    remedy: ClassVar[str] = "Make a new recovery point; this one's plan doesn't fit what it is run with."


class NoThread(Retryable):
    """The machine lets this process start no more threads."""

    reason: ClassVar[str] = "NoThread"
    remedy: ClassVar[str] = (
        "Raise the limit of processes (of the pod, or `ulimit -u`), or let fewer threads work at once."
    )

    def __init__(self, what: str, started: int, wanted: int) -> None:
        super().__init__(f"{what} could start only {started} of {wanted} threads")
