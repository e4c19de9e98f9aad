"""What is looked at, in the order in which an operator would look."""

from __future__ import annotations

import asyncio
import enum
import ssl
from collections.abc import AsyncIterator, Callable
from datetime import timedelta

import msgspec

from orchestrator.api.foreign.cluster import CustomResourceDefinition, LeaseObject
from orchestrator.api.foreign.core import (
    Job,
    Namespace,
    PersistentVolumeClaim,
    Secret,
    StorageClass,
)
from orchestrator.api.foreign.snapshot import (
    SNAPSHOT_GROUP,
    SnapshotMetadataService,
    VolumeSnapshotClass,
    VolumeSnapshotContent,
)
from orchestrator.api.meta import K8sObject, condition
from orchestrator.api.tidemark import KINDS, Backup, BackupPolicy, BackupRepository, RecoveryPoint, Restore
from orchestrator.api.tidemark.fields import LABEL_POINT_UID, LABEL_RESTORE_UID
from orchestrator.api.tidemark.recovery_point import FINAL_PHASES
from orchestrator.clock import Clock
from orchestrator.config import Settings
from orchestrator.errors import TidemarkError
from orchestrator.kube.client import Client
from orchestrator.kube.errors import Forbidden, NotFound

CONNECT_S = 5.0
LEASE_STALE = timedelta(minutes=1)
STUCK = timedelta(hours=1)


class Verdict(enum.Enum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one check found."""

    check: str
    verdict: Verdict
    message: str
    remedy: str = ""


Check = Callable[[Client, Settings, Clock], AsyncIterator[Finding]]


def _ok(check: str, message: str) -> Finding:
    return Finding(check=check, verdict=Verdict.OK, message=message)


def _warn(check: str, message: str, remedy: str) -> Finding:
    return Finding(check=check, verdict=Verdict.WARNING, message=message, remedy=remedy)


def _bad(check: str, message: str, remedy: str) -> Finding:
    return Finding(check=check, verdict=Verdict.FAILED, message=message, remedy=remedy)


async def examine(client: Client, settings: Settings, clock: Clock) -> list[Finding]:
    """Run every check. A check that can't look says so and the others go on."""
    found: list[Finding] = []
    for check in CHECKS:
        name = check.__name__.replace("_", "-")
        try:
            found.extend([finding async for finding in check(client, settings, clock)])
        except Forbidden as error:
            found.append(_warn(name, f"not allowed to look: {error}", "Run it as an admin of the cluster."))
        except TidemarkError as error:
            found.append(_bad(name, str(error), error.remedy))
            if check is api_server:
                break
    return found


async def api_server(client: Client, settings: Settings, clock: Clock) -> AsyncIterator[Finding]:
    """Is there a cluster?"""
    home = await client.get(Namespace, "kube-system")
    yield _ok("api-server", f"{client.host} answers; cluster id {home.uid}")
    if await client.find(Namespace, settings.namespace) is None:
        yield _bad(
            "namespace", f"there is no namespace {settings.namespace}", "Install the chart, or give --namespace."
        )


async def definitions(client: Client, settings: Settings, clock: Clock) -> AsyncIterator[Finding]:
    """Are our kinds served, and the snapshot kinds?"""
    for kind in KINDS:
        name = f"{kind.RESOURCE.plural}.{kind.RESOURCE.group}"
        found = await client.find(CustomResourceDefinition, name)
        if found is None:
            yield _bad("definitions", f"CRD {name} is missing", "Apply charts/tidemark/crds/; no data is lost.")
            continue
        if not found.established:
            yield _bad("definitions", f"CRD {name} is not served yet", "See its conditions with kubectl describe crd.")
    groups = await client.api_groups()
    if SNAPSHOT_GROUP not in groups:
        yield _bad(
            "definitions", f"{SNAPSHOT_GROUP} is not installed", "Install the CSI external-snapshotter and its CRDs."
        )
        return
    if "cbt.storage.k8s.io" not in groups:
        yield _warn(
            "definitions",
            "no SnapshotMetadataService kind: no driver can tell what changed",
            "Backups read whole volumes. Install external-snapshot-metadata with a driver that supports it.",
        )
    yield _ok("definitions", "our kinds and the snapshot kinds are served")


async def controller(client: Client, settings: Settings, clock: Clock) -> AsyncIterator[Finding]:
    """Does a controller hold the lease?"""
    leases, _ = await client.list(LeaseObject, settings.namespace)
    mine = [lease for lease in leases if lease.name.startswith("tidemark")]
    if not mine:
        yield _bad("controller", "no controller has ever held the lease", "Start the controller; see its log.")
        return
    holder, when = mine[0].spec.holder_identity, mine[0].spec.renew_time
    if not holder or when is None or clock.now() - when > LEASE_STALE:
        yield _bad(
            "controller", f"the lease was last renewed {when or 'never'}", "Look at the controller's pod and log."
        )
        return
    yield _ok("controller", f"{holder} holds the lease")


async def drivers(client: Client, settings: Settings, clock: Clock) -> AsyncIterator[Finding]:
    """Can every storage class in use be snapshotted, and tell what changed?"""
    classes, _ = await client.list(StorageClass)
    snapshot_classes, _ = await client.list(VolumeSnapshotClass)
    claims, _ = await client.list(PersistentVolumeClaim)
    used = {c.spec.storage_class_name for c in claims}
    provisioners = {c.provisioner for c in classes if c.name in used}
    try:
        services, _ = await client.list(SnapshotMetadataService)
    except NotFound:
        services = []
    for driver in sorted(provisioners):
        mine = [s for s in snapshot_classes if s.driver == driver]
        if not mine:
            yield _warn("drivers", f"{driver} has no VolumeSnapshotClass", "Its volumes can't be backed up; make one.")
            continue
        service = next((s for s in services if s.name == driver), None)
        if service is None:
            yield _warn("drivers", f"{driver} has no SnapshotMetadataService", "Its volumes are read whole.")
            continue
        problem = await _unreachable(service)
        if problem:
            yield _warn(
                "drivers", f"{driver}: {service.spec.address}: {problem}", "Check the sidecar, its address and caCert."
            )
        else:
            yield _ok("drivers", f"{driver} can be snapshotted and tells what changed")


async def _unreachable(service: SnapshotMetadataService) -> str:
    """Return why a CBT service can't be reached from here, "" when it can. Sends no token."""
    host, _, port = service.spec.address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdigit():
        return "the address is not host:port"
    try:
        context = ssl.create_default_context(cadata=service.spec.ca_cert.decode())
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        context.set_alpn_protocols(["h2"])
    except (ssl.SSLError, UnicodeDecodeError) as error:
        return f"caCert is not a PEM bundle: {error}"
    try:
        async with asyncio.timeout(CONNECT_S):
            _, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname=host)
    except (OSError, TimeoutError) as error:
        return str(error) or "no answer"
    writer.close()
    return ""


async def repositories(client: Client, settings: Settings, clock: Clock) -> AsyncIterator[Finding]:
    """Are the repositories ready, and their Secrets there?"""
    found, _ = await client.list(BackupRepository)
    if not found:
        yield _warn("repositories", "there is no BackupRepository", "Without one, policies keep snapshots only.")
    for repository in found:
        for name in (repository.spec.encryption_secret, repository.spec.credentials_secret):
            if name is not None and await client.find(Secret, name, settings.namespace) is None:
                yield _bad(
                    "repositories", f"{repository.name}: Secret {settings.namespace}/{name} is missing", "Create it."
                )
        ready = condition(repository.status.conditions, "Ready")
        if repository.status.ready == "True":
            yield _ok("repositories", f"{repository.name} is ready")
        else:
            why = f"{ready.reason}: {ready.message}" if ready else "not checked yet"
            yield _bad(
                "repositories", f"{repository.name} is not ready: {why}", "Mend what it says; it is tried each minute."
            )


async def policies(client: Client, settings: Settings, clock: Clock) -> AsyncIterator[Finding]:
    """Does every policy do what it says?"""
    found, _ = await client.list(BackupPolicy)
    for policy in found:
        where = f"{policy.namespace}/{policy.name}"
        wrong = [c for c in policy.status.conditions if c.status == "False"]
        for each in wrong:
            yield _bad("policies", f"{where}: {each.reason}: {each.message}", "kubectl describe bp says more.")
        if not wrong and policy.status.volumes == 0:
            yield _warn("policies", f"{where} selects no claim", "Check spec.volumes against kubectl get pvc.")
        elif not wrong:
            yield _ok("policies", f"{where}: {policy.status.compliant} claims within the RPO")


async def leftovers(client: Client, settings: Settings, clock: Clock) -> AsyncIterator[Finding]:
    """Is anything left behind, or stuck?"""
    points, _ = await client.list(RecoveryPoint)
    restores, _ = await client.list(Restore)
    backups, _ = await client.list(Backup)
    alive = {p.uid for p in points} | {r.uid for r in restores}
    now = clock.now()
    kinds: tuple[tuple[type[K8sObject], str], ...] = (
        (Job, settings.namespace),
        (PersistentVolumeClaim, settings.namespace),
        (VolumeSnapshotContent, ""),
    )
    orphans = 0
    for kind, namespace in kinds:
        for label in (LABEL_POINT_UID, LABEL_RESTORE_UID):
            listed, _ = await client.list(kind, namespace, labels=label)
            orphans += sum(1 for obj in listed if obj.metadata.labels.get(label) not in alive)
    if orphans:
        yield _warn(
            "leftovers", f"{orphans} objects belong to no point or restore", "The sweeper removes them in minutes."
        )
    for point in points:
        started = point.status.start_time or point.metadata.creation_timestamp
        if point.status.phase not in FINAL_PHASES and started is not None and now - started > STUCK:
            why = next((c.message for c in point.status.conditions if c.status == "False"), "")
            text = f"{point.namespace}/{point.name} is {point.status.phase.value} since {started:%Y-%m-%d %H:%M}: {why}"
            yield _warn("leftovers", text, "kubectl describe rp says more.")
    if not orphans:
        yield _ok(
            "leftovers", f"nothing left behind; {len(points)} points, {len(backups)} backups, {len(restores)} restores"
        )


CHECKS: tuple[Check, ...] = (
    api_server,
    definitions,
    controller,
    drivers,
    repositories,
    policies,
    leftovers,
)
