"""Where a driver's CBT service is: the SnapshotMetadataService named as the driver, in the best version served.

Without one the driver can't tell what changed; that is an answer, not an error. What must never happen here: a version
taken for granted, because alpha was removed without conversion.
"""

from __future__ import annotations

from orchestrator.api.foreign.snapshot import SnapshotMetadataService
from orchestrator.api.meta import Resource
from orchestrator.cbt.service import Service
from orchestrator.errors import Terminal
from orchestrator.kube.client import Client
from orchestrator.kube.errors import NotFound


class NoMetadataService(Terminal):
    """The driver has no CBT service in this cluster."""

    reason = "NoMetadataService"
    remedy = "Nothing is wrong; without the driver's snapshot metadata service whole volumes are read."

    def __init__(self, driver: str, what: str) -> None:
        super().__init__(f"{driver} has no snapshot metadata service: {what}")


def _kind(version: str) -> type[SnapshotMetadataService]:
    beta = SnapshotMetadataService.RESOURCE
    resource = Resource(beta.group, version, beta.kind, beta.plural, beta.namespaced)
    return type(f"SnapshotMetadataService{version}", (SnapshotMetadataService,), {"RESOURCE": resource})


_KINDS = {version: _kind(version) for version in SnapshotMetadataService.VERSIONS}


async def find_service(client: Client, driver: str) -> Service:
    """Return what the driver's SnapshotMetadataService says now; raises NoMetadataService.

    Best of v1, v1beta1, v1alpha1 that the server serves (contract 3.1).
    """
    candidates = [_KINDS[version].RESOURCE for version in SnapshotMetadataService.VERSIONS]
    served = await client.preferred(SnapshotMetadataService.RESOURCE.group, candidates)
    if served is None:
        raise NoMetadataService(driver, "the SnapshotMetadataService CRD is not installed")
    try:
        found = await client.get(_KINDS[served.version], driver)
    except NotFound as error:
        raise NoMetadataService(driver, "there is no SnapshotMetadataService of its name") from error
    return Service(
        driver=driver,
        address=found.spec.address,
        ca_pem=found.spec.ca_cert,
        audience=found.spec.audience,
        revision=f"{found.uid}/{found.metadata.resource_version}",
    )
