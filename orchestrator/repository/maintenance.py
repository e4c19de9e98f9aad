"""Sweep what nothing reaches any more."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import msgspec

from orchestrator.fence import Fence
from orchestrator.repository.vault import Vault


class SweepPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a sweep will do and why."""


class SweepResult(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a sweep did."""

    deleted_objects: int = 0
    deleted_bytes: int = 0
    candidates: int = 0
    cancelled_intents: int = 0


class Usage(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a namespace holds."""

    bytes: int = 0
    objects: int = 0
    points: int = 0


async def plan_sweep(
    vault: Vault,
    *,
    now: datetime,
    grace: timedelta,
    intent_age: timedelta,
    progress: Callable[[int], None] | None = None,
) -> SweepPlan:
    """Find what nothing reaches, without changing anything. Raises SweepBlocked, Retryable store errors."""
    raise AssertionError


async def sweep(vault: Vault, plan: SweepPlan, fence: Fence) -> SweepResult:
    """Carry a plan out; may be cut off anywhere and started again."""
    raise AssertionError


async def usage(vault: Vault) -> Usage:
    """Return bytes, objects and committed points of the namespace."""
    raise AssertionError
