"""Fill projected volumes as a kubelet does: config maps, secrets, downward fields, and tokens bound to their pod.

A token is asked for by TokenRequest, bound to the pod, and asked for again when four fifths of its life are over, so
a program that reads its file anew never holds a stale one. A token is written to its file and nowhere else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from orchestrator.sandbox.api import Api, ApiError
from orchestrator.sandbox.kinds import SERVICE_ACCOUNT
from orchestrator.sandbox.objects import Manifest, name, namespace, spec, uid

DEFAULT_LIFE_S = 3600
RENEW_AT = 0.8

Read = Callable[[str, Manifest], Awaitable[dict[str, bytes]]]
"""Reads a `secret`, a `configMap` or `downwardAPI` source, by the name of its kind."""


async def project(
    api: Api, pod: Manifest, sources: list[Manifest], read: Read
) -> tuple[dict[str, bytes], float | None]:
    """Return the files of a projected volume, and in how many seconds it must be filled anew (None: never).

    Raises ApiError, and what `read` raises.
    """
    files: dict[str, bytes] = {}
    renew: float | None = None
    for source in sources:
        wanted = source.get("serviceAccountToken")
        if wanted:
            life = int(wanted.get("expirationSeconds") or DEFAULT_LIFE_S)
            files[wanted["path"]] = await _token(api, pod, wanted.get("audience") or "", life)
            renew = min(renew or life, life * RENEW_AT)
            continue
        for kind in ("secret", "configMap", "downwardAPI"):
            if source.get(kind):
                files |= await read(kind, source[kind])
    return files, renew


async def _token(api: Api, pod: Manifest, audience: str, life_s: int) -> bytes:
    account = str(spec(pod).get("serviceAccountName") or "default")
    bound = {"apiVersion": "v1", "kind": "Pod", "name": name(pod), "uid": uid(pod)}
    asked: Manifest = {"expirationSeconds": life_s, "boundObjectRef": bound}
    if audience:
        asked["audiences"] = [audience]
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": asked}
    answer = await api.call("POST", SERVICE_ACCOUNT.path(namespace(pod), account, "token"), body=body)
    token = str((answer.get("status") or {}).get("token") or "")
    if not token:
        raise ApiError(0, f"token of {namespace(pod)}/{account}", "the answer holds none")
    return token.encode()
