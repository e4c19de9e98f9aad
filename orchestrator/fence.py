"""The right to write, as an interface: whatever deletes asks it first.

`kube/lease` implements it; `app` hands it to whatever writes or deletes. It exists apart so that `repository` can
refuse to delete without knowing Kubernetes.
"""

from __future__ import annotations

from typing import Protocol


class Fence(Protocol):
    """Says whether this process still holds the lease."""

    def check(self) -> None:
        """Raise LeaseStale when the lease is older than its deadline. Cheap, synchronous, thread safe."""


class OpenFence:
    """Always allows: for command-line tools and movers, which hold no lease."""

    def check(self) -> None:
        """Allow."""
