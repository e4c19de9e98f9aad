"""What a check is given, and what it answers."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime

import msgspec

from orchestrator.config import Settings
from orchestrator.kube.client import Client


class Verdict(enum.Enum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one check found."""

    check: str
    verdict: Verdict
    message: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """Where is looked, and what time it is there."""

    client: Client
    settings: Settings
    here: datetime
    """This machine's clock, when the server was asked."""
    server: datetime | None
    """The API server's clock at the same moment, to a second; None: it did not say."""
    version: str
    """Of the API server; "" when it did not say."""

    @property
    def now(self) -> datetime:
        """Return the time by which the cluster's own times are judged."""
        return self.server or self.here


Check = Callable[[Place], AsyncIterator[Finding]]


def ok(check: str, message: str) -> Finding:
    """Return that it is as it should be."""
    return Finding(check=check, verdict=Verdict.OK, message=message)


def warn(check: str, message: str, remedy: str) -> Finding:
    """Return that something is weaker than it should be, or could not be looked at."""
    return Finding(check=check, verdict=Verdict.WARNING, message=message, remedy=remedy)


def bad(check: str, message: str, remedy: str) -> Finding:
    """Return that something does not work."""
    return Finding(check=check, verdict=Verdict.FAILED, message=message, remedy=remedy)
