"""The one tree of what can go wrong.

Every error that leaves a room is `Retryable` (the next pass may succeed) or `Terminal` (it will not, until a person
or the spec changes something). A class names its `reason`, which is at once the condition reason, the metric label
and the anchor in the runbook, and a `remedy`: what a person can do. Build errors from facts, raise them `from` the
library's error at the one door. An error never holds a token, a key or a secret's value.
"""

from __future__ import annotations

import re
from typing import ClassVar

MESSAGE_LIMIT = 512
"""Characters of a message that reach a condition or an Event (control plane rule: conditions <= 512)."""

JWT = r"eyJ[\w-]{8,}(?:\.[\w-]*)*"
"""A JSON web token, or the beginning of one: base64 of `{"`. Host and group names have dots too, and are not struck."""
BEARER = r"(?i)\bbearer(?:\s+|%20)[^\s\"',]+"
STRUCK = "[redacted]"


def without_tokens(text: str) -> str:
    """Return `text` with whatever looks like a bearer token struck out: the one rule for words that others said."""
    return re.sub(JWT, STRUCK, re.sub(BEARER, STRUCK, text))


class TidemarkError(Exception):
    """Base of every error that Tidemark raises on purpose."""

    reason: ClassVar[str] = "Error"
    remedy: ClassVar[str] = ""

    def sentence(self) -> str:
        """Return message and remedy as one bounded text for conditions, Events and the CLI."""
        text = str(self).strip()
        if self.remedy:
            text = f"{text}. {self.remedy}" if text and not text.endswith((".", "!", "?")) else f"{text} {self.remedy}"
        return text if len(text) <= MESSAGE_LIMIT else text[: MESSAGE_LIMIT - 1] + "…"


class Retryable(TidemarkError):
    """The same step may succeed later without anybody changing anything."""

    reason: ClassVar[str] = "Retrying"


class Terminal(TidemarkError):
    """The step cannot succeed until a person or the spec changes something."""

    reason: ClassVar[str] = "Failed"


class LeaseStale(TidemarkError):
    """This process may no longer write: its lease was not renewed in time. It must end."""

    reason: ClassVar[str] = "LeaseStale"
    remedy: ClassVar[str] = "Another controller has taken over or will; this one ends and is started again."
