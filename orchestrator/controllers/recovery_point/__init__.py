"""Recovery points: gather what is there, decide, act. One file per part of the way.

`decisions.recovery_point` draws the life of a point and chooses each step; here the steps are carried out, each with
idempotent writes under deterministic names. What must never happen here: memory that dies with the process, or a step
that can't be the first one after a crash.
"""

from __future__ import annotations

from orchestrator.controllers.recovery_point.controller import RecoveryPointController
from orchestrator.controllers.recovery_point.removal import prune_point

__all__ = ["RecoveryPointController", "prune_point"]
