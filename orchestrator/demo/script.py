"""What the acts of the demonstration share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from orchestrator.api.tidemark.recovery_point import RecoveryPoint
from orchestrator.demo.report import Report
from orchestrator.demo.stage import Stage
from orchestrator.demo.volumes import Database
from orchestrator.kube.client import Client

Teller = Callable[[str], None]
CLAIMS = ("files", "database", "archive")


@dataclass
class Script:
    """What the acts share."""

    stage: Stage
    report: Report
    tell: Teller
    show: Teller = lambda _: None
    """Shows what is under way now, on a line that is overwritten."""
    points: dict[str, RecoveryPoint] = field(default_factory=dict)
    """Every point ever seen completed, by uid: dropped ones too."""
    held: dict[str, str] = field(default_factory=dict)
    """SHA-256 of what each point's snapshot held, by the point's uid."""
    changed: list[tuple[datetime, datetime, list[int]]] = field(default_factory=list)
    """Rewritten blocks of the archive: when that began, when it ended, which."""
    database: Database | None = None

    @property
    def client(self) -> Client:
        """Return the API client."""
        return self.stage.client

    def of(self, claim: str) -> list[RecoveryPoint]:
        """Return a claim's completed points, oldest first."""
        mine = [p for p in self.points.values() if p.spec.pvc_name == claim and p.status.snapshot_time is not None]
        return sorted(mine, key=lambda p: (p.status.sequence, p.status.snapshot_time))
