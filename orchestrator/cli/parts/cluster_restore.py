"""The cluster's side of `tidemark restore`: make a Restore, and if asked wait for its end.

What is plainly wrong (a point that is not there, a claim that is) is said before anything is created; the controller
decides everything else, and again.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from orchestrator.cli.parts.cluster import check_name, cluster, known, wait_for
from orchestrator.cli.parts.instant import read_instant
from orchestrator.cli.parts.output import write_json
from orchestrator.errors import Terminal

if TYPE_CHECKING:
    from orchestrator.api.tidemark.restore import Restore, RestoreSource
    from orchestrator.kube.client import Client

SOURCES = ("point", "pvc", "backup", "repository_point")
NAMES = ("point", "pvc", "backup", "from_repository", "to_pvc", "to_namespace", "storage_class", "name", "namespace")
ONLY_OFFLINE = (
    "list_points", "to", "overwrite", "known_zero", "sha256", "expect", "json_file", "writers", "limit", "iops_limit",
    "options",
)  # fmt: skip
ONLY_CLUSTER = (
    "pvc", "as_of", "backup", "repository_point", "from_repository", "to_pvc", "name_prefix", "to_namespace",
    "storage_class", "map_class", "restore_name", "wait", "timeout", "kubeconfig", "context",
)  # fmt: skip

Claim = Annotated[str | None, typer.Option("--pvc", metavar="NAME", help="Cluster: a claim's newest point.")]
AsOfTime = Annotated[
    str | None,
    typer.Option(
        metavar="TIME", help="With --pvc: the newest point not younger than this: ISO 8601 (no zone: UTC), or 2h ago."
    ),
]
WholeBackup = Annotated[str | None, typer.Option("--backup", metavar="NAME", help="Cluster: every volume of a Backup.")]
PointId = Annotated[
    str | None,
    typer.Option(metavar="ID", help="Cluster: a point whose record is gone; see `tidemark get points --repository`."),
]
FromRepository = Annotated[
    str | None,
    typer.Option(metavar="REPO", help="The BackupRepository to look in; with --repository-point, or --pvc."),
]
ToPvc = Annotated[
    str | None, typer.Option(metavar="NEW", help="The claim to make; it must not exist. Absent: the name it had.")
]
NamePrefix = Annotated[str, typer.Option(metavar="P", help="Put before the name that each claim had.")]
ToNamespace = Annotated[
    str | None, typer.Option(metavar="NS", help="Where the claim is made. Absent: in the point's namespace.")
]
NewClass = Annotated[
    str | None, typer.Option("--storage-class", metavar="C", help="Its StorageClass. Absent: as mapped, or as it was.")
]
ClassMap = Annotated[
    list[str] | None, typer.Option(metavar="OLD=NEW", help="StorageClass that was, and to use; may be repeated.")
]
RestoreName = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="Name of the Restore. Absent: made up.")
]
Wait = Annotated[bool, typer.Option("--wait", help="Wait for its end; the exit code says how it went.")]
Timeout = Annotated[float, typer.Option(metavar="SECONDS", help="How long to wait.")]


class TargetTaken(Terminal):
    """The claim to make exists already."""

    reason: ClassVar[str] = "TargetExists"
    remedy: ClassVar[str] = "A restore never overwrites: choose another name with --to-pvc or --name-prefix."


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a person asked for, as typed."""

    namespace: str
    point: str | None
    pvc: str | None
    as_of: str | None
    backup: str | None
    repository_point: str | None
    from_repository: str | None
    to_pvc: str | None
    name_prefix: str
    to_namespace: str | None
    storage_class: str | None
    map_class: tuple[str, ...]
    read_back: bool
    name: str | None
    wait: bool
    timeout_s: float
    output: str
    kubeconfig: str | None
    context: str | None


def typed(ctx: typer.Context) -> frozenset[str]:
    """Return the parameters that were given on the command line (not by default or environment)."""
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    return frozenset(name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE")


def refuse(ctx: typer.Context, names: tuple[str, ...], why: str) -> None:
    """Raise BadParameter when one of the parameters was typed; `why` says what it would need."""
    for option in ctx.command.params:
        if option.name in names and option.name in typed(ctx):
            raise typer.BadParameter(why, param_hint=option.opts[0])


def check(wanted: Wanted) -> None:
    """Raise BadParameter unless the options say one thing to restore, and fit it."""
    given = [name for name in SOURCES if getattr(wanted, name) is not None]
    if not given:
        raise typer.BadParameter(
            "say what to restore: in a cluster one of --point NAME, --pvc NAME, --backup NAME, --repository-point ID; "
            "without one --repository URL --key-file FILE, with --list or with --point ID --to FILE"
        )
    if len(given) > 1:
        both = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise typer.BadParameter(f"{both} exclude each other: restore one thing at a time")
    for name in NAMES:
        check_name(getattr(wanted, name), f"--{name.replace('_', '-')}")
    if wanted.as_of is not None and wanted.pvc is None:
        raise typer.BadParameter("it says which point of a claim: give --pvc NAME too", param_hint="--as-of")
    if wanted.repository_point is not None and wanted.from_repository is None:
        raise typer.BadParameter("give --from-repository REPO too", param_hint="--repository-point")
    if wanted.from_repository is not None and wanted.repository_point is None and wanted.pvc is None:
        raise typer.BadParameter("it goes with --repository-point ID or --pvc NAME", param_hint="--from-repository")
    if wanted.to_pvc is not None and wanted.backup is not None:
        raise typer.BadParameter("a Backup may hold many claims: use --name-prefix", param_hint="--to-pvc")
    if wanted.to_pvc is not None and wanted.name_prefix:
        raise typer.BadParameter("--to-pvc says the whole name already", param_hint="--name-prefix")


def class_mapping(pairs: tuple[str, ...]) -> dict[str, str]:
    """Return `OLD=NEW` pairs as a mapping; raises BadParameter."""
    mapping: dict[str, str] = {}
    for pair in pairs:
        old, found, new = pair.partition("=")
        if not (old and found and new):
            raise typer.BadParameter(f"{pair!r} is not OLD=NEW", param_hint="--map-class")
        if mapping.setdefault(old, new) != new:
            raise typer.BadParameter(f"{old} is mapped twice", param_hint="--map-class")
    return mapping


def _source(wanted: Wanted) -> RestoreSource:
    """Return the source; tells on stderr how a time was understood."""
    from orchestrator.api.tidemark.restore import AsOf, RepositoryPoint, RestoreSource
    from orchestrator.clock import SystemClock

    if wanted.repository_point is not None:
        repository = wanted.from_repository or ""
        return RestoreSource(repository_point=RepositoryPoint(repository=repository, point=wanted.repository_point))
    if wanted.pvc is None:
        return RestoreSource(point=wanted.point, backup=wanted.backup)
    instant = None
    if wanted.as_of is not None:
        instant, assumed = read_instant(wanted.as_of, SystemClock().now(), "--as-of")
        note = " (no time zone was given: read as UTC)" if assumed else ""
        print(f"as of {instant:%Y-%m-%dT%H:%M:%SZ}{note}", file=sys.stderr)
    return RestoreSource(pvc=AsOf(pvc=wanted.pvc, time=instant, repository=wanted.from_repository))


def build(wanted: Wanted) -> Restore:
    """Return the Restore to create. Raises BadParameter."""
    from orchestrator.api.meta import ObjectMeta
    from orchestrator.api.tidemark.restore import Restore, RestoreSpec, RestoreTarget

    check(wanted)
    stem = (wanted.point or wanted.pvc or wanted.backup or "point")[:200].rstrip("-.")
    metadata = ObjectMeta(
        name=wanted.name or "", generate_name="" if wanted.name else f"{stem}-", namespace=wanted.namespace
    )
    target = RestoreTarget(
        pvc_name=wanted.to_pvc,
        name_prefix=wanted.name_prefix,
        namespace=wanted.to_namespace,
        storage_class_name=wanted.storage_class,
        class_mapping=class_mapping(wanted.map_class),
    )
    spec = RestoreSpec(source=_source(wanted), target=target, read_back=wanted.read_back)
    return Restore(metadata=metadata, spec=spec)


async def run(wanted: Wanted, restore: Restore) -> None:
    """Create the Restore, wait if asked, and say what came of it. Raises BadParameter and TidemarkErrors."""
    from orchestrator.api.tidemark.restore import Restore

    async with cluster(wanted.kubeconfig, wanted.context) as client:
        await _look_first(client, restore)
        made = await client.create(restore)
        if wanted.wait:
            made = await wait_for(
                client, Restore, made.name, made.namespace, timeout_s=wanted.timeout_s, ended=_ended, tell=_tell
            )
    where = f"{made.namespace}/{made.name}"
    if wanted.output == "json":
        write_json(Path("-"), made.to_manifest())
    elif not wanted.wait:
        print(f"Restore {where} created; follow it with: kubectl get restores -n {made.namespace} -w")
    elif made.status.children:
        print(f"Restore {where} completed: {len(made.status.children)} volumes")
    else:
        print(f"Restore {where} completed: claim {_claim(made)} holds {_point(made)}")


async def _look_first(client: Client, restore: Restore) -> None:
    """Raise when the point, the Backup or the claim to make is plainly wrong; a person who may not look goes on."""
    from orchestrator.api.foreign.core import PersistentVolumeClaim
    from orchestrator.api.tidemark import Backup, RecoveryPoint
    from orchestrator.kube.errors import Forbidden

    source, target, namespace = restore.spec.source, restore.spec.target, restore.namespace
    becomes = source.pvc.pvc if source.pvc is not None else ""
    with contextlib.suppress(Forbidden):
        if source.backup is not None:
            await known(client, Backup, source.backup, namespace)
        if source.point is not None:
            becomes = (await known(client, RecoveryPoint, source.point, namespace)).spec.pvc_name
    name = target.pvc_name or (target.name_prefix + becomes if becomes else "")
    with contextlib.suppress(Forbidden):
        space = target.namespace or namespace
        if name and await client.find(PersistentVolumeClaim, name, space) is not None:
            raise TargetTaken(f"Claim {space}/{name} exists already")


def _ended(restore: Restore) -> str | None:
    from orchestrator.api.tidemark.restore import RestorePhase

    status = restore.status
    if status.phase is RestorePhase.COMPLETED:
        return ""
    if status.phase in (RestorePhase.FAILED, RestorePhase.CANCELLED):
        said = ": ".join(part for part in (status.reason, status.message) if part) or "no reason was given"
        return f"Restore {restore.namespace}/{restore.name} {status.phase.value}: {said}"
    return None


def _tell(restore: Restore) -> str:
    """Return a line of progress: phase, percentage, and what keeps it back."""
    status = restore.status
    held = [f"{c.reason}: {c.message}" for c in status.conditions if c.status == "False"]
    parts = [status.phase.value, status.progress, *held[:1]]
    return f"{restore.name}: {' '.join(part for part in parts if part)}"


def _claim(restore: Restore) -> str:
    status, target = restore.status, restore.spec.target
    return f"{status.target_namespace or target.namespace or restore.namespace}/{status.target_pvc or target.pvc_name}"


def _point(restore: Restore) -> str:
    taken = restore.status.point_time
    name = restore.status.point or "the point"
    return f"{name}, taken {taken:%Y-%m-%dT%H:%M:%SZ}" if taken is not None else name
