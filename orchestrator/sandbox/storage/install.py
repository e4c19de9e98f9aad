"""What the storage needs in a cluster: the snapshot and CBT kinds, the driver, its classes.

Everything is ensured on each start; what is there is kept. The SnapshotMetadataService object itself is published
by the metadata server, which alone knows its address and certificate.
"""

from __future__ import annotations

from importlib.resources import files

import yaml

from orchestrator.sandbox.api import AlreadyExists, Api, wait_until_served
from orchestrator.sandbox.faults import CONFIG_NAME, NAMESPACE
from orchestrator.sandbox.kinds import (
    CONFIG_MAP,
    CRD,
    CSI_DRIVER,
    DRIVER,
    METADATA_SERVICE,
    SNAPSHOT,
    SNAPSHOT_CLASS,
    SNAPSHOT_CONTENT,
    STORAGE_CLASS,
)
from orchestrator.sandbox.objects import Manifest

CLASS = "sandbox"
CLASS_WAITING = "sandbox-wffc"


async def install(api: Api) -> None:
    """Create kinds, driver and classes that are not there yet. Raises ApiError."""
    for crd in yaml.safe_load_all(files("orchestrator.sandbox.storage").joinpath("crds.yaml").read_text()):
        try:
            await api.create(CRD, crd)
        except AlreadyExists:
            continue
    for kind in (SNAPSHOT, SNAPSHOT_CONTENT, SNAPSHOT_CLASS, METADATA_SERVICE):
        await wait_until_served(api, kind)
    driver = {"attachRequired": True, "podInfoOnMount": False, "volumeLifecycleModes": ["Persistent"]}
    for resource, body in (
        (CSI_DRIVER, {"metadata": {"name": DRIVER}, "spec": driver}),
        (STORAGE_CLASS, _storage_class(CLASS, "Immediate", default=True)),
        (STORAGE_CLASS, _storage_class(CLASS_WAITING, "WaitForFirstConsumer", default=False)),
        (SNAPSHOT_CLASS, _snapshot_class()),
        (CONFIG_MAP, {"metadata": {"name": CONFIG_NAME, "namespace": NAMESPACE}, "data": {}}),
    ):
        try:
            await api.create(resource, body)
        except AlreadyExists:
            continue


def _storage_class(name: str, binding: str, *, default: bool) -> Manifest:
    marks = {"storageclass.kubernetes.io/is-default-class": "true"} if default else {}
    return {
        "metadata": {"name": name, "annotations": marks},
        "provisioner": DRIVER,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": binding,
        "allowVolumeExpansion": True,
    }


def _snapshot_class() -> Manifest:
    return {
        "metadata": {
            "name": CLASS,
            "annotations": {"snapshot.storage.kubernetes.io/is-default-class": "true"},
        },
        "driver": DRIVER,
        "deletionPolicy": "Delete",
    }
