"""The controller's own settings, read once at the start from flags and environment.

What belongs to a policy or a repository lives in their resources, not here.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Settings:
    """How this installation runs. Durations in seconds."""

    namespace: str = "tidemark-system"
    """Where the controller, its movers and all repository credentials live."""
    service_account: str = "tidemark-controller"
    """The account whose tokens the CBT services get; TokenRequest is limited to it."""
    mover_image: str = "tidemark"
    mover_command: tuple[str, ...] = ("tidemark",)
    mover_run_as_user: int = 0
    """0: a non-root process can't open a block device on most clusters."""
    mover_service_account: str = "tidemark-mover"
    mover_memory: str = "384Mi"
    mover_cpu: str = "1"
    max_movers: int = 4
    """Movers at once, in all."""
    max_movers_per_node: int = 2
    max_movers_per_driver: int = 4
    max_movers_per_repository: int = 4
    workers: int = 8
    """Reconciles at once, per kind."""
    resync_s: float = 60.0
    snapshot_timeout_s: float = 600.0
    """A snapshot that is not ready after this long fails the point."""
    clone_timeout_s: float = 600.0
    mover_attempts: int = 5
    """Pods tried for one point before it fails."""
    mover_stall_s: float = 1800.0
    """A mover that gets nowhere for this long is taken for hung, and another one takes its place."""
    pod_overdue_s: float = 60.0
    """A pod that is still there so long after its grace has ended is deleted without waiting for its node."""
    maintenance_deadline_s: float = 6 * 3600.0
    """A maintenance Job may run this long; what it did not finish is done at the next slot."""
    lease_duration_s: float = 15.0
    lease_renew_s: float = 10.0
    finalizer_bound_s: float = 300.0
    """In-flight work of a deleted object is torn down for at most this long; then the sweeper has it."""
    metrics_address: str = "0.0.0.0:8080"
    cbt_streams_per_driver: int = 2
    leader_elect: bool = True
    extra: dict[str, str] = field(default_factory=dict)
    """`driver/<name>/baseIdSource` and the like: per-driver overrides by name."""
