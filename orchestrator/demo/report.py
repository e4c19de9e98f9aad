"""What the demonstration found, as the JSON that others script against."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from orchestrator.api.tidemark.recovery_point import RecoveryPoint


class RestoreResult(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One volume brought back."""

    pvc: str
    point: str
    seconds: float
    sha256: str
    expected_sha256: str
    identical: bool
    check: str


class Judged(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What retention said of a point."""

    point: str
    kept: bool
    reasons: list[str]


class Fallback(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A point that was not a delta although one was wanted."""

    pvc: str
    point: str
    reason: str


class RpoReading(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The RPO gauge, as scraped."""

    at: datetime
    namespace: str
    pvc: str
    policy: str
    seconds: float


class Report(msgspec.Struct, kw_only=True, rename="camel"):
    """All of it. Bytes and seconds as numbers."""

    ok: bool = False
    seconds: float = 0.0
    points: list[dict[str, Any]] = []
    restores: list[RestoreResult] = []
    retention: list[Judged] = []
    fallbacks: list[Fallback] = []
    rpo: list[RpoReading] = []
    checks: list[dict[str, Any]] = []
    """What was claimed, and whether it held."""

    def check(self, claim: str, *, held: bool, detail: str = "") -> None:
        """Write down whether a claim held."""
        self.checks.append({"claim": claim, "held": held, "detail": detail})


def point_entry(point: RecoveryPoint) -> dict[str, Any]:
    """Return a completed point as the report shows it."""
    status = point.status
    sizes, times = status.bytes, status.seconds
    return {
        "namespace": point.namespace,
        "pvc": point.spec.pvc_name,
        "name": point.name,
        "mode": status.mode,
        "reason": status.fallback_reason,
        "base": status.base.point if status.base is not None else "",
        "snapshotTime": status.snapshot_time,
        "bytes": {
            "volume": sizes.volume if sizes else 0,
            "allocated": (sizes.allocated or 0) if sizes else 0,
            "changed": (sizes.changed or 0) if sizes else 0,
            "read": sizes.read if sizes else 0,
            "uploaded": sizes.uploaded if sizes else 0,
        },
        "seconds": {
            "snapshot": times.snapshot if times else 0.0,
            "diff": times.diff if times else 0.0,
            "copy": times.copy if times else 0.0,
            "commit": times.commit if times else 0.0,
            "total": times.total if times else 0.0,
        },
    }
