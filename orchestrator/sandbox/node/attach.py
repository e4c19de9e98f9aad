"""Play the attach-detach controller and the external attacher: VolumeAttachments come and go with their pods.

A volume that is neither ReadWriteMany nor ReadOnlyMany is attached to one node only; an attachment goes once no pod of
its node that may still run names the volume. So "no VolumeAttachment left" means that nobody can write any more.
"""

from __future__ import annotations

import asyncio
import hashlib

from orchestrator.sandbox.api import AlreadyExists
from orchestrator.sandbox.events import Recorder
from orchestrator.sandbox.faults import Faults
from orchestrator.sandbox.kinds import DRIVER, PERSISTENT_VOLUME, PERSISTENT_VOLUME_CLAIM, POD, VOLUME_ATTACHMENT
from orchestrator.sandbox.objects import Key, Manifest, deleting, key, name, namespace, spec, status
from orchestrator.sandbox.roles import Part, Role
from orchestrator.sandbox.storage.protection import claims_of

_ALL: Key = ("", "all")
_SHARED = {"ReadWriteMany", "ReadOnlyMany"}


class AttachDetach(Role):
    """One key: the whole cluster's attachments against what pods need."""

    name = "attach-detach"

    def __init__(self, part: Part) -> None:
        super().__init__()
        self._api = part.api
        self._pods = part.mirror(POD)
        self._claims = part.mirror(PERSISTENT_VOLUME_CLAIM)
        self._volumes = part.mirror(PERSISTENT_VOLUME)
        self._attachments = part.mirror(VOLUME_ATTACHMENT)
        self._events = Recorder(part.api, "attachdetach-controller")
        for mirror in (self._pods, self._claims, self._volumes, self._attachments):
            mirror.listen(lambda _obj, _gone: self.want(_ALL))

    async def reconcile(self, _at: Key) -> float | None:
        """Detach what nobody needs, then attach what is needed."""
        needed = self._needed()
        for attachment in self._attachments:
            volume, node = attached(attachment)
            if spec(attachment).get("attacher") == DRIVER and (volume, node) not in needed and not deleting(attachment):
                await self._api.delete(VOLUME_ATTACHMENT, attachment)
        held = {attached(a) for a in self._attachments}
        for (volume, node), pod in needed.items():
            if (volume, node) in held:
                continue
            elsewhere = [other for name_, other in held if name_ == volume]
            body = self._volumes.get("", volume)
            if elsewhere and not _SHARED & set(spec(body or {}).get("accessModes") or []):
                message = f'Multi-Attach error for volume "{volume}" Volume is already used by node {elsewhere[0]}'
                await self._events.say(POD, pod, "Warning", "FailedAttachVolume", message)
                continue
            await self._attach(volume, node)
            held.add((volume, node))
        return None

    def _needed(self) -> dict[tuple[str, str], Manifest]:
        needed: dict[tuple[str, str], Manifest] = {}
        for pod in self._pods:
            node = spec(pod).get("nodeName")
            if not node or status(pod).get("phase") in {"Succeeded", "Failed"}:
                continue
            for claim_name in claims_of(pod):
                claim = self._claims.get(namespace(pod), claim_name)
                volume = self._volumes.get("", spec(claim).get("volumeName") or "") if claim else None
                if volume is not None and (spec(volume).get("csi") or {}).get("driver") == DRIVER:
                    needed.setdefault((name(volume), node), pod)
        return needed

    async def _attach(self, volume: str, node: str) -> None:
        digest = hashlib.sha256(f"{volume}{DRIVER}{node}".encode()).hexdigest()
        body = {
            "metadata": {"name": f"csi-{digest}"},
            "spec": {"attacher": DRIVER, "nodeName": node, "source": {"persistentVolumeName": volume}},
        }
        try:
            self._attachments.saw(await self._api.create(VOLUME_ATTACHMENT, body))
        except AlreadyExists:
            return


class Attacher(Role):
    """Keys are attachments of the driver: report them attached."""

    name = "attacher"

    def __init__(self, part: Part, faults: Faults) -> None:
        super().__init__()
        self._api = part.api
        self._faults = faults
        self._attachments = part.mirror(VOLUME_ATTACHMENT)
        self._attachments.listen(lambda obj, _gone: self.want(key(obj)))

    async def reconcile(self, at: Key) -> float | None:
        """Set status.attached."""
        attachment = self._attachments.at(at)
        if attachment is None or deleting(attachment) or spec(attachment).get("attacher") != DRIVER:
            return None
        if not status(attachment).get("attached"):
            await asyncio.sleep(self._faults.number("attach-slow"))
            self._attachments.saw(await self._api.patch_status(VOLUME_ATTACHMENT, attachment, {"attached": True}))
        return None


def attached(attachment: Manifest) -> tuple[str, str]:
    """Return (volume, node) of an attachment."""
    return (spec(attachment).get("source") or {}).get("persistentVolumeName") or "", spec(attachment)["nodeName"]
