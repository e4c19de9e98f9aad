"""What crosses into a mover's pod and what comes back.

In: one Secret with `MoverConfig` as JSON (the repository's address and credentials, one namespace's keys, nothing
else) and the command line. Out: `Progress` as one JSON line on stdout at most every 5 s, and `MoverOutcome` as the
termination message (at most 1 KiB). What is in the repository is the truth; an outcome is a hint.
"""

from __future__ import annotations

from typing import Literal

import msgspec

CONFIG_KEY = "mover.json"
"""Key of the Secret, and the name of the mounted file."""
CONFIG_MOUNT = "/etc/tidemark/mover"
DEVICE_PATH = "/dev/tidemark-volume"
"""The raw block device inside the pod: the snapshot's clone to read, or the prime volume to fill."""
TERMINATION_LOG = "/dev/termination-log"
PROGRESS_INTERVAL_S = 5.0
TERMINATION_LIMIT = 1024

EXIT_OK = 0
EXIT_RETRYABLE = 75
"""EX_TEMPFAIL: another pod may do better."""
EXIT_TERMINAL = 65
"""EX_DATAERR: no other pod will do better."""

Task = Literal["backup", "restore", "maintain", "verify"]


class MoverConfig(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Everything a mover may know. Holds secrets: never logged, `repr` says nothing."""

    version: Literal[1] = 1
    task: Task
    point: str
    """Uid of the RecoveryPoint or Restore; also the id of the intent of a backup. Namespace id for maintain/verify."""
    url: str
    store_options: dict[str, str] = {}
    keys: str
    """`NamespaceKeys.to_json()` as text."""
    readers: int = 4
    bandwidth_limit: int | None = None
    """Bytes per second read from the volume (backup) or written to it (restore); None: unlimited."""
    iops_limit: int | None = None
    """Reads (backup) or writes (restore) of at most 256 KiB per second; None: unlimited."""
    manifest_key: str = ""
    """Restore: the point's manifest."""
    manifest_digest: str = ""
    target_known_zero: bool = False
    """Restore: the target was just provisioned and its driver is known to hand out zeros."""
    read_back: bool = True
    """Restore: read the target again and compare."""
    sha256: bool = False
    """Restore: also tell the digest of the whole volume, from reading it back."""
    grace_s: float = 86400.0
    """Maintain: how long candidates wait before a later run deletes them."""
    intent_age_s: float = 604800.0
    lock_retention_s: float = 0.0
    """Put what lasts with an object lock of so long; 0: without."""
    lock_renew_s: float = 0.0
    """Maintain: renew the lock of what lives once in so long."""
    lock_mode: Literal["COMPLIANCE", "GOVERNANCE"] = "COMPLIANCE"
    sample: float = 0.0
    """Verify: 0 structure only, 1 every byte, between: share of chunks."""
    turn: int = 0
    """Verify: which part of the chunks a sample takes."""
    run: str = ""
    """Verify: the name under which the result is left in the repository; empty: it is only logged."""

    def __repr__(self) -> str:
        return f"MoverConfig(task={self.task!r}, point={self.point!r}, ...)"


class Progress(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """How far a mover is. Bytes of the volume."""

    stage: Literal["starting", "copying", "committing", "verifying", "sweeping", "done"]
    done: int = 0
    total: int = 0
    read: int = 0
    uploaded: int = 0


class MoverOutcome(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """How a mover ended."""

    ok: bool
    reason: str = ""
    message: str = ""
    retryable: bool = False
    manifest_key: str = ""
    manifest_digest: str = ""
    sha256: str = ""
    """Restore: digest of the whole target as read back, when asked."""
    read: int = 0
    uploaded: int = 0
    written: int = 0
    seconds: float = 0.0
