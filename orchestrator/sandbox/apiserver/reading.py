"""Get and list: selectors, chunks with continue tokens, and what a resourceVersion asks for."""

from __future__ import annotations

import asyncio
import base64
import binascii

import msgspec

from orchestrator.sandbox.apiserver.calls import Call
from orchestrator.sandbox.apiserver.conversion import present
from orchestrator.sandbox.apiserver.objects import Obj, name_of, namespace_of
from orchestrator.sandbox.apiserver.selectors import Predicate, parse_fields, parse_labels
from orchestrator.sandbox.apiserver.status import ApiError, bad_request, expired, invalid, not_found, rv_too_large
from orchestrator.sandbox.apiserver.store import Store

#: How long a read waits for a revision that has not come yet (as the watch cache does).
_WAIT_S = 3.0

_TOO_OLD = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list without "
    "the continue parameter, or use the continue token in this response to retrieve the remainder of the results. "
    "Continuing with the provided token results in an inconsistent list - objects that were created, modified, or "
    "deleted between the time the first chunk was returned and now may show up in the list."
)


class Page(msgspec.Struct):
    """A list's answer before it becomes a List or a Table."""

    items: list[Obj]
    rv: int
    token: str = ""
    remaining: int | None = None


def selection(call: Call) -> Predicate:
    """Return the test that label and field selectors (and a name in a watch's path) make."""
    tests: list[Predicate] = []
    if text := call.info.query.get("labelSelector", ""):
        tests.append(parse_labels(text))
    if text := call.info.query.get("fieldSelector", ""):
        tests.append(parse_fields(text, call.kind))
    if call.name:
        tests.append(lambda obj: name_of(obj) == call.name)
    if call.namespace:
        tests.append(lambda obj: namespace_of(obj) == call.namespace)
    return lambda obj: all(test(obj) for test in tests)


def revision(call: Call) -> int | None:
    """Return the asked resourceVersion; None when none is asked."""
    text = call.info.query.get("resourceVersion", "")
    if not text:
        return None
    if not text.isdigit():
        raise invalid_rv(text)
    return int(text)


def invalid_rv(text: str) -> ApiError:
    return bad_request(f'resourceVersion: Invalid value: "{text}": strconv.ParseUint: parsing "{text}": invalid syntax')


def fetch(store: Store, call: Call) -> Obj:
    """Return the stored object; 404 when it is not there."""
    obj = store.get(call.kind.storage, call.namespace, call.name)
    if obj is None:
        raise not_found(call.kind.plural, call.kind.group, call.name)
    return obj


async def reached(store: Store, rv: int) -> None:
    """Wait a little for a revision; 504 when it does not come."""
    for _ in range(int(_WAIT_S / 0.05)):
        if store.rv >= rv:
            return
        await asyncio.sleep(0.05)
    raise rv_too_large(rv, store.rv)


async def page(store: Store, call: Call) -> Page:
    """Return one chunk of a list."""
    query = call.info.query
    limit = call.info.number("limit") or 0
    match = query.get("resourceVersionMatch", "")
    wanted = revision(call)
    start: tuple[str, str] | None = None
    _check_match(call, match, wanted)
    if token := query.get("continue", ""):
        at, start = _decode(token)
        if wanted:
            raise bad_request("specifying resource version is not allowed when using continue")
    elif wanted and (match == "Exact" or (limit and not match)):
        at = wanted
    else:
        at = store.rv
    await reached(store, max(at, wanted or 0))
    at = at if at > 0 else store.rv
    return _chunk(store, call, at, start, limit)


def _check_match(call: Call, match: str, wanted: int | None) -> None:
    query = call.info.query
    if not match or query.get("sendInitialEvents"):
        return
    detail = ""
    if match not in {"Exact", "NotOlderThan"}:
        detail = f'resourceVersionMatch: Unsupported value: "{match}": supported values: "Exact", "NotOlderThan", ""'
    elif query.get("continue"):
        detail = "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden when continue is provided"
    elif wanted is None:
        detail = "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided"
    elif match == "Exact" and wanted == 0:
        detail = 'resourceVersionMatch: Forbidden: resourceVersionMatch "exact" is forbidden for resourceVersion "0"'
    if detail:
        error = invalid("ListOptions", "meta.k8s.io", "", [])
        error.message = f'ListOptions.meta.k8s.io "" is invalid: {detail}'
        raise error


def _chunk(store: Store, call: Call, at: int, start: tuple[str, str] | None, limit: int) -> Page:
    kind = call.kind
    found = store.all_at(kind.storage, at, call.namespace)
    if found is None:
        if start is not None:
            raise expired(_TOO_OLD, _encode(-1, start))
        floor = store.table(kind.storage).floor
        raise expired(f"The resourceVersion for the provided list is too old. ({at} < {floor})")
    if start is not None:
        after = start
        found = [o for o in found if (namespace_of(o), name_of(o)) > after]
    matches = selection(call)
    chosen = [o for o in found if matches(o)]
    selective = bool(call.info.query.get("labelSelector") or call.info.query.get("fieldSelector"))
    if limit and len(chosen) > limit:
        last = chosen[limit - 1]
        remaining = None if selective else len(chosen) - limit
        token = _encode(at, (namespace_of(last), name_of(last)))
        return Page([present(o, kind) for o in chosen[:limit]], at, token, remaining)
    return Page([present(o, kind) for o in chosen], at)


def _encode(rv: int, key: tuple[str, str]) -> str:
    body = msgspec.json.encode({"v": "meta.k8s.io/v1", "rv": rv, "start": "/".join(key) + "\0"})
    return base64.urlsafe_b64encode(body).rstrip(b"=").decode()


def _decode(token: str) -> tuple[int, tuple[str, str]]:
    try:
        body = msgspec.json.decode(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        namespace, _, name = str(body["start"]).rstrip("\0").rpartition("/")
        return int(body["rv"]), (namespace, name)
    except (binascii.Error, msgspec.DecodeError, KeyError, ValueError, TypeError, UnicodeDecodeError) as error:
        raise bad_request(f"continue key is not valid: {error}") from error


def list_body(call: Call, found: Page) -> Obj:
    """Return the List object."""
    meta: Obj = {"resourceVersion": str(found.rv)}
    if found.token:
        meta["continue"] = found.token
    if found.remaining is not None:
        meta["remainingItemCount"] = found.remaining
    items = found.items
    if not call.kind.custom:
        items = [{k: v for k, v in o.items() if k not in {"apiVersion", "kind"}} for o in items]
    return {"kind": call.kind.lists, "apiVersion": call.kind.api_version, "metadata": meta, "items": items}
