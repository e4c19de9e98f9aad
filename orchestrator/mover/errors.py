"""What can be wrong with how a mover was started."""

from __future__ import annotations

from typing import ClassVar

from orchestrator.errors import Terminal


class MoverConfigBad(Terminal):
    """The mounted configuration isn't one that this release can run."""

    reason: ClassVar[str] = "MoverConfigBad"
    remedy: ClassVar[str] = "The controller and the mover image must be of the same release."
