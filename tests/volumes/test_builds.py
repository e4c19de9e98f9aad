"""What is sent to the API server: the shapes that keep tenants, secrets and snapshots safe."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from orchestrator.api.foreign.core import ObjectReference
from orchestrator.api.foreign.snapshot import (
    ContentSource,
    VolumeSnapshot,
    VolumeSnapshotContent,
    VolumeSnapshotContentSpec,
)
from orchestrator.api.meta import ObjectMeta
from orchestrator.api.mover import CONFIG_KEY, DEVICE_PATH, MoverConfig
from orchestrator.api.tidemark.backup_repository import BackupRepository, BackupRepositorySpec
from orchestrator.api.tidemark.fields import LABEL_MANAGED_BY, LABEL_POINT_UID, MANAGED_BY
from orchestrator.config import Settings
from orchestrator.volumes import clone, job, rehome, snapshot
from orchestrator.volumes.ownership import owner_of

pytestmark = pytest.mark.quick

OWNER = {LABEL_POINT_UID: "uid-rp", LABEL_MANAGED_BY: MANAGED_BY}
SETTINGS = Settings(mover_command=("tidemark",))
CONFIG = MoverConfig(task="backup", point="uid-rp", url="file:///r", keys="secret-key-text")
NOW = datetime(2026, 3, 1, tzinfo=UTC)


def mover(**changes: object) -> job.MoverJob:
    base = job.MoverJob(name="tm-1", task="backup", config=CONFIG, device_pvc="tm-1", labels=OWNER, read_only=True)
    return job.MoverJob(**{**{f: getattr(base, f) for f in base.__dataclass_fields__}, **changes})  # type: ignore[arg-type]


def test_a_mover_holds_no_token_no_capability_and_no_secret_in_its_command() -> None:
    made = job.build(mover(), SETTINGS)
    pod = made["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert pod["automountServiceAccountToken"] is False
    assert pod["restartPolicy"] == "Never"
    assert made["spec"]["podReplacementPolicy"] == "Failed"
    assert made["spec"]["backoffLimit"] == 0
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert "secret-key-text" not in str(made)
    assert container["command"][:3] == ["tidemark", "mover", "backup"]


def test_a_mover_reads_its_device_read_only_and_runs_where_the_volume_can_be_reached() -> None:
    terms = {"nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]}
    pod = job.build(mover(node_affinity={"required": terms}), SETTINGS)["spec"]["template"]["spec"]
    source = next(v for v in pod["volumes"] if v["name"] == "volume")
    assert source["persistentVolumeClaim"] == {"claimName": "tm-1", "readOnly": True}
    assert pod["containers"][0]["volumeDevices"] == [{"name": "volume", "devicePath": DEVICE_PATH}]
    assert pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] == terms


def test_a_job_without_a_volume_gets_no_device() -> None:
    pod = job.build(mover(device_pvc=None, task="maintain"), SETTINGS)["spec"]["template"]["spec"]
    assert "--device" not in pod["containers"][0]["command"]
    assert "volumeDevices" not in pod["containers"][0]


def test_a_secret_holds_exactly_the_movers_configuration() -> None:
    made = job.build_secret(mover(), SETTINGS)
    kept = msgspec.convert(made["data"], dict[str, bytes])
    assert msgspec.json.decode(kept[CONFIG_KEY], type=MoverConfig) == CONFIG
    assert owner_of(made["metadata"]["labels"]) == (LABEL_POINT_UID, "uid-rp")


def test_an_import_never_owns_the_physical_snapshot_and_may_change_its_mode() -> None:
    wanted = rehome.Import(
        name="tm-1", driver="d", snapshot_handle="s", class_name="c", source_volume_mode="Filesystem",
        node_label="node-7", labels=OWNER,
    )  # fmt: skip
    content = rehome.build_content(wanted, SETTINGS)
    bound = rehome.build_snapshot(wanted, SETTINGS)
    assert content["spec"]["deletionPolicy"] == "Retain"
    assert content["spec"]["sourceVolumeMode"] == "Filesystem"
    assert content["metadata"]["annotations"]["snapshot.storage.kubernetes.io/allow-volume-mode-change"] == "true"
    assert content["metadata"]["labels"]["snapshot.storage.kubernetes.io/managed-by"] == "node-7"
    assert content["spec"]["volumeSnapshotClassName"] == bound["spec"]["volumeSnapshotClassName"] == "c"
    assert bound["metadata"]["namespace"] == content["spec"]["volumeSnapshotRef"]["namespace"] == SETTINGS.namespace


def test_a_clone_is_raw_and_a_prime_volume_has_no_source() -> None:
    made = clone.build(clone.Claim("tm-1", "fast", 10, snapshot="tm-1", labels=OWNER), SETTINGS)
    prime = clone.build(clone.Claim("tm-1", "fast", 10, labels=OWNER), SETTINGS)
    assert made["spec"]["volumeMode"] == "Block"
    assert made["spec"]["dataSource"] == {
        "apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "tm-1",
    }  # fmt: skip
    assert "dataSource" not in prime["spec"]


def test_a_snapshot_always_names_its_class() -> None:
    made = snapshot.build(snapshot.Wanted("shop", "s", "db", "fast", OWNER))
    assert made["spec"] == {
        "volumeSnapshotClassName": "fast",
        "source": {"persistentVolumeClaimName": "db"},
    }


def test_the_original_and_its_import_have_different_names_even_in_one_namespace() -> None:
    assert snapshot.original_name("1") != "tm-1"


# Who is believed


VS = VolumeSnapshot(metadata=ObjectMeta(name="s", namespace="shop", uid="uid-vs"))


def content(uid: str = "uid-vs", driver: str = "d", handle: str = "vol-1") -> VolumeSnapshotContent:
    return VolumeSnapshotContent(
        metadata=ObjectMeta(name="c"),
        spec=VolumeSnapshotContentSpec(
            driver=driver,
            source=ContentSource(volume_handle=handle),
            volume_snapshot_ref=ObjectReference(namespace="shop", name="s", uid=uid),
        ),
    )


def test_a_content_counts_only_if_it_points_back_and_is_of_that_very_volume() -> None:
    snapshot.check_binding(VS, content(), "d", "vol-1")
    for wrong in (content(uid="other"), content(driver="x"), content(handle="vol-2")):
        with pytest.raises(snapshot.SnapshotMisbound):
            snapshot.check_binding(VS, wrong, "d", "vol-1")


def test_a_snapshots_time_is_the_drivers_unless_it_is_out_of_bounds() -> None:
    def cut(at: datetime) -> snapshot.CutTime:
        found = snapshot.cut_time(int(at.timestamp() * 1e9), NOW, NOW + timedelta(seconds=5))
        assert found is not None
        return found

    assert snapshot.cut_time(None, NOW, NOW) is None
    assert cut(NOW + timedelta(seconds=2)).time == NOW + timedelta(seconds=2)
    assert not cut(NOW - timedelta(seconds=59)).skewed
    for far in (NOW - timedelta(seconds=61), NOW + timedelta(seconds=66), NOW - timedelta(days=20000)):
        assert cut(far) == snapshot.CutTime(NOW, int(NOW.timestamp()) * 10**9, skewed=True)
    broken = snapshot.cut_time(2**62, NOW, NOW)
    assert broken is not None
    assert broken.skewed


def test_bulk_work_on_a_repository_goes_with_it() -> None:
    spec = BackupRepositorySpec(url="file:///r", encryption_secret="key", allowed_namespaces=())
    owner = BackupRepository(metadata=ObjectMeta(name="vault", uid="uid-repo"), spec=spec)
    wanted = mover(task="maintain", owner=owner)
    reference = {
        "apiVersion": "tidemark.dev/v1alpha1", "kind": "BackupRepository", "name": "vault", "uid": "uid-repo",
    }  # fmt: skip
    for made in (job.build(wanted, SETTINGS), job.build_secret(wanted, SETTINGS)):
        assert made["metadata"]["ownerReferences"] == [reference]
    assert "ownerReferences" not in job.build(mover(), SETTINGS)["metadata"]
