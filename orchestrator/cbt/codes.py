"""What to do about each way in which a call can fail, and what to call it: two pure tables.

The codes are gRPC's. Six kinds stand beside them for failures without a code: see `Kind`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Literal

from orchestrator.cbt.errors import (
    BaseNotFound,
    CBTAuthFailed,
    CBTForbidden,
    Exhausted,
    NotTracked,
    OutOfRange,
    RequestRefused,
    Rung,
    RungFailed,
    ServiceUnreachable,
    Unsupported,
    clean,
)

Method = Literal["GetMetadataDelta", "GetMetadataAllocated"]
DELTA: Method = "GetMetadataDelta"
ALLOCATED: Method = "GetMetadataAllocated"


class Code(IntEnum):
    """The canonical gRPC status codes."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class Kind(Enum):
    """How a call failed."""

    STATUS = "status"
    """The server ended the stream with a code other than OK."""
    BROKEN = "connection lost"
    """The stream ended without a status: reset, connection lost, GOAWAY, end inside a message."""
    IDLE = "no message in time"
    UNREACHABLE = "no connection"
    """Name resolution, refused connection, TLS handshake or time-out of any of them."""
    UNTRUSTED = "certificate not verified"
    OVERSIZE = "message too big"
    GARBLED = "not a gRPC message"


@dataclass(frozen=True, slots=True)
class Failure:
    """How a call ended if not with OK. `message` is the server's own text, not cleaned: never log it."""

    kind: Kind
    message: str = ""
    code: Code | None = None

    @property
    def name(self) -> str:
        """Return a word from a closed set: the code's name or the kind."""
        return self.code.name if self.code is not None else self.kind.value


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do: how often to repeat without progress, what before repeating, and the rung after that."""

    retries: int
    then: Rung
    recheck: bool = False
    """Look at the snapshot objects before repeating, or before going on."""
    rediscover: bool = False
    """Read the service object again before repeating."""
    fresh_token: bool = False
    shrink: bool = False
    """Ask for fewer ranges per message."""
    wait: bool = True
    """Back off before repeating."""


_TRANSIENT = frozenset(
    {
        Code.CANCELLED,
        Code.UNKNOWN,
        Code.DEADLINE_EXCEEDED,
        Code.ABORTED,
        Code.UNAVAILABLE,
        Code.DATA_LOSS,
    }
)


def judge(failure: Failure, method: Method, *, offset: int = 0, tries: int = 10) -> Verdict:
    """Tell what to do about a failure of a call that started at `offset`. Total: every failure has a verdict.

    `then` is the rung after the retries: delta falls to allocated, allocated to the full read. A service that can't be
    reached fails both, so the full read follows at once. OUT_OF_RANGE that means "complete" is not for here: the
    stream knows the capacity and asks first.
    """
    down: Rung = "allocated" if method == DELTA else "full"
    match failure.kind:
        case Kind.STATUS:
            return _judge_status(failure.code, method, down, offset, tries)
        case Kind.BROKEN | Kind.IDLE:
            return Verdict(tries, down, recheck=True)
        case Kind.UNREACHABLE:
            return Verdict(tries, "full", recheck=True, rediscover=True)
        case Kind.UNTRUSTED:
            return Verdict(1, "full", recheck=True, rediscover=True)
        case Kind.OVERSIZE | Kind.GARBLED:
            return Verdict(0, down)


def _judge_status(code: Code | None, method: Method, down: Rung, offset: int, tries: int) -> Verdict:
    if code in _TRANSIENT:
        return Verdict(tries, down, recheck=True)
    match code:
        case Code.INTERNAL:
            return Verdict(min(3, tries), down, recheck=True)
        case Code.RESOURCE_EXHAUSTED:
            return Verdict(tries, down, recheck=True, shrink=True)
        case Code.UNAUTHENTICATED:
            return Verdict(1, down, rediscover=True, fresh_token=True, wait=False)
        case Code.NOT_FOUND:
            # Of an allocated call only the objects can tell whether the snapshot is gone or its source.
            return Verdict(0, down, recheck=method == ALLOCATED)
        case Code.OUT_OF_RANGE:
            return Verdict(0, "restart" if offset > 0 else "full")
        case _:  # INVALID_ARGUMENT, FAILED_PRECONDITION, PERMISSION_DENIED, UNIMPLEMENTED, ALREADY_EXISTS, OK, none
            return Verdict(0, down)


def backoff_s(failures: int, fraction: float, *, first_s: float = 1.0, most_s: float = 30.0) -> float:
    """Return the wait before a try: doubles from `first_s` to `most_s`; `fraction` in [0, 1) takes up to half off."""
    return min(most_s, first_s * 2.0 ** min(failures - 1, 16)) * (1.0 - fraction / 2.0)


_BY_CODE: dict[Code, type[RungFailed]] = {
    Code.INVALID_ARGUMENT: RequestRefused,
    Code.NOT_FOUND: BaseNotFound,
    Code.FAILED_PRECONDITION: NotTracked,
    Code.OUT_OF_RANGE: OutOfRange,
    Code.UNIMPLEMENTED: Unsupported,
    Code.UNAUTHENTICATED: CBTAuthFailed,
    Code.CANCELLED: Exhausted,
    Code.UNKNOWN: Exhausted,
    Code.DEADLINE_EXCEEDED: Exhausted,
    Code.ABORTED: Exhausted,
    Code.UNAVAILABLE: Exhausted,
    Code.DATA_LOSS: Exhausted,
    Code.INTERNAL: Exhausted,
    Code.RESOURCE_EXHAUSTED: Exhausted,
}


def explain(failure: Failure, driver: str, method: Method, namespace: str, then: Rung, secret: str) -> RungFailed:
    """Return the error of a failure whose retries are used up; what the server said is cleaned of `secret`."""
    said = clean(failure.message, secret)
    if failure.code is Code.PERMISSION_DENIED:
        return CBTForbidden(driver, method, then, said, namespace=namespace)
    if failure.code is not None:
        kind = _BY_CODE.get(failure.code, RungFailed)
    else:
        kind = ServiceUnreachable if failure.kind in (Kind.UNREACHABLE, Kind.UNTRUSTED) else Exhausted
    return kind(driver, method, then, said, code=failure.name)
