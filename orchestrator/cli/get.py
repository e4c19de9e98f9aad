"""Show policies, backups, points, restores and repositories, also points whose records are gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.parts.cluster import KubeConfig, KubeContext, Output, age, check_output, cluster
from orchestrator.cli.parts.output import size, table, write_json
from orchestrator.cli.parts.refusals import NotThere

if TYPE_CHECKING:
    from datetime import datetime

    from orchestrator.api.meta import K8sObject
    from orchestrator.repository.repository import Repository

app = typer.Typer()

Row = tuple[str, ...]
NOUNS = {
    "policies": "BackupPolicy",
    "policy": "BackupPolicy",
    "bp": "BackupPolicy",
    "backups": "Backup",
    "backup": "Backup",
    "bk": "Backup",
    "points": "RecoveryPoint",
    "point": "RecoveryPoint",
    "rp": "RecoveryPoint",
    "restores": "Restore",
    "restore": "Restore",
    "rst": "Restore",
    "rs": "Restore",
    "repositories": "BackupRepository",
    "repository": "BackupRepository",
    "brepo": "BackupRepository",
}
"""What people call our kinds: also in the singular, and as kubectl's short names."""


@app.command()
def get(
    what: Annotated[str, typer.Argument(help="policies, backups, points, restores or repositories.")],
    name: Annotated[str | None, typer.Argument(help="Only this one.")] = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", metavar="NS", help="Only this namespace. Absent: all.")
    ] = None,
    repository: Annotated[
        str | None,
        typer.Option(help="points: look into this BackupRepository itself (needs the right to read its Secrets)."),
    ] = None,
    system_namespace: Annotated[str, typer.Option(help="Where the controller's Secrets are.")] = "tidemark-system",
    output: Output = "text",
    kubeconfig: KubeConfig = None,
    context: KubeContext = None,
) -> None:
    """Show what is there.

    tidemark get points -n shop

    tidemark get points --repository vault -o json
    """
    check_output(output)
    if what not in NOUNS:
        raise typer.BadParameter("one of policies, backups, points, restores, repositories", param_hint="WHAT")
    if repository is not None and NOUNS[what] != "RecoveryPoint":
        raise typer.BadParameter("only points live in a repository", param_hint="--repository")
    if repository is not None:
        rows, objects = asyncio.run(_in_repository(repository, namespace, name, system_namespace, kubeconfig, context))
    else:
        rows, objects = asyncio.run(_in_cluster(what, namespace, name, kubeconfig, context))
    if output == "json":
        write_json(Path("-"), objects)
    elif len(rows) == 1:
        print("Nothing found.")
    else:
        table(rows[0], rows[1:])


async def _in_cluster(
    what: str, namespace: str | None, name: str | None, kubeconfig: str | None, context: str | None
) -> tuple[list[Row], list[dict[str, Any]]]:
    from orchestrator.api.tidemark import Backup, BackupPolicy, BackupRepository, RecoveryPoint, Restore
    from orchestrator.clock import SystemClock

    kinds: dict[str, type[K8sObject]] = {
        kind.RESOURCE.kind: kind for kind in (Backup, BackupPolicy, BackupRepository, RecoveryPoint, Restore)
    }
    kind = kinds[NOUNS[what]]
    async with cluster(kubeconfig, context) as client:
        found, _ = await client.list(kind, namespace or "")
    chosen = [obj for obj in found if name is None or obj.name == name]
    if name is not None and not chosen:
        raise NotThere(f"There is no {kind.RESOURCE.kind} {name}" + (f" in namespace {namespace}" if namespace else ""))
    now = SystemClock().now()
    return [_HEADERS[kind.__name__], *(_row(obj, now) for obj in chosen)], [obj.to_manifest() for obj in chosen]


_HEADERS: dict[str, Row] = {
    "BackupPolicy": ("NAMESPACE", "NAME", "RPO", "WORST AGE", "COMPLIANT", "LAST POINT", "NEXT RUN"),
    "Backup": ("NAMESPACE", "NAME", "POLICY", "PHASE", "POINTS", "STARTED", "REASON"),
    "RecoveryPoint": ("NAMESPACE", "NAME", "VOLUME", "TAKEN", "MODE", "CHANGED", "SIZE", "PHASE", "REASON"),
    "Restore": ("NAMESPACE", "NAME", "POINT", "TARGET", "PHASE", "PROGRESS", "REASON"),
    "BackupRepository": ("NAME", "URL", "READY", "POINTS", "SIZE", "LAST CHECK"),
}


def _row(obj: K8sObject, now: datetime) -> Row:
    from orchestrator.api.tidemark import Backup, BackupPolicy, BackupRepository, RecoveryPoint, Restore

    match obj:
        case BackupPolicy(status=s):
            worst, last = age(s.oldest_point_time, now), age(s.last_point_time, now)
            return (obj.namespace, obj.name, s.rpo, worst, s.compliant, last, s.next_slot)
        case Backup(status=s):
            policy, started = obj.spec.policy or "", age(s.start_time, now)
            return (obj.namespace, obj.name, policy, s.phase.value, s.progress, started, s.reason)
        case RecoveryPoint(status=s):
            taken = age(s.snapshot_time, now)
            why = s.reason or s.fallback_reason
            return (obj.namespace, obj.name, obj.spec.pvc_name, taken, s.mode, s.changed, s.size, s.phase.value, why)
        case Restore(status=s):
            target = f"{s.target_namespace}/{s.target_pvc}" if s.target_pvc else ""
            return (obj.namespace, obj.name, s.point, target, s.phase.value, s.progress, s.reason)
        case BackupRepository(status=s):
            usage = s.usage
            points, stored = (str(usage.points), usage.size) if usage else ("", "")
            return (obj.name, obj.spec.url, s.ready, points, stored, age(s.last_checked, now))
        case _:
            raise AssertionError(type(obj).__name__)


async def _in_repository(
    repository: str,
    namespace: str | None,
    name: str | None,
    system_namespace: str,
    kubeconfig: str | None,
    context: str | None,
) -> tuple[list[Row], list[dict[str, Any]]]:
    """List a repository itself, with the Secrets that its resource names."""
    from orchestrator.cli.parts.points import all_points, described

    async with _opened(repository, system_namespace, kubeconfig, context) as opened:
        found = [
            (manifest, ref)
            for _, manifest, ref in await all_points(opened, namespace)
            if name is None or name in (manifest.record.point_id, manifest.record.point_name)
        ]
    if name is not None and not found:
        raise NotThere(f"BackupRepository {repository} holds no point {name}")
    rows: list[Row] = [("POINT", "NAMESPACE", "VOLUME", "TAKEN", "MODE", "SIZE", "STORED")]
    rows += [
        (
            manifest.record.point_id,
            manifest.record.namespace.name,
            manifest.record.pvc_name,
            manifest.record.snapshot_time.strftime("%Y-%m-%dT%H:%M:%SZ"),
            manifest.record.actual_mode,
            size(manifest.root.volume_size),
            size(manifest.stats.uploaded),
        )
        for manifest, _ in found
    ]
    return rows, [described(manifest, ref) for manifest, ref in found]


@asynccontextmanager
async def _opened(
    name: str, system_namespace: str, kubeconfig: str | None, context: str | None
) -> AsyncIterator[Repository]:
    """Open a BackupRepository with the Secrets that it names, for the length of a block. Raises NotThere."""
    from orchestrator.api.foreign.core import Secret
    from orchestrator.api.tidemark import BackupRepository
    from orchestrator.repository.keys import MasterKey
    from orchestrator.repository.repository import Repository
    from orchestrator.repository.store import open_store

    async with cluster(kubeconfig, context) as client:
        resource = await client.get(BackupRepository, name)
        secret = await client.get(Secret, resource.spec.encryption_secret, system_namespace)
        if "master.key" not in secret.data:
            raise NotThere(f"Secret {system_namespace}/{secret.name} has no key master.key")
        master = MasterKey.from_bytes(secret.data["master.key"])
        options: dict[str, str] = {}
        if resource.spec.credentials_secret is not None:
            credentials = await client.get(Secret, resource.spec.credentials_secret, system_namespace)
            options = {key: value.decode("utf-8", "replace").strip() for key, value in credentials.data.items()}
    store = await open_store(resource.spec.url, options)
    try:
        yield await Repository.open(store, master)
    finally:
        await store.close()
