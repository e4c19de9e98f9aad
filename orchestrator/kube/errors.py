"""What the API server says when it says no, translated at this one door.

Other rooms never see an HTTP status or an aiohttp exception. Messages are bounded and stripped of whatever looks like
a token; about Secrets and tokens the server's own words are dropped altogether, because they may quote the content.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from orchestrator.errors import Retryable, Terminal, without_tokens

SERVER_WORDS = 400
"""Characters kept of the server's own message."""
CAUSES = 5
"""Causes of an Invalid that are kept."""


def redacted(text: str, limit: int = SERVER_WORDS) -> str:
    """Return `text` on one line, without anything that looks like a token, at most `limit` characters."""
    clean = without_tokens(" ".join(text.split()))
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


class Target(NamedTuple):
    """What a request was about, for messages: `get volumesnapshots.snapshot.storage.k8s.io ns/name`."""

    verb: str
    resource: str
    namespace: str = ""
    name: str = ""

    def __str__(self) -> str:
        """Return it as one readable phrase."""
        where = "/".join(part for part in (self.namespace, self.name) if part)
        return f"{self.verb} {self.resource} {where}".rstrip()

    @property
    def secret(self) -> bool:
        """Return whether the server's words about it may quote a secret."""
        return self.resource.split(".", 1)[0].split("/", 1)[0] in _SECRET or self.resource.endswith("/token")


_SECRET = frozenset({"secrets", "tokenreviews", "selfsubjectreviews"})


class ApiError(Exception):
    """Mixin of every answer of the API server that is not a success."""

    def __init__(self, target: Target, message: str = "", *, code: int = 0) -> None:
        """Build from the request's target and the server's words (already redacted)."""
        super().__init__(f"{target}: {message}" if message else str(target))
        self.target = target
        self.code = code


class NotFound(ApiError, Terminal):
    """The object, or its whole kind, is not there."""

    reason = "NotFound"
    remedy = "Create what is missing, or install its CRD."


class AlreadyExists(ApiError, Terminal):
    """An object of that name is there already; the caller must look whose it is."""

    reason = "AlreadyExists"
    remedy = "Look at who made the object of that name."


class Conflict(ApiError, Retryable):
    """The object changed since it was read, or a precondition did not hold."""

    reason = "Conflict"
    remedy = "It is read again and tried again."


class Gone(ApiError, Retryable):
    """The resourceVersion or continue token is too old: list again."""

    reason = "Gone"
    remedy = "The list is read again."


class Unauthorized(ApiError, Retryable):
    """The server does not know who we are; a rotated token or an ailing authenticator may heal by itself."""

    reason = "Unauthorized"
    remedy = "Check the kubeconfig or that the service account still exists."


class Forbidden(ApiError, Terminal):
    """We may not do this."""

    reason = "Forbidden"
    remedy = "Grant the missing permission; `tidemark doctor` lists what the controller needs."


class NamespaceTerminating(Forbidden):
    """Nothing can be created in a namespace that is being deleted."""

    reason = "NamespaceTerminating"
    remedy = "The namespace is being deleted; work in it ends."


class QuotaExceeded(ApiError, Retryable):
    """A ResourceQuota of the namespace is used up."""

    reason = "QuotaExceeded"
    remedy = "Raise the quota or free some of it."


class Invalid(ApiError, Terminal):
    """The server refused the object's content."""

    reason = "Invalid"
    remedy = "Correct the object."

    def __init__(self, target: Target, message: str = "", *, code: int = 0, causes: Sequence[str] = ()) -> None:
        """Build with at most `CAUSES` causes, each `field: message`."""
        super().__init__(target, message, code=code)
        self.causes = tuple(causes[:CAUSES])


class TooManyRequests(ApiError, Retryable):
    """The server asks for patience, also after the client's own tries."""

    reason = "TooManyRequests"
    remedy = "The API server is overloaded; it is tried again later."

    def __init__(self, target: Target, message: str = "", *, code: int = 0, retry_after_s: float = 1.0) -> None:
        """Build with the server's Retry-After in seconds."""
        super().__init__(target, message, code=code)
        self.retry_after_s = retry_after_s


class Unavailable(ApiError, Retryable):
    """No usable answer: connection refused or cut, 5xx, garbage."""

    reason = "ApiServerUnavailable"
    remedy = "Check that the API server is reachable."


class TimedOut(Unavailable):
    """No answer within the time limit. A write may have happened all the same."""

    reason = "ApiServerTimeout"
    remedy = "Check the API server's load and the network."


class Undecodable(ApiError, Terminal):
    """An object came that does not fit our slice of its kind."""

    reason = "Undecodable"
    remedy = "The object or its CRD's version is not one that this release understands."


class NotConfigured(Terminal):
    """There is no way to reach a cluster."""

    reason = "NotConfigured"
    remedy = "Give --kubeconfig or KUBECONFIG, or run inside a cluster with a service account."


class TokenRefused(Terminal):
    """A token for this audience would be a credential for the API server itself."""

    reason = "TokenRefused"
    remedy = "Set the SnapshotMetadataService's audience to a name of its own."


class _Cause(msgspec.Struct):
    reason: str = ""
    message: str = ""
    field: str = ""


class _Details(msgspec.Struct, rename="camel"):
    causes: list[_Cause] = []
    retry_after_seconds: int = 0


class Status(msgspec.Struct):
    """The API server's answer about an answer (`kind: Status`)."""

    message: str = ""
    reason: str = ""
    code: int = 0
    details: _Details | None = None


_STATUS = msgspec.json.Decoder(Status)


def decode_status(body: bytes) -> Status:
    """Return the Status in `body`; garbage gives an empty one with the garbage's beginning as message."""
    try:
        return _STATUS.decode(body)
    except msgspec.MsgspecError:
        return Status(message=redacted(body[:200].decode("utf-8", "replace")))


def translate(target: Target, http_status: int, body: bytes, retry_after_s: float | None = None) -> ApiError:
    """Return the error for an unsuccessful answer.

    `http_status` counts, not what the body claims, except for a Status inside a 200 watch stream (its `code`).
    """
    return from_status(target, http_status, decode_status(body), retry_after_s)


def from_status(target: Target, code: int, status: Status, retry_after_s: float | None = None) -> ApiError:
    """Return the error for a Status; pure."""
    details = status.details or _Details()
    words = "" if target.secret else redacted(status.message)
    message = words or status.reason or f"HTTP {code}"
    match code:
        case 400 | 405 | 406 | 413 | 415 | 422:
            kept = () if target.secret else details.causes
            causes = [redacted(f"{cause.field}: {cause.message}", 200) for cause in kept[:CAUSES]]
            return Invalid(target, message, code=code, causes=causes)
        case 401:
            return Unauthorized(target, message, code=code)
        case 403:
            return _forbidden(target, message, status, details)
        case 404:
            return NotFound(target, message, code=code)
        case 409 if status.reason == "AlreadyExists":
            return AlreadyExists(target, message, code=code)
        case 409:
            return Conflict(target, message, code=code)
        case 410:
            return Gone(target, message, code=code)
        case 429:
            wait = retry_after_s if retry_after_s is not None else float(details.retry_after_seconds or 1)
            return TooManyRequests(target, message, code=code, retry_after_s=wait)
        case 504:
            return TimedOut(target, message, code=code)
        case _:
            return Unavailable(target, message, code=code)


def _forbidden(target: Target, message: str, status: Status, details: _Details) -> ApiError:
    if any(cause.reason == "NamespaceTerminating" for cause in details.causes):
        return NamespaceTerminating(target, message, code=403)
    if "exceeded quota" in status.message:
        return QuotaExceeded(target, message, code=403)
    return Forbidden(target, message, code=403)
