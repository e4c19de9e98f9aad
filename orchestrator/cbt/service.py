"""What the room needs from its caller: where the service is, tokens for it, and two looks at the cluster.

The callers' side (discovery, TokenRequest, the snapshot objects) knows Kubernetes; this side must not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Service:
    """What a driver's SnapshotMetadataService object says.

    `address` is `host:port` (IPv6 in brackets), `ca_pem` the whole trust (a PEM bundle), `revision` uid and
    resourceVersion of the object, kept as evidence.
    """

    driver: str
    address: str
    ca_pem: bytes = field(repr=False)
    audience: str
    revision: str = ""


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token and the instant (aware) at which it dies. Its value is in no repr."""

    value: str = field(repr=False)
    expires_at: datetime


class TokenSource(Protocol):
    """Where tokens come from."""

    async def token(self, audience: str, *, min_ttl_s: float = 120.0, fresh: bool = False) -> Token:
        """Return a token for `audience` with at least `min_ttl_s` seconds to live, a newly made one if `fresh`.

        Must refuse an audience that is empty or the API server's own: such a token is a full API credential.
        """
        ...


class Recheck(Protocol):
    """Look at the snapshot's objects again, before a call is repeated."""

    async def __call__(self) -> None:
        """Return when the snapshot is ready, wait while it isn't, raise SnapshotGone when it is gone or going."""
        ...


class Rediscover(Protocol):
    """Read the SnapshotMetadataService object again."""

    async def __call__(self) -> Service:
        """Return what it says now; raise a TidemarkError if it is gone."""
        ...
