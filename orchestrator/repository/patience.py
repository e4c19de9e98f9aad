"""How long a bucket is waited for, how often it is asked again, and how its word to slow down is kept.

One loop for all verbs, above the library: what it can't tell apart from a true answer (a proxy's page, half of a
range) is tried again as a broken connection is. What must never happen here: tries without a bound in number and in
time, tries of many workers in step, or a store that asked for quiet being asked by another worker meanwhile.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Mapping
from enum import Enum

import msgspec
from obstore import exceptions as failures

from orchestrator.repository.errors import StoreOptionUnknown

FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 15.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
PATIENCE_OPTIONS = frozenset({"request_timeout", "connect_timeout", "retries", "retry_timeout"})

_STATUS = r"status code: ([45]\d\d)\b"
_NO_BUCKET = r"(?i)NoSuchBucket|ContainerNotFound|bucket does not exist|container does not exist"
_DENIED = r"AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|AuthenticationFailed|AuthorizationFailure"
_SLOW = r"SlowDown|ServerBusy|TooManyRequests|RequestLimitExceeded"
_PASSING_400 = r"RequestTimeout|BadDigest|XAmzContentSHA256Mismatch|IncompleteBody|Md5Mismatch"
"""Refusals of what arrived, not of what was sent: it was cut or altered on its way."""
_NOT_FINAL = frozenset({404, 408, 409, 412})
"""A 404 that is no object's is a listing's, or of the service that hands out credentials."""
_BEYOND = r"Wanted range starting at"
"""The object ends before the range, and the store answered all the same."""
_PAGE = r"(?i)<html|<!doctype html|default backend|404 page not found"
# All of them are compiled by the first error that is judged: a mover's start is to pay for none.


class Patience(msgspec.Struct, frozen=True):
    """Limits of one store, from its options."""

    request_timeout_s: float = 300.0
    """One request with its answer, bodies included."""
    connect_timeout_s: float = 10.0
    retries: int = 8
    """Further tries of one call."""
    retry_timeout_s: float = 180.0
    """No further try is begun later than this after the first."""

    @classmethod
    def of(cls, options: Mapping[str, str]) -> Patience:
        """Read `request_timeout`, `connect_timeout`, `retry_timeout` (seconds) and `retries`; StoreOptionUnknown."""
        usual = cls()
        return cls(
            request_timeout_s=_number(options, "request_timeout", usual.request_timeout_s, 0.1, 3600),
            connect_timeout_s=_number(options, "connect_timeout", usual.connect_timeout_s, 0.1, 3600),
            retries=int(_number(options, "retries", usual.retries, 0, 100)),
            retry_timeout_s=_number(options, "retry_timeout", usual.retry_timeout_s, 0, 3600),
        )


def _number(options: Mapping[str, str], name: str, default: float, least: float, most: float) -> float:
    if name not in options:
        return default
    text = options[name].strip()
    if re.fullmatch(r"\d{1,5}" if name == "retries" else r"\d{1,5}(\.\d{1,3})?", text) and least <= float(text) <= most:
        return float(text)
    unit = "a whole number" if name == "retries" else "a number of seconds"
    raise StoreOptionUnknown(f"Option {name} is {unit} from {least:g} to {most:g}")


class Verdict(Enum):
    """What a failed request means."""

    MISSING = "no such object"
    NO_BUCKET = "no such bucket"
    DENIED = "not with these credentials"
    FINAL = "the request itself is refused"
    SLOW = "too many requests: not carried out"
    PASSING = "may be otherwise the next time; it may have been carried out"


class Mangled(Exception):
    """An answer that looks fine and can't be true: a proxy's page, half of a range."""


FAILURES = (failures.BaseError, OSError, TimeoutError, ValueError, Mangled)
"""All that a request may raise."""


def judge(error: BaseException, *, xml: bool) -> Verdict:
    """Say what an error of the library means. `xml`: this store's own 404 has an error in XML, or no body (S3)."""
    text = str(error)
    status = status_of(text)
    if re.search(_NO_BUCKET, text):
        return Verdict.NO_BUCKET
    if isinstance(error, FileNotFoundError):
        return Verdict.PASSING if _foreign(text, xml=xml) else Verdict.MISSING
    if isinstance(error, failures.PermissionDeniedError | failures.UnauthenticatedError) or status in (401, 403):
        return Verdict.DENIED
    if status in (429, 503) or re.search(_SLOW, text):
        return Verdict.SLOW
    if status is None and re.search(_DENIED, text):
        return Verdict.DENIED  # a deletion is sent as a list of one, and refused inside an answer that is fine
    if re.search(_BEYOND, text):
        return Verdict.FINAL
    if status is not None and status < 500 and status not in _NOT_FINAL and not re.search(_PASSING_400, text):
        return Verdict.FINAL
    return Verdict.PASSING


def status_of(text: str) -> int | None:
    """Return the HTTP status that an error of the library names."""
    found = re.search(_STATUS, text)
    return int(found.group(1)) if found else None


def _foreign(text: str, *, xml: bool) -> bool:
    """Say whether a 404 was said by somebody before the store, such as a proxy that lost it."""
    _, found, body = text.partition("404 Not Found: ")
    if re.search(_PAGE, text):
        return True
    return xml and bool(found) and bool(body.split("\n")[0].strip(' "')) and "<Code>" not in body


class Tries:
    """The tries of one call, and of the calls that settle it: they share one budget."""

    def __init__(self, patience: Patience) -> None:
        """Begin now."""
        self._left = patience.retries
        self._end = asyncio.get_running_loop().time() + patience.retry_timeout_s
        self._wait = FIRST_WAIT_S

    async def again(self, *, slow: bool = False) -> bool:
        """Wait a while, longer each time; False when it is over. `slow`: the store's pause is the wait."""
        if not self._left or asyncio.get_running_loop().time() > self._end:
            return False
        self._left -= 1
        if not slow:
            # Spread, so that many movers that lost their connections together don't come back in step.
            await asyncio.sleep(self._wait * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
            self._wait = min(self._wait * 2, LONGEST_WAIT_S)
        return True


class Pace:
    """The store's word to slow down, kept by all calls of one store together.

    After an answer that says so nobody asks for 1 s, after the next one for 2 s and so on up to 30 s; each good answer
    halves that. The answer's Retry-After can't be seen through the library: the pause is no shorter than the one
    second that stores commonly ask for, and grows beyond what they name when it was too short.
    """

    def __init__(self) -> None:
        """Begin at full speed."""
        self._quiet_until = 0.0
        self._pause = FIRST_PAUSE_S

    async def turn(self) -> float:
        """Wait while the store wants quiet; return the moment at which the request starts."""
        loop = asyncio.get_running_loop()
        if self._quiet_until > loop.time():
            while (left := self._quiet_until - loop.time()) > 0:
                # The spread is after the pause, never within: waiters must not come back in step.
                await asyncio.sleep(left + random.uniform(0, 0.25) * self._pause)  # noqa: S311 - no secret
        return loop.time()

    def refused(self, began: float) -> None:
        """Take note of a refusal of a request that began then."""
        if began < self._quiet_until:
            return  # sent before the last pause was over: the same word once more
        self._quiet_until = asyncio.get_running_loop().time() + self._pause
        self._pause = min(self._pause * 2, LONGEST_PAUSE_S)

    def answered(self, began: float) -> None:
        """Take note of a good answer to a request that began then."""
        if began >= self._quiet_until:
            self._pause = max(self._pause / 2, FIRST_PAUSE_S)
