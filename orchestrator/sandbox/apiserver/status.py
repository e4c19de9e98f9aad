"""Errors as the API speaks them: every refusal is a `Status` object with a code, a reason and its causes.

The texts are those of k8s.io/apimachinery `api/errors`, because people and clients match on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from orchestrator.sandbox.apiserver.objects import Obj


class Cause(NamedTuple):
    """One field error: machine-readable reason, message without the field, and the field's path."""

    reason: str
    message: str
    field: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class ApiError(Exception):
    """A refusal that the caller sees as a Status."""

    def __init__(self, code: int, reason: str, message: str, details: Obj | None = None) -> None:
        super().__init__(message)
        self.code, self.reason, self.message, self.details = code, reason, message, details
        self.warnings: tuple[str, ...] = ()

    def status(self) -> Obj:
        """Return the Status object for the response body (and for ERROR watch events)."""
        body: Obj = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "details": self.details,
            "code": self.code,
        }
        return {k: v for k, v in body.items() if v is not None and v != ""}


class UnknownPath(ApiError):
    """Nothing at all is served there: the one refusal that is no Status but plain text."""

    def __init__(self) -> None:
        super().__init__(404, "NotFound", "404 page not found")


def qualified(resource: str, group: str) -> str:
    """Return `resource.group`, or the bare resource of the legacy group."""
    return f"{resource}.{group}" if group else resource


def _details(resource: str, group: str, name: str, causes: Sequence[Cause] = ()) -> Obj:
    details: Obj = {"name": name, "group": group, "kind": resource}
    details = {k: v for k, v in details.items() if v}
    if causes:
        details["causes"] = [{k: v for k, v in c._asdict().items() if v} for c in causes]
    return details


def not_found(resource: str, group: str, name: str) -> ApiError:
    return ApiError(
        404, "NotFound", f'{qualified(resource, group)} "{name}" not found', _details(resource, group, name)
    )


def path_not_found() -> ApiError:
    return ApiError(404, "NotFound", "the server could not find the requested resource", {})


def already_exists(resource: str, group: str, name: str) -> ApiError:
    message = f'{qualified(resource, group)} "{name}" already exists'
    return ApiError(409, "AlreadyExists", message, _details(resource, group, name))


STALE = "the object has been modified; please apply your changes to the latest version and try again"


def conflict(resource: str, group: str, name: str, why: str = STALE, causes: Sequence[Cause] = ()) -> ApiError:
    message = f'Operation cannot be fulfilled on {qualified(resource, group)} "{name}": {why}'
    return ApiError(409, "Conflict", message, _details(resource, group, name, causes))


def apply_conflict(message: str, causes: Sequence[Cause]) -> ApiError:
    return ApiError(409, "Conflict", message, {"causes": [c._asdict() for c in causes]})


def invalid(kind: str, group: str, name: str, causes: Iterable[Cause]) -> ApiError:
    """Return 422 with one cause for each field error."""
    found = list(dict.fromkeys(causes))
    texts = [str(c) for c in found]
    text = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    message = (
        f'{qualified(kind, group)} "{name}" is invalid: {text}'
        if found
        else f'{qualified(kind, group)} "{name}" is invalid'
    )
    return ApiError(422, "Invalid", message, _details(kind, group, name, found))


def forbidden(resource: str, group: str, name: str, why: str, causes: Sequence[Cause] = ()) -> ApiError:
    shown = f'{qualified(resource, group)} "{name}"' if name else qualified(resource, group)
    message = f"{shown} is forbidden: {why}" if resource else f"forbidden: {why}"
    return ApiError(403, "Forbidden", message, _details(resource, group, name, causes))


def bad_request(message: str) -> ApiError:
    return ApiError(400, "BadRequest", message)


def unauthorized() -> ApiError:
    return ApiError(401, "Unauthorized", "Unauthorized")


def method_not_allowed() -> ApiError:
    return ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource", {})


def unsupported_media(accepted: Sequence[str]) -> ApiError:
    listed = ", ".join(accepted)
    message = f"the body of the request was in an unknown format - accepted media types include: {listed}"
    return ApiError(415, "UnsupportedMediaType", message)


def not_acceptable(accepted: Sequence[str]) -> ApiError:
    listed = ", ".join(accepted)
    return ApiError(406, "NotAcceptable", f"only the following media types are accepted: {listed}")


def too_large(limit: int) -> ApiError:
    return ApiError(413, "RequestEntityTooLarge", f"Request entity too large: limit is {limit}")


def expired(message: str, continue_token: str = "") -> ApiError:
    error = ApiError(410, "Expired", message)
    if continue_token:
        status = error.status()
        status["metadata"] = {"continue": continue_token}
        return _Prepared(error, status)
    return error


class _Prepared(ApiError):
    """An error whose Status carries list metadata (a token to go on with)."""

    def __init__(self, error: ApiError, status: Obj) -> None:
        super().__init__(error.code, error.reason, error.message, error.details)
        self._status = status

    def status(self) -> Obj:
        return self._status


def rv_too_large(asked: int, current: int, retry_s: int = 1) -> ApiError:
    message = f"Too large resource version: {asked}, current: {current}"
    cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
    return ApiError(504, "Timeout", f"Timeout: {message}", {"causes": [cause], "retryAfterSeconds": retry_s})


# Field errors (k8s.io/apimachinery util/validation/field)


def required(path: str, detail: str = "") -> Cause:
    return Cause("FieldValueRequired", f"Required value: {detail}" if detail else "Required value", path)


def invalid_value(path: str, value: object, detail: str) -> Cause:
    return Cause("FieldValueInvalid", f"Invalid value: {show(value)}: {detail}", path)


def forbidden_field(path: str, detail: str) -> Cause:
    return Cause("FieldValueForbidden", f"Forbidden: {detail}", path)


def duplicate(path: str, value: object) -> Cause:
    return Cause("FieldValueDuplicate", f"Duplicate value: {show(value)}", path)


def not_supported(path: str, value: object, allowed: Iterable[object]) -> Cause:
    listed = ", ".join(show(a) for a in allowed)
    return Cause("FieldValueNotSupported", f"Unsupported value: {show(value)}: supported values: {listed}", path)


def too_long(path: str, limit: int, unit: str = "bytes") -> Cause:
    plural = unit if limit != 1 else unit.removesuffix("s")
    return Cause("FieldValueTooLong", f"Too long: may not be more than {limit} {plural}", path)


def too_many(path: str, actual: int, limit: int) -> Cause:
    noun = "item" if limit == 1 else "items"
    return Cause("FieldValueTooMany", f"Too many: {actual}: must have at most {limit} {noun}", path)


def type_invalid(path: str, value: object, detail: str) -> Cause:
    return Cause("FieldValueTypeInvalid", f"Invalid value: {show(value)}: {detail}", path)


def show(value: object) -> str:
    """Write a value as field errors do (Go's %q, %v, or JSON for structures)."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, str):
        return msgspec.json.encode(value).decode()
    if isinstance(value, dict | list):
        return msgspec.json.encode(value, order="sorted").decode()
    return str(value)
