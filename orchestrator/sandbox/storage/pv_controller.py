"""Play kube-controller-manager's PV controller: bind claims and volumes, both ways, and set their phases.

The rules are those of `pkg/controller/volume/persistentvolume`: a volume with a claimRef without uid is kept for
the claim of that name and binds to it at once, whatever the class's binding mode; a bound claim whose volume is
gone, or belongs to another, is Lost. It never touches data: making and destroying volumes is the provisioner's.
"""

from __future__ import annotations

from orchestrator.api.quantity import parse_quantity
from orchestrator.sandbox.api import NotFound
from orchestrator.sandbox.events import Recorder
from orchestrator.sandbox.kinds import PERSISTENT_VOLUME, PERSISTENT_VOLUME_CLAIM, STORAGE_CLASS
from orchestrator.sandbox.objects import (
    Key,
    Manifest,
    annotations_of,
    deleting,
    key,
    labels,
    meta,
    name,
    namespace,
    spec,
    status,
    timestamp,
    uid,
)
from orchestrator.sandbox.roles import Part, Role

BIND_COMPLETED = "pv.kubernetes.io/bind-completed"
BOUND_BY_CONTROLLER = "pv.kubernetes.io/bound-by-controller"
PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
PROVISIONER = "volume.kubernetes.io/storage-provisioner"
PROVISIONER_BETA = "volume.beta.kubernetes.io/storage-provisioner"
SELECTED_NODE = "volume.kubernetes.io/selected-node"
DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"


class PvController(Role):
    """Keys with a namespace are claims, keys without are volumes."""

    name = "pv-controller"

    def __init__(self, part: Part) -> None:
        super().__init__()
        self._api = part.api
        self._claims = part.mirror(PERSISTENT_VOLUME_CLAIM)
        self._volumes = part.mirror(PERSISTENT_VOLUME)
        self._classes = part.mirror(STORAGE_CLASS)
        self._events = Recorder(part.api, "persistentvolume-controller")
        self._claims.listen(self._claim_changed)
        self._volumes.listen(self._volume_changed)
        self._classes.listen(lambda _obj, _gone: self._all_unbound())

    def _claim_changed(self, claim: Manifest, gone: bool) -> None:
        self.want(key(claim))
        if spec(claim).get("volumeName"):
            self.want(("", spec(claim)["volumeName"]))
        if gone:
            for volume in self._volumes:
                if (spec(volume).get("claimRef") or {}).get("uid") == uid(claim):
                    self.want(key(volume))

    def _volume_changed(self, volume: Manifest, gone: bool) -> None:
        self.want(key(volume))
        ref = spec(volume).get("claimRef")
        if ref:
            self.want((ref.get("namespace", ""), ref["name"]))
        else:
            self._all_unbound()
        if gone:
            for claim in self._claims:
                if spec(claim).get("volumeName") == name(volume):
                    self.want(key(claim))

    def _all_unbound(self) -> None:
        for claim in self._claims:
            if BIND_COMPLETED not in annotations_of(claim):
                self.want(key(claim))

    async def reconcile(self, at: Key) -> float | None:
        """Sync one claim or one volume."""
        if at[0]:
            claim = self._claims.at(at)
            if claim is not None:
                await (
                    self._bound_claim(claim) if BIND_COMPLETED in annotations_of(claim) else self._unbound_claim(claim)
                )
        else:
            volume = self._volumes.at(at)
            if volume is not None:
                await self._volume(volume)
        return None

    # Claims

    async def _unbound_claim(self, claim: Manifest) -> None:
        if deleting(claim):
            return
        wanted = spec(claim).get("volumeName")
        if wanted:
            volume = self._volumes.get("", wanted)
            if volume is not None and (not spec(volume).get("claimRef") or _is_for(volume, claim)):
                problem = _mismatch(volume, claim)
                if problem is None:
                    await self._bind(volume, claim)
                    return
                await self._say(
                    claim, "Warning", "VolumeMismatch", f'Cannot bind to requested volume "{wanted}": {problem}'
                )
            await self._claim_status(claim, {"phase": "Pending"})
            return
        volume = self._best_match(claim)
        if volume is not None:
            await self._bind(volume, claim)
            return
        await self._claim_status(claim, {"phase": "Pending"})
        await self._ask_for_provisioning(await self._with_class(claim))

    async def _with_class(self, claim: Manifest) -> Manifest:
        """Give a claim without a class (an empty name is a choice) the default; of several, the newest."""
        if "storageClassName" in spec(claim):
            return claim
        defaults = [found for found in self._classes if annotations_of(found).get(DEFAULT_CLASS) == "true"]
        if not defaults:
            return claim
        newest = max(found["metadata"]["creationTimestamp"] for found in defaults)
        name = min(key(found)[1] for found in defaults if found["metadata"]["creationTimestamp"] == newest)
        return self._claims.saw(
            await self._api.patch(PERSISTENT_VOLUME_CLAIM, claim, {"spec": {"storageClassName": name}})
        )

    async def _ask_for_provisioning(self, claim: Manifest) -> None:
        class_name = spec(claim).get("storageClassName")
        found = self._classes.get("", class_name) if class_name else None
        if not class_name:
            await self._say(
                claim,
                "Normal",
                "FailedBinding",
                "no persistent volumes available for this claim and no storage class is set",
            )
        elif found is None:
            await self._say(
                claim, "Warning", "ProvisioningFailed", f'storageclass.storage.k8s.io "{class_name}" not found'
            )
        elif self._delayed(claim):
            await self._say(
                claim, "Normal", "WaitForFirstConsumer", "waiting for first consumer to be created before binding"
            )
        elif annotations_of(claim).get(PROVISIONER) != found.get("provisioner"):
            marks = {PROVISIONER: found["provisioner"], PROVISIONER_BETA: found["provisioner"]}
            claim = self._claims.saw(
                await self._api.patch(PERSISTENT_VOLUME_CLAIM, claim, {"metadata": {"annotations": marks}})
            )
            await self._say(
                claim,
                "Normal",
                "ExternalProvisioning",
                f"Waiting for a volume to be created either by the external provisioner '{found['provisioner']}' or "
                "manually by the system administrator. If volume creation is delayed, please verify that the "
                "provisioner is running and correctly registered.",
            )

    def _delayed(self, claim: Manifest) -> bool:
        found = self._classes.get("", spec(claim).get("storageClassName") or "") or {}
        return found.get("volumeBindingMode") == "WaitForFirstConsumer" and SELECTED_NODE not in annotations_of(claim)

    def _best_match(self, claim: Manifest) -> Manifest | None:
        fitting = []
        for volume in self._volumes:
            if deleting(volume) or _mismatch(volume, claim) is not None:
                continue
            if spec(volume).get("claimRef"):
                if _is_for(volume, claim):
                    return volume
            elif not self._delayed(claim) and _selected(volume, claim):
                fitting.append(volume)
        return min(fitting, key=lambda v: (_capacity(v), name(v)), default=None)

    async def _bind(self, volume: Manifest, claim: Manifest) -> None:
        """Write the four halves of a binding in the order that a crash between them can be carried on from."""
        ref = spec(volume).get("claimRef") or {}
        if ref.get("uid") != uid(claim):
            change: Manifest = {
                "spec": {
                    "claimRef": {
                        "apiVersion": "v1",
                        "kind": "PersistentVolumeClaim",
                        "namespace": namespace(claim),
                        "name": name(claim),
                        "uid": uid(claim),
                        "resourceVersion": meta(claim).get("resourceVersion"),
                    }
                }
            }
            if not ref:
                change["metadata"] = {"annotations": {BOUND_BY_CONTROLLER: "yes"}}
            volume = self._volumes.saw(await self._api.patch(PERSISTENT_VOLUME, volume, change))
        await self._volume_phase(volume, "Bound")
        marks = {BIND_COMPLETED: "yes"}
        if spec(claim).get("volumeName") != name(volume):
            marks[BOUND_BY_CONTROLLER] = "yes"
        claim = self._claims.saw(
            await self._api.patch(
                PERSISTENT_VOLUME_CLAIM,
                claim,
                {"metadata": {"annotations": marks}, "spec": {"volumeName": name(volume)}},
            )
        )
        await self._claim_bound(claim, volume)

    async def _claim_bound(self, claim: Manifest, volume: Manifest) -> None:
        held = status(claim)
        change: Manifest = {"phase": "Bound", "accessModes": spec(volume).get("accessModes")}
        if not held.get("capacity"):
            change["capacity"] = {"storage": spec(volume)["capacity"]["storage"]}
        await self._claim_status(claim, change)

    async def _bound_claim(self, claim: Manifest) -> None:
        volume = self._volumes.get("", spec(claim).get("volumeName") or "")
        if volume is None:
            try:
                volume = await self._api.get(PERSISTENT_VOLUME, spec(claim).get("volumeName") or "-")
            except NotFound:
                await self._lost(
                    claim, "Bound claim has lost its PersistentVolume. Data on the volume is lost!", "ClaimLost"
                )
                return
        ref = spec(volume).get("claimRef") or {}
        if not ref or (_is_for(volume, claim) and not ref.get("uid")):
            await self._bind(volume, claim)
        elif ref.get("uid") == uid(claim):
            await self._volume_phase(volume, "Bound")
            await self._claim_bound(claim, volume)
        else:
            await self._lost(
                claim, "Two claims are bound to the same volume, this one is bound incorrectly", "ClaimMisbound"
            )

    async def _lost(self, claim: Manifest, message: str, reason: str) -> None:
        if status(claim).get("phase") != "Lost":
            await self._claim_status(claim, {"phase": "Lost"})
            await self._say(claim, "Warning", reason, message)

    async def _claim_status(self, claim: Manifest, change: Manifest) -> None:
        if any(status(claim).get(field) != value for field, value in change.items()):
            self._claims.saw(await self._api.patch_status(PERSISTENT_VOLUME_CLAIM, claim, change))

    async def _say(self, claim: Manifest, kind: str, reason: str, message: str) -> None:
        await self._events.say(
            PERSISTENT_VOLUME_CLAIM, claim, "Warning" if kind == "Warning" else "Normal", reason, message
        )

    # Volumes

    async def _volume(self, volume: Manifest) -> None:
        ref = spec(volume).get("claimRef")
        if not ref or not ref.get("uid"):
            await self._volume_phase(volume, "Available")
            return
        claim = self._claims.get(ref.get("namespace", ""), ref["name"])
        if claim is None or uid(claim) != ref["uid"]:
            # The mirror of claims may lag behind the one of volumes: releasing a live claim's volume would destroy it.
            try:
                claim = await self._api.get(PERSISTENT_VOLUME_CLAIM, ref["name"], ref.get("namespace", ""))
            except NotFound:
                claim = None
        if claim is None or uid(claim) != ref["uid"]:
            await self._volume_phase(volume, "Released")
        elif spec(claim).get("volumeName") == name(volume):
            await self._volume_phase(volume, "Bound")
        elif spec(claim).get("volumeName"):
            await self._bound_elsewhere(volume)
        else:
            self.want(key(claim))

    async def _bound_elsewhere(self, volume: Manifest) -> None:
        if PROVISIONED_BY in annotations_of(volume) and spec(volume).get("persistentVolumeReclaimPolicy") == "Delete":
            await self._volume_phase(volume, "Released")
        elif annotations_of(volume).get(BOUND_BY_CONTROLLER) == "yes":
            change = {"metadata": {"annotations": {BOUND_BY_CONTROLLER: None}}, "spec": {"claimRef": None}}
            volume = self._volumes.saw(await self._api.patch(PERSISTENT_VOLUME, volume, change))
            await self._volume_phase(volume, "Available")

    async def _volume_phase(self, volume: Manifest, phase: str) -> None:
        if status(volume).get("phase") != phase:
            change = {"phase": phase, "lastPhaseTransitionTime": timestamp()}
            self._volumes.saw(await self._api.patch_status(PERSISTENT_VOLUME, volume, change))


def _is_for(volume: Manifest, claim: Manifest) -> bool:
    ref = spec(volume).get("claimRef") or {}
    return (
        ref.get("name") == name(claim)
        and ref.get("namespace") == namespace(claim)
        and ref.get("uid") in (None, "", uid(claim))
    )


def _capacity(volume: Manifest) -> int:
    return parse_quantity(spec(volume)["capacity"]["storage"])


def _mismatch(volume: Manifest, claim: Manifest) -> str | None:
    """Return why a volume can't serve a claim, or None."""
    have, want = spec(volume), spec(claim)
    if have.get("volumeMode", "Filesystem") != want.get("volumeMode", "Filesystem"):
        return "incompatible volumeMode"
    if (have.get("storageClassName") or "") != (want.get("storageClassName") or ""):
        return "storageClassName does not match"
    if _capacity(volume) < parse_quantity(want["resources"]["requests"]["storage"]):
        return "requested PV is too small"
    if not set(want.get("accessModes") or []) <= set(have.get("accessModes") or []):
        return "incompatible accessMode"
    return None


def _selected(volume: Manifest, claim: Manifest) -> bool:
    selector = spec(claim).get("selector") or {}
    return all(labels(volume).get(label) == value for label, value in (selector.get("matchLabels") or {}).items())
