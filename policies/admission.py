"""Which of the waiting copies may start now.

Limits hold in all, per node, per driver and per repository. Inside them a namespace takes at most its fair share
while another one waits, and the copy whose objective has been broken longest goes first. The answer depends on what
is given only; the caller makes sure that what it gives is not stale.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Limits:
    """How many copies at once. 0 means none."""

    total: int
    per_node: int
    per_driver: int
    per_repository: int


@dataclass(frozen=True, slots=True)
class Running:
    """A copy that holds a slot. An empty node, driver or repository is not known, and not counted."""

    id: str
    namespace: str
    node: str = ""
    driver: str = ""
    repository: str = ""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A copy that asks for a slot."""

    id: str
    namespace: str
    since: datetime
    """When it began to wait."""
    overdue_s: float = 0.0
    """Seconds by which the volume's objective is broken; 0 if it is kept."""
    node: str = ""
    driver: str = ""
    repository: str = ""


class _Usage:
    """Counts of slots taken, by what limits them."""

    def __init__(self, running: Iterable[Running]) -> None:
        self.total = 0
        self.by_node: Counter[str] = Counter()
        self.by_driver: Counter[str] = Counter()
        self.by_repository: Counter[str] = Counter()
        self.by_namespace: Counter[str] = Counter()
        for item in running:
            self.take(item)

    def take(self, item: Running | Waiting) -> None:
        self.total += 1
        self.by_node[item.node] += 1
        self.by_driver[item.driver] += 1
        self.by_repository[item.repository] += 1
        self.by_namespace[item.namespace] += 1

    def admits(self, item: Waiting, limits: Limits) -> bool:
        if self.total >= limits.total:
            return False
        return (
            (not item.node or self.by_node[item.node] < limits.per_node)
            and (not item.driver or self.by_driver[item.driver] < limits.per_driver)
            and (not item.repository or self.by_repository[item.repository] < limits.per_repository)
        )


def grant(waiting: Sequence[Waiting], running: Sequence[Running], limits: Limits) -> list[Waiting]:
    """Return those of `waiting` that get a slot now, in the order granted.

    A copy that is both waiting and running gets nothing (it has its slot). Work conserving: a slot stays free only if
    no waiting copy fits. Ties end at the id, so that two callers with the same view grant the same.
    """
    usage = _Usage(running)
    taken = {item.id for item in running}
    queue = sorted(
        {item.id: item for item in waiting if item.id not in taken}.values(),
        key=lambda item: (-max(item.overdue_s, 0.0), item.since, item.id),
    )
    granted: list[Waiting] = []
    while queue:
        fitting = [item for item in queue if usage.admits(item, limits)]
        if not fitting:
            break
        namespaces = {item.namespace for item in fitting} | {ns for ns, count in usage.by_namespace.items() if count}
        share = -(-limits.total // len(namespaces))
        chosen = next((item for item in fitting if usage.by_namespace[item.namespace] < share), fitting[0])
        usage.take(chosen)
        granted.append(chosen)
        queue.remove(chosen)
    return granted
