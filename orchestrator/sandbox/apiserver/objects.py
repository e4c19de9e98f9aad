"""The shape that every API object has here: plain JSON values, and the few things that are done with them everywhere.

Objects that came out of the store are shared between readers and must never be changed in place: `clone` first.
"""

from __future__ import annotations

import datetime as dt
import secrets
from typing import Any

Obj = dict[str, Any]

#: The letters that Kubernetes makes generated names of: no vowels, so that no words appear.
_NAME_LETTERS = "bcdfghjklmnpqrstvwxz2456789"


def clone(value: Any) -> Any:
    """Copy a JSON value deeply; several times faster than `copy.deepcopy`."""
    if isinstance(value, dict):
        return {k: clone(v) for k, v in value.items()}
    if isinstance(value, list):
        return [clone(v) for v in value]
    return value


def now_text() -> str:
    """Return this second as Kubernetes writes times."""
    return time_text(dt.datetime.now(dt.UTC))


def time_text(moment: dt.datetime) -> str:
    """Write a time as Kubernetes does, in whole seconds of UTC."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> dt.datetime:
    """Read an RFC 3339 time; raises ValueError."""
    parsed = dt.datetime.fromisoformat(text)
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=dt.UTC)


def random_suffix(length: int = 5) -> str:
    """Return the random end of a generated name."""
    return "".join(secrets.choice(_NAME_LETTERS) for _ in range(length))


def metadata(obj: Obj) -> Obj:
    """Return the object's metadata, making it when it is missing."""
    found = obj.get("metadata")
    if not isinstance(found, dict):
        found = obj["metadata"] = {}
    return found


def name_of(obj: Obj) -> str:
    return str((obj.get("metadata") or {}).get("name") or "")


def namespace_of(obj: Obj) -> str:
    return str((obj.get("metadata") or {}).get("namespace") or "")


def uid_of(obj: Obj) -> str:
    return str((obj.get("metadata") or {}).get("uid") or "")
