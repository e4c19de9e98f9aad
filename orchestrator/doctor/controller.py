"""The controller: does one lead, do its pods run, and may its account do what it must.

What the account needs is asked of the API server itself (SubjectAccessReview), so that roles made by hand, renamed or
cut are judged by what they allow and not by how they look.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, ClassVar, NamedTuple

import msgspec

from orchestrator.api.foreign.cluster import LeaseObject, ServiceAccount
from orchestrator.api.foreign.core import Pod
from orchestrator.api.meta import K8sObject, Resource
from orchestrator.api.tidemark.fields import GROUP
from orchestrator.config import Settings
from orchestrator.doctor.cluster import SKEW
from orchestrator.doctor.finding import Finding, Place, bad, ok, warn

LEASE = "tidemark-controller"
LEASE_STALE = timedelta(minutes=1)
POD_LABELS = "app.kubernetes.io/name=tidemark,app.kubernetes.io/component=controller"
SHOWN = 8
"""Missing rights that are told one by one."""
STUCK_REASONS = frozenset(
    {"CrashLoopBackOff", "ImagePullBackOff", "ErrImagePull", "InvalidImageName", "CreateContainerConfigError",
     "CreateContainerError", "RunContainerError"}
)  # fmt: skip


class ReviewStatus(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The server's answer."""

    allowed: bool = False


class SubjectAccessReview(K8sObject, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A question about an account; nothing is stored."""

    RESOURCE: ClassVar[Resource] = Resource(
        "authorization.k8s.io", "v1", "SubjectAccessReview", "subjectaccessreviews", namespaced=False
    )

    status: ReviewStatus = ReviewStatus()


class Need(NamedTuple):
    """A right that the controller's account must have."""

    verb: str
    group: str
    resource: str
    where: str
    """`cluster`: in every namespace; `home`: in the controller's own."""
    why: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}"


SNAPSHOTS = "snapshot.storage.k8s.io"
CBT_NEED = Need("get", SNAPSHOTS, "volumesnapshots", "cluster", "CBT services ask for it before they tell what changed")
NEEDS: tuple[Need, ...] = (
    Need("create", SNAPSHOTS, "volumesnapshots", "cluster", "no backup can begin"),
    Need("delete", SNAPSHOTS, "volumesnapshots", "cluster", "old snapshots pile up"),
    Need("create", SNAPSHOTS, "volumesnapshotcontents", "cluster", "snapshots can't be re-homed for the mover"),
    Need("patch", SNAPSHOTS, "volumesnapshotcontents", "cluster", "snapshots can't be claimed, or destroyed later"),
    CBT_NEED,
    Need("list", "", "persistentvolumeclaims", "cluster", "volumes can't be found"),
    Need("create", "", "persistentvolumeclaims", "cluster", "neither clones nor restored claims can be made"),
    Need("delete", "", "persistentvolumeclaims", "home", "clones stay behind"),
    Need("create", "", "persistentvolumes", "cluster", "restored volumes can't be handed over"),
    Need("patch", "", "persistentvolumes", "cluster", "clones with a Retain class leak; nothing is handed over"),
    Need("delete", "", "persistentvolumes", "cluster", "restored volumes can't be handed over"),
    Need("list", "storage.k8s.io", "volumeattachments", "cluster", "a restored volume's detach can't be awaited"),
    Need("watch", GROUP, "backuppolicies", "cluster", "no policy is seen"),
    Need("create", GROUP, "recoverypoints", "cluster", "no point can be recorded"),
    Need("patch", GROUP, "recoverypoints/status", "cluster", "no point can be recorded"),
    Need("patch", GROUP, "restores/status", "cluster", "no restore can go on"),
    Need("create", "batch", "jobs", "home", "no mover can start"),
    Need("delete", "batch", "jobs", "home", "movers stay behind"),
    Need("get", "", "secrets", "home", "repositories can't be opened"),
    Need("create", "", "secrets", "home", "no mover can be given its keys"),
    Need("delete", "", "secrets", "home", "movers' keys stay behind"),
    Need("get", "", "pods/log", "home", "progress can't be read"),
    Need("patch", "coordination.k8s.io", "leases", "home", "the controller can't lead", LEASE),
    Need("create", "", "serviceaccounts/token", "home", "CBT services can't be asked", LEASE),
)


async def controller(place: Place) -> AsyncIterator[Finding]:
    """Does a controller lead, and do its pods run?"""
    lease = await place.client.find(LeaseObject, LEASE, place.settings.namespace)
    log = f"kubectl logs -n {place.settings.namespace} deploy/tidemark-controller"
    if lease is None:
        yield bad("controller", "no controller has ever held the lease: nothing is backed up", f"Start it; see {log}")
    else:
        holder, when = lease.spec.holder_identity, lease.spec.renew_time
        if not holder or when is None or place.now - when > LEASE_STALE:
            since = f"since {when:%Y-%m-%d %H:%M:%S} UTC" if when is not None else "now"
            yield bad("controller", f"no controller has led {since}: nothing is backed up", f"Look at {log}")
        elif when - place.now > SKEW:
            yield warn(
                "controller",
                f"{holder} renews the lease with a clock {(when - place.now).total_seconds():.0f} s ahead",
                "Set the clock of its node by NTP: schedules and snapshot times are judged by it.",
            )
        else:
            yield ok("controller", f"{holder} leads")
    pods, _ = await place.client.list(Pod, place.settings.namespace, labels=POD_LABELS)
    for pod in pods:
        for container in pod.status.container_statuses:
            waiting = container.state.waiting
            if waiting is not None and waiting.reason in STUCK_REASONS:
                said = f"{waiting.reason}: {waiting.message}".rstrip(": ")
                yield bad("controller", f"pod {pod.name} does not run: {said}", f"Look at {log} --previous")
    if not pods:
        yield warn(
            "controller",
            f"no pod of the chart's Deployment is in {place.settings.namespace}",
            "Fine if the controller runs elsewhere with a kubeconfig; else install the chart.",
        )


async def permissions(place: Place) -> AsyncIterator[Finding]:
    """May the controller's account do what it must? Whether a controller uses it is told by its pods."""
    settings = place.settings
    account = f"{settings.namespace}/{settings.service_account}"
    if await place.client.find(ServiceAccount, settings.service_account, settings.namespace) is None:
        yield bad(
            "permissions", f"there is no service account {account}", "Install the chart; it makes account and roles."
        )
        return
    denied = [need for need in NEEDS if not await allowed(place, need)]
    pods, _ = await place.client.list(Pod, settings.namespace, labels=POD_LABELS)
    remedy = "Apply the chart's rbac-controller.yaml again (helm upgrade)."
    # Without pods the controller runs as somebody else; then only the tokens for CBT services are this account's.
    grave = [need for need in denied if pods or need is CBT_NEED]
    for need in grave[:SHOWN]:
        yield bad("permissions", f"{account} may not {_told(need, settings)}: {need.why}", remedy)
    if len(grave) > SHOWN:
        yield bad("permissions", f"{account} lacks {len(grave) - SHOWN} more rights", remedy)
    idle = [need for need in denied if need not in grave]
    if idle:
        first = ", ".join(_told(need, settings) for need in idle[:3])
        yield warn(
            "permissions",
            f"{account} lacks {len(idle)} of the {len(NEEDS)} rights that a controller needs: {first} ...",
            "Fine while no controller runs as this account (no pod does here); else apply rbac-controller.yaml.",
        )
    if not denied:
        yield ok("permissions", f"{account} may do all of the {len(NEEDS)} things that were asked about")


def _told(need: Need, settings: Settings) -> str:
    return f"{need} {'in every namespace' if need.where == 'cluster' else 'in ' + settings.namespace}"


async def allowed(place: Place, need: Need) -> bool:
    """Ask the API server whether the controller's account has a right. Stores nothing."""
    resource, _, subresource = need.resource.partition("/")
    attributes: dict[str, Any] = {"verb": need.verb, "group": need.group, "resource": resource}
    if subresource:
        attributes["subresource"] = subresource
    if need.where == "home":
        attributes["namespace"] = place.settings.namespace
    if need.name:
        attributes["name"] = need.name if resource == "leases" else place.settings.service_account
    body = {"spec": {**_subject(place.settings), "resourceAttributes": attributes}}
    reply = await place.client.create_raw(SubjectAccessReview.RESOURCE, body, SubjectAccessReview)
    return reply.status.allowed


def _subject(settings: Settings) -> dict[str, Any]:
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{settings.namespace}", "system:authenticated"]
    return {"user": f"system:serviceaccount:{settings.namespace}:{settings.service_account}", "groups": groups}
