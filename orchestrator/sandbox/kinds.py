"""Where the kinds live that the sandbox's parts read and write.

The parts handle these objects as plain JSON data: they play the programs of others, which see every field, and a
slice of our own in `api/foreign` would hide from them what a real controller sees.
"""

from __future__ import annotations

from orchestrator.api.meta import Resource

CONFIG_MAP = Resource("", "v1", "ConfigMap", "configmaps", True)
EVENT = Resource("", "v1", "Event", "events", True)
NAMESPACE = Resource("", "v1", "Namespace", "namespaces", False)
NODE = Resource("", "v1", "Node", "nodes", False)
PERSISTENT_VOLUME = Resource("", "v1", "PersistentVolume", "persistentvolumes", False)
PERSISTENT_VOLUME_CLAIM = Resource("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", True)
POD = Resource("", "v1", "Pod", "pods", True)
SECRET = Resource("", "v1", "Secret", "secrets", True)
SERVICE_ACCOUNT = Resource("", "v1", "ServiceAccount", "serviceaccounts", True)
JOB = Resource("batch", "v1", "Job", "jobs", True)
CRD = Resource("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions", False)
CLUSTER_ROLE = Resource("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles", False)
CSI_DRIVER = Resource("storage.k8s.io", "v1", "CSIDriver", "csidrivers", False)
CSI_NODE = Resource("storage.k8s.io", "v1", "CSINode", "csinodes", False)
STORAGE_CLASS = Resource("storage.k8s.io", "v1", "StorageClass", "storageclasses", False)
VOLUME_ATTACHMENT = Resource("storage.k8s.io", "v1", "VolumeAttachment", "volumeattachments", False)
SNAPSHOT = Resource("snapshot.storage.k8s.io", "v1", "VolumeSnapshot", "volumesnapshots", True)
SNAPSHOT_CLASS = Resource("snapshot.storage.k8s.io", "v1", "VolumeSnapshotClass", "volumesnapshotclasses", False)
SNAPSHOT_CONTENT = Resource("snapshot.storage.k8s.io", "v1", "VolumeSnapshotContent", "volumesnapshotcontents", False)
METADATA_SERVICE = Resource(
    "cbt.storage.k8s.io", "v1beta1", "SnapshotMetadataService", "snapshotmetadataservices", False
)
TOKEN_REVIEW = Resource("authentication.k8s.io", "v1", "TokenReview", "tokenreviews", False)
ACCESS_REVIEW = Resource("authorization.k8s.io", "v1", "SubjectAccessReview", "subjectaccessreviews", False)

DRIVER = "sandbox.csi.tidemark.dev"
"""Name of the CSI driver that the sandbox's storage plays; also of its SnapshotMetadataService."""
