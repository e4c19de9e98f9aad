"""Keep what calls to one driver share: where it is, the connection, tokens, and how many streams run at once.

A client serves one driver, for one backup or longer. It decides nothing about answers: that is `stream`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random
from types import TracebackType
from typing import Self
from weakref import WeakKeyDictionary

from orchestrator.cbt.channel import BadService, Call, Line
from orchestrator.cbt.codes import ALLOCATED, DELTA, Method
from orchestrator.cbt.errors import LookupTimedOut, ServiceInvalid
from orchestrator.cbt.service import Recheck, Rediscover, Service, Token, TokenSource
from orchestrator.clock import Clock, SystemClock
from orchestrator.wire.snapshotmetadata import GetMetadataAllocatedRequest, GetMetadataDeltaRequest

MOST_RESULTS = 190_000
"""Ranges that always fit in the 4 MiB which sidecars take from their driver, at 22 bytes each."""

_PATHS = {
    DELTA: "/snapshotmetadata.SnapshotMetadata/GetMetadataDelta",
    ALLOCATED: "/snapshotmetadata.SnapshotMetadata/GetMetadataAllocated",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """Limits and patience. Seconds and counts; every value is checked when made."""

    max_results: int = 10_000
    """Ranges per message; 0 leaves it to the server. Some drivers hang on a negative number, so none is ever sent."""
    idle_timeout_s: float = 300.0
    """Give a stream up after so long without a message. A driver may scan a sparse disk silently for minutes."""
    connect_timeout_s: float = 15.0
    lookup_timeout_s: float = 60.0
    """For a token or a look at the service object."""
    tries: int = 10
    """Failures without progress before a rung is given up."""
    stuck_s: float = 600.0
    """And time without progress, whichever ends first."""
    min_token_ttl_s: float = 120.0
    streams_per_driver: int = 2
    """Sidecars serve about 1.6 calls a second, and when one dies all its streams do."""
    start_jitter_s: float = 0.2
    whole_answers: frozenset[str] = field(default_factory=frozenset)
    """Drivers known to end a stream with OK only when it is complete: no completeness probe for them."""

    def __post_init__(self) -> None:
        """Refuse what would hang a driver or never end."""
        if not 0 <= self.max_results <= MOST_RESULTS:
            raise ValueError(f"max_results must be 0 to {MOST_RESULTS}, not {self.max_results}")
        for name in ("idle_timeout_s", "connect_timeout_s", "lookup_timeout_s", "stuck_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0")
        if self.tries < 1 or self.streams_per_driver < 1 or self.min_token_ttl_s < 0 or self.start_jitter_s < 0:
            raise ValueError("tries and streams_per_driver must be at least 1, and no time below 0")


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked in every call of one stream: the method, the snapshot's names, and for a delta the base's id."""

    method: Method
    namespace: str
    name: str
    base_id: str = ""

    def encode(self, token: str, offset: int, max_results: int) -> bytes:
        """Return the request on the wire. Bytes and not a message, since a message's repr would show the token."""
        if self.method == DELTA:
            return bytes(
                GetMetadataDeltaRequest(
                    security_token=token,
                    namespace=self.namespace,
                    base_snapshot_id=self.base_id,
                    target_snapshot_name=self.name,
                    starting_offset=offset,
                    max_results=max_results,
                )
            )
        return bytes(
            GetMetadataAllocatedRequest(
                security_token=token,
                namespace=self.namespace,
                snapshot_name=self.name,
                starting_offset=offset,
                max_results=max_results,
            )
        )


_GATES: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, int], asyncio.Semaphore]] = WeakKeyDictionary()


def _gate(driver: str, streams: int) -> asyncio.Semaphore:
    """Return the gate that all clients of a driver in this process share: better to wait here than in the sidecar."""
    gates = _GATES.setdefault(asyncio.get_running_loop(), {})
    return gates.setdefault((driver, streams), asyncio.Semaphore(streams))


class Client:
    """The way to one driver's metadata service; an async context manager that closes its connections.

    `recheck` is called before a call is repeated and may wait or raise SnapshotGone. `rediscover` is called when the
    service can't be reached or doesn't accept us. `sleep` is how it waits between tries.
    """

    def __init__(
        self,
        service: Service,
        tokens: TokenSource,
        *,
        recheck: Recheck,
        rediscover: Rediscover,
        settings: Settings | None = None,
        clock: Clock | None = None,
        random: Random | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Take the seams; connect to nothing yet."""
        self.service = service
        self.settings = settings or Settings()
        self.clock: Clock = clock or SystemClock()
        self.random = random or Random()  # noqa: S311  # jitter, not a secret
        self.recheck = recheck
        self.sleep = sleep
        self._tokens = tokens
        self._rediscover = rediscover
        self._lines: dict[tuple[str, bytes], Line] = {}

    async def __aenter__(self) -> Self:
        # The first message of a process makes betterproto2 look for pydantic, and import it for a quarter of a second.
        await asyncio.to_thread(Question(DELTA, "", "").encode, "", 0, 0)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        lines = list(self._lines.values())
        self._lines.clear()
        for line in lines:
            line.discard()
        # A TLS connection says good-bye in a later turn of the loop.
        await asyncio.sleep(0)

    @property
    def driver(self) -> str:
        """Return the CSI driver's name."""
        return self.service.driver

    @asynccontextmanager
    async def call(
        self, question: Question, *, offset: int, max_results: int, fresh_token: bool
    ) -> AsyncIterator[tuple[Call, str]]:
        """Open one call, one of few per driver, with a token that lives long enough.

        Yields the call and the token's value, which the caller needs to keep it out of error texts. Raises
        ServiceInvalid if the service object makes no sense.
        """
        async with _gate(self.driver, self.settings.streams_per_driver):
            token = await self._token(question.method, fresh=fresh_token)
            line = self._line(question.method)
            request = question.encode(token.value, offset, max_results)
            settings = self.settings
            async with line.call(
                _PATHS[question.method],
                request,
                connect_timeout_s=settings.connect_timeout_s,
                idle_timeout_s=settings.idle_timeout_s,
            ) as call:
                try:
                    yield call, token.value
                finally:
                    if call.failure is not None and call.failure.code is None:
                        self._drop(line)

    async def rediscover(self) -> None:
        """Read the service object again; later calls use what it says now, over a new connection."""
        try:
            async with asyncio.timeout(self.settings.lookup_timeout_s):
                self.service = await self._rediscover()
        except TimeoutError as error:
            raise LookupTimedOut("the snapshot metadata service", self.driver) from error
        for line in list(self._lines.values()):
            self._drop(line)

    async def _token(self, method: Method, *, fresh: bool) -> Token:
        settings = self.settings
        if not self.service.audience.strip():
            # A token for no audience in particular is one for the API server itself.
            raise ServiceInvalid(self.driver, method, "full", "the audience is empty")
        audience, ttl_s = self.service.audience, settings.min_token_ttl_s
        try:
            async with asyncio.timeout(settings.lookup_timeout_s):
                token = await self._tokens.token(audience, min_ttl_s=ttl_s, fresh=fresh)
                if not fresh and token.expires_at - self.clock.now() < timedelta(seconds=ttl_s):
                    token = await self._tokens.token(audience, min_ttl_s=ttl_s, fresh=True)
        except TimeoutError as error:
            raise LookupTimedOut("a token", self.driver) from error
        return token

    def _line(self, method: Method) -> Line:
        key = (self.service.address, hashlib.sha256(self.service.ca_pem).digest())
        line = self._lines.get(key)
        if line is None:
            try:
                line = self._lines[key] = Line(self.service.address, self.service.ca_pem)
            except BadService as error:
                raise ServiceInvalid(self.driver, method, "full", str(error)) from error
        return line

    def _drop(self, line: Line) -> None:
        """Take a connection out of use: after a failure without a status nobody knows what state it is in."""
        for key, known in list(self._lines.items()):
            if known is line:
                del self._lines[key]
        if not line.discarded:
            line.discard()
