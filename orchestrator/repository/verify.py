"""Prove what is stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import msgspec

from orchestrator.repository.vault import Vault

Depth = Literal["quick", "full"] | float


class Finding(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One damaged or missing object, and the points that it hurts."""

    key: str
    what: str
    points: tuple[str, ...] = ()
    """Manifest names."""
    chunks: int = 0


class VerifyReport(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What verify saw."""

    ok: bool
    points: int = 0
    pages: int = 0
    chunks: int = 0
    bytes_read: int = 0
    findings: tuple[Finding, ...] = ()


async def verify(
    vault: Vault,
    *,
    depth: Depth = "quick",
    points: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    record: bool = True,
) -> VerifyReport:
    """Check points (all, or manifest name -> expected digest or ""), and write down what is damaged.

    `depth`: quick = manifests, every map page, presence and size of packs; a share between 0 and 1 = also that share
    of the chunks; full = every chunk.
    """
    raise AssertionError
