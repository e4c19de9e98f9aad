"""The list of those who live in the house: every noun's controller, and the timers."""

from __future__ import annotations

from typing import Any

from orchestrator.api.tidemark.backup_policy import BackupPolicy
from orchestrator.app.forgetting import forget_the_gone
from orchestrator.app.house import House, Part
from orchestrator.controllers.backup import BackupController
from orchestrator.controllers.backup_policy import BackupPolicyController
from orchestrator.controllers.backup_repository import BackupRepositoryController
from orchestrator.controllers.base import Context, Controller
from orchestrator.controllers.recovery_point import RecoveryPointController
from orchestrator.controllers.restore import RestoreController
from orchestrator.controllers.retention import Retention
from orchestrator.controllers.slots import Slots
from orchestrator.controllers.sweeper import Sweeper
from orchestrator.controllers.wake import Wake


def inhabitants(context: Context) -> House:
    """Return every noun's controller and the timers."""
    forget_the_gone(context.caches, context.meter)
    policies = BackupPolicyController(context)
    controllers: list[Controller[Any]] = [
        policies,
        BackupController(context),
        RecoveryPointController(context),
        RestoreController(context),
        BackupRepositoryController(context),
    ]
    wake = Wake(context.caches.of(BackupPolicy), context.clock, policies.queue.add)
    retention = Retention(context)
    retention.wire()
    parts = [
        Part("wake", wake.run),
        Part("slots", Slots(context).run),
        Part("retention", retention.run),
        Part("sweeper", Sweeper(context).run),
    ]
    return House(controllers=controllers, parts=parts)
