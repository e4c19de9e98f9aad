"""Hand a filled volume over to the tenant's claim.

The old PersistentVolume object goes and a new one with the same driver, handle and attributes comes, because a
volume's mode can't be changed and a Block volume can't be bound to a Filesystem claim. Never may the storage behind
it go: `Retain` is set before anything is deleted, and the new spec is saved before the old object goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.api.foreign.core import RawPersistentVolume
from orchestrator.api.tidemark.fields import LABEL_MANAGED_BY, LABEL_RESTORED_BY, MANAGED_BY
from orchestrator.decisions.restore import ANNOTATION_RECLAIM

_KEPT_ANNOTATIONS = (
    "pv.kubernetes.io/provisioned-by",
    "volume.kubernetes.io/provisioner-deletion-secret-name",
    "volume.kubernetes.io/provisioner-deletion-secret-namespace",
)


def build_volume(
    old: RawPersistentVolume,
    *,
    name: str,
    restore_uid: str,
    claim: dict[str, Any],
    fs_type: str,
    mount_options: Sequence[str],
    reclaim_policy: str,
) -> dict[str, Any]:
    """Return the manifest of the volume made again: same driver, handle and attributes, the claim's mode.

    `claim` is the target claim's manifest. The volume is made with `Retain`; `reclaim_policy` is noted on it and put
    back once the claim is bound. The claimRef names the claim without a uid: the claim does not exist yet.
    """
    spec = {key: value for key, value in old.spec.items() if key not in ("claimRef", "mountOptions")}
    csi = {key: value for key, value in dict(spec.get("csi") or {}).items() if key != "fsType"}
    mode = claim["spec"]["volumeMode"]
    if fs_type and mode == "Filesystem":
        csi["fsType"] = fs_type
    where = claim["metadata"]
    spec |= {
        "csi": csi,
        "accessModes": claim["spec"]["accessModes"],
        "volumeMode": mode,
        "persistentVolumeReclaimPolicy": "Retain",
        "claimRef": {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "namespace": where["namespace"],
            "name": where["name"],
        },
    }
    if mount_options:
        spec["mountOptions"] = list(mount_options)
    annotations = {k: v for k, v in old.metadata.annotations.items() if k in _KEPT_ANNOTATIONS}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": name,
            "labels": {LABEL_RESTORED_BY: restore_uid, LABEL_MANAGED_BY: MANAGED_BY},
            "annotations": annotations | {ANNOTATION_RECLAIM: reclaim_policy},
        },
        "spec": spec,
    }


def build_claim(
    *,
    name: str,
    namespace: str,
    restore_uid: str,
    labels: dict[str, str],
    annotations: dict[str, str],
    access_modes: Sequence[str],
    storage_class: str,
    volume_mode: str,
    size_bytes: int,
) -> dict[str, Any]:
    """Return the manifest of the tenant's claim, without its volume's name (known only at the hand-over)."""
    own = {k: v for k, v in labels.items() if not k.startswith("tidemark.dev/")}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": own | {LABEL_RESTORED_BY: restore_uid},
            "annotations": _claim_annotations(annotations),
        },
        "spec": {
            "accessModes": list(access_modes) or ["ReadWriteOnce"],
            "volumeMode": volume_mode,
            "storageClassName": storage_class,
            "resources": {"requests": {"storage": str(size_bytes)}},
        },
    }


def _claim_annotations(annotations: dict[str, str]) -> dict[str, str]:
    """Return a claim's own annotations, without what controllers put there for the old volume."""
    foreign = ("pv.kubernetes.io/", "volume.kubernetes.io/", "volume.beta.kubernetes.io/", "kubectl.kubernetes.io/")
    return {k: v for k, v in annotations.items() if not k.startswith(foreign)}
