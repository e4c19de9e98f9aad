"""Let the counters of what is gone go too: a series must not outlive its object."""

from __future__ import annotations

from orchestrator.api.foreign.core import Namespace
from orchestrator.api.meta import K8sObject
from orchestrator.api.tidemark.backup_policy import BackupPolicy
from orchestrator.api.tidemark.backup_repository import BackupRepository
from orchestrator.kube.cache import Caches
from orchestrator.observe.metrics import Metrics


def forget_the_gone(caches: Caches, meter: Metrics) -> None:
    """Subscribe: whenever a policy, a namespace or a repository is gone, its counters are dropped."""

    def gone(old: K8sObject | None, new: K8sObject | None) -> None:
        if old is None or new is not None:
            return
        match old:
            case BackupPolicy():
                meter.forget_policy(old.namespace, old.name)
            case Namespace():
                meter.forget_namespace(old.name)
            case BackupRepository():
                meter.forget_repository(old.name)
            case _:
                pass

    for kind in (BackupPolicy, Namespace, BackupRepository):
        caches.of(kind).subscribe(gone)
