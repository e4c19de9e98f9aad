"""Play the storage protection controllers: a claim in use by a pod, and a bound volume, can't vanish."""

from __future__ import annotations

from orchestrator.api.meta import Resource
from orchestrator.sandbox.kinds import PERSISTENT_VOLUME, PERSISTENT_VOLUME_CLAIM, POD
from orchestrator.sandbox.objects import Key, Manifest, deleting, finalizers, key, namespace, spec, status, without
from orchestrator.sandbox.roles import Mirror, Part, Role

PVC_PROTECTION = "kubernetes.io/pvc-protection"
PV_PROTECTION = "kubernetes.io/pv-protection"


class Protection(Role):
    """Keys with a namespace are claims, keys without are volumes."""

    name = "protection"

    def __init__(self, part: Part) -> None:
        super().__init__()
        self._api = part.api
        self._claims = part.mirror(PERSISTENT_VOLUME_CLAIM)
        self._volumes = part.mirror(PERSISTENT_VOLUME)
        self._pods = part.mirror(POD)
        self._claims.listen(lambda obj, _gone: self.want(key(obj)))
        self._volumes.listen(lambda obj, _gone: self.want(key(obj)))
        self._pods.listen(self._pod_changed)

    def _pod_changed(self, pod: Manifest, _gone: bool) -> None:
        for claim in claims_of(pod):
            self.want((namespace(pod), claim))

    async def reconcile(self, at: Key) -> float | None:
        """Add the finalizer to what lives, remove it from what is being deleted and not in use."""
        if at[0]:
            await self._protect(PERSISTENT_VOLUME_CLAIM, self._claims, at, PVC_PROTECTION)
        else:
            await self._protect(PERSISTENT_VOLUME, self._volumes, at, PV_PROTECTION)
        return None

    async def _protect(self, resource: Resource, mirror: Mirror, at: Key, finalizer: str) -> None:
        obj = mirror.at(at)
        if obj is None:
            return
        held = finalizers(obj)
        if not deleting(obj) and finalizer not in held:
            wanted = [*held, finalizer]
        elif deleting(obj) and finalizer in held and not await self._in_use(resource, obj, at):
            wanted = without(held, finalizer)
        else:
            return
        mirror.saw(await self._api.patch(resource, obj, {"metadata": {"finalizers": wanted}}))

    async def _in_use(self, resource: Resource, obj: Manifest, at: Key) -> bool:
        if resource is PERSISTENT_VOLUME:
            return status(obj).get("phase") == "Bound"
        if any(_uses(pod, at) for pod in self._pods):
            return True
        # As the real controller: ask once more, or a pod that the mirror has not seen yet loses its volume.
        live, _ = await self._api.list(POD, at[0])
        return any(_uses(pod, at) for pod in live)


def claims_of(pod: Manifest) -> list[str]:
    """Return the names of the claims that a pod names."""
    volumes = spec(pod).get("volumes") or []
    return [v["persistentVolumeClaim"]["claimName"] for v in volumes if v.get("persistentVolumeClaim")]


def _uses(pod: Manifest, at: Key) -> bool:
    """Return whether a pod that runs or may run names the claim; an unscheduled one counts not, as in Kubernetes."""
    return (
        namespace(pod) == at[0]
        and at[1] in claims_of(pod)
        and bool(spec(pod).get("nodeName"))
        and status(pod).get("phase") not in {"Succeeded", "Failed"}
    )
