"""Tokens of our own service account for the CBT services, one audience each.

A SnapshotMetadata service gets a token in every request and is nobody that we trust: a token that the API server
accepts must never go there. So the audiences of the API server are found out first, and refused. Tokens live in memory
only. What must never happen here: an empty audience, or a token in a log.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import msgspec

from orchestrator.api.meta import OwnerReference
from orchestrator.clock import Clock
from orchestrator.kube.client import Client
from orchestrator.kube.errors import TokenRefused

log = logging.getLogger(__name__)

EXPIRATION_S = 3600
PROBE_EXPIRATION_S = 600
KNOWN_API_AUDIENCES = frozenset(
    {
        "api",
        "kubernetes",
        "kubernetes.default.svc",
        "https://kubernetes.default.svc",
        "https://kubernetes.default.svc.cluster.local",
    }
)
"""What API servers are usually called; refused whatever else is found out."""


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token and its end. Its repr shows neither."""

    value: str = field(repr=False)
    expires_at: datetime


class AccountTokens:
    """A token source for `cbt`: caches per audience, renews in time, refuses the API server's own audiences."""

    def __init__(
        self,
        client: Client,
        clock: Clock,
        *,
        service_account: str,
        namespace: str,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """Mint for `namespace/service_account`; bound to the Pod named by POD_NAME and POD_UID, if they are set."""
        env = os.environ if environ is None else environ
        self._client, self._clock = client, clock
        self._account, self._namespace = service_account, namespace
        self._bound: OwnerReference | None = None
        if env.get("POD_NAME") and env.get("POD_UID"):
            # Bound: the token dies with this Pod, however long it was to live.
            self._bound = OwnerReference(api_version="v1", kind="Pod", name=env["POD_NAME"], uid=env["POD_UID"])
        self._tokens: dict[str, Token] = {}
        self._lock = asyncio.Lock()
        self._refused: frozenset[str] | None = None

    async def token(self, audience: str, *, min_ttl_s: float = 120.0, fresh: bool = False) -> Token:
        """Return a token for `audience` that lives at least `min_ttl_s` more; `fresh`: a new one in any case.

        Raises TokenRefused for an empty audience and for those of the API server.
        """
        if not audience.strip():
            raise TokenRefused("The service names no audience")
        async with self._lock:
            if audience in await self._api_audiences():
                raise TokenRefused(f"The audience {audience!r} is the API server's own")
            known = self._tokens.get(audience)
            enough = timedelta(seconds=min_ttl_s)
            if known is not None and not fresh and known.expires_at - self._clock.now() >= enough:
                return known
            value, expires_at = await self._client.create_token(
                self._account, self._namespace, audience=audience, expiration_s=EXPIRATION_S, bound=self._bound
            )
            self._tokens[audience] = Token(value, expires_at)
            return self._tokens[audience]

    async def _api_audiences(self) -> frozenset[str]:
        """Return what must be refused: found out once, by our own token, else by asking for a default one.

        A TokenRequest without audiences is answered with the API server's audiences filled in. The token itself is
        thrown away unread, unless the server leaves the list empty: then its claims are read.
        """
        if self._refused is not None:
            return self._refused
        found = audiences_of(await self._client.bearer())
        if not found:
            answer = await self._client.token_request(
                self._account,
                self._namespace,
                audiences=[],
                expiration_s=PROBE_EXPIRATION_S,
                bound=self._bound,
            )
            found = frozenset(answer.spec.audiences) or audiences_of(answer.status.token)
        if not found:
            raise TokenRefused("The API server's own audiences could not be found out")
        self._refused = found | KNOWN_API_AUDIENCES | {self._client.host}
        return self._refused


class _Claims(msgspec.Struct):
    aud: str | list[str] = []


def audiences_of(token: str) -> frozenset[str]:
    """Return the audiences that a JWT names, unverified; empty for anything else."""
    parts = token.split(".")
    if len(parts) != 3:
        return frozenset()
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        claims = msgspec.json.decode(payload, type=_Claims)
    except (binascii.Error, ValueError, msgspec.MsgspecError):
        return frozenset()
    return frozenset([claims.aud] if isinstance(claims.aud, str) else claims.aud)
