"""The cluster itself: does it answer, is it new enough, what time does it think it is, does it serve the kinds."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import timedelta

from orchestrator.api.foreign.cluster import CustomResourceDefinition
from orchestrator.api.foreign.core import Namespace
from orchestrator.api.foreign.snapshot import SNAPSHOT_GROUP
from orchestrator.api.tidemark import KINDS
from orchestrator.doctor.finding import Finding, Place, bad, ok, warn

OLDEST = (1, 29)
SKEW = timedelta(seconds=10)
"""Above it, what is told in ages is wrong to the eye; a lease lasts 15 s."""
_POD_SECURITY = "pod-security.kubernetes.io/enforce"


async def api_server(place: Place) -> AsyncIterator[Finding]:
    """Is there a cluster, new enough, with our namespace in it?"""
    home = await place.client.get(Namespace, "kube-system")
    yield ok("api-server", f"{place.client.host} answers ({place.version or 'version unknown'}); cluster id {home.uid}")
    numbers = re.match(r"v?(\d+)\.(\d+)", place.version)
    if numbers is not None and (int(numbers[1]), int(numbers[2])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        yield warn(
            "api-server", f"{place.version} is older than {oldest}", f"Upgrade the cluster to {oldest} or newer."
        )
    namespace = await place.client.find(Namespace, place.settings.namespace)
    if namespace is None:
        yield bad(
            "namespace",
            f"there is no namespace {place.settings.namespace}",
            "Install the chart, or say with --namespace where the controller runs.",
        )
        return
    if namespace.deleting:
        yield bad("namespace", f"{namespace.name} is being deleted", "Install again when it is gone; no data is lost.")
    level = namespace.metadata.labels.get(_POD_SECURITY, "")
    if level == "restricted" and place.settings.mover_run_as_user == 0:
        yield bad(
            "namespace",
            f"{namespace.name} enforces the restricted pod security level, so no mover can start",
            f"kubectl label namespace {namespace.name} {_POD_SECURITY}=baseline --overwrite (or mover.runAsUser).",
        )


async def clocks(place: Place) -> AsyncIterator[Finding]:
    """Does this machine agree with the API server about the time?"""
    if place.server is None:
        yield warn("clocks", "could not look: the API server said no time", "Compare `date -u` here and there.")
        return
    ahead = place.here - place.server
    if abs(ahead) > SKEW + timedelta(seconds=1):  # the header is cut to whole seconds
        seconds, way = abs(ahead).total_seconds(), "ahead of" if ahead > timedelta(0) else "behind"
        yield warn(
            "clocks",
            f"this machine's clock is {seconds:.0f} s {way} the API server's",
            "Set one of them by NTP; until then give times with care (--as-of).",
        )
    else:
        yield ok("clocks", "this machine and the API server agree about the time")


async def definitions(place: Place) -> AsyncIterator[Finding]:
    """Are our kinds served, and the snapshot kinds?"""
    good = True
    missing = []
    for kind in KINDS:
        name = f"{kind.RESOURCE.plural}.{kind.RESOURCE.group}"
        found = await place.client.find(CustomResourceDefinition, name)
        if found is None:
            missing.append(name)
        elif not found.established:
            good = False
            yield bad("definitions", f"CRD {name} is not served yet", f"Look at: kubectl describe crd {name}")
    if missing:
        good = False
        yield bad(
            "definitions",
            f"missing: CRD {', '.join(missing)}",
            "kubectl apply --server-side -f charts/tidemark/crds/ (no data is lost; points can be found again in the "
            "repository).",
        )
    groups = await place.client.api_groups()
    if SNAPSHOT_GROUP not in groups:
        good = False
        yield bad(
            "definitions",
            f"{SNAPSHOT_GROUP} is not installed: nothing can be snapshotted",
            "Install the CSI external-snapshotter: its CRDs and its snapshot-controller.",
        )
    elif "cbt.storage.k8s.io" not in groups:
        yield warn(
            "definitions",
            "no SnapshotMetadataService kind: no driver can tell what changed, backups read whole volumes",
            "Install external-snapshot-metadata, if a driver here supports it.",
        )
    if good:
        yield ok("definitions", "our kinds and the snapshot kinds are served")
