"""Names of the objects that we make: readable, safe for Kubernetes, the same on every try.

A name made from what the object is for is what makes "create" idempotent: firing twice, or from two controllers,
makes one object. Nothing random and no clock may enter here.
"""

from __future__ import annotations

import base64
import hashlib
import re

READABLE_LIMIT = 30
HASH_CHARACTERS = 12
_UNSAFE = re.compile(r"[^a-z0-9]+")


def object_name(readable: str, *parts: str) -> str:
    """Return 30 readable characters, a dash and 12 base32 characters of SHA-256 over `parts`.

    At most 43 characters, a DNS-1123 label. Each part is hashed with its length, so ("ab", "c") and ("a", "bc") differ.
    Only `parts` make it unique: `readable` is for people.
    """
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode()
        digest.update(len(raw).to_bytes(8, "big"))
        digest.update(raw)
    tail = base64.b32encode(digest.digest()).decode().lower()[:HASH_CHARACTERS]
    head = _UNSAFE.sub("-", readable.lower()).strip("-")[:READABLE_LIMIT].rstrip("-") or "tm"
    return f"{head}-{tail}"


def transient_name(uid: str) -> str:
    """Return the name of the Job, clone and re-homed objects of one recovery point or restore: `tm-<uid>`."""
    return f"tm-{uid}"
