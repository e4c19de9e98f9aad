"""The log: one line per record, JSON or plain, with secrets struck out at the last door before the stream.

Redaction comes after formatting: arguments, extra fields and tracebacks pass through it as well. It is the last net;
the first rule stays that nothing puts a secret into a record.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import logging
import re
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TextIO

from orchestrator.errors import JWT, STRUCK

SHORTEST_SECRET = 6
"""Registered values under this length are not struck: they would blot out ordinary words."""
KEY_BYTES = 32
LINE_LIMIT = 16384
"""Characters of one line; a longer one is cut, after redaction."""

_PATTERNS = (
    (r"(?s)-----BEGIN [A-Z0-9 ]+-----.*?(?:-----END [A-Z0-9 ]+-----|\Z)", STRUCK),
    (JWT, STRUCK),
    (r"(?i)\b(bearer|basic)(\s+|%20)[\w.~+/=:-]{6,}", rf"\1 {STRUCK}"),
    (r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b", STRUCK),
    (
        r"(?i)([?&](?:sig|x-amz-signature|x-amz-credential|x-amz-security-token|token)=)[^&\s\"'\\]+",
        rf"\1{STRUCK}",
    ),
    (r"(?i)\b([a-z][a-z0-9+.-]*://)[^/\s:@\"']*:[^/\s@\"']+@", rf"\1{STRUCK}@"),
    (
        # Quotes may be escaped: a JSON text inside a JSON line.
        (
            r"(?i)([\w.-]*(?:secret_?(?:access_?)?key|access_?key(?:_?id)?|account_?key|master[._]?key|private_?key"
            r"|password|passwd|passphrase|client_?secret|security_?token|session_?token|sas_?token|api_?key"
            r"|authorization|credentials?|token)(?:\\*[\"'])?\s*[:=]\s*)"
            r"(b?\\*\"(?:[^\"\\]|\\[^\"])*\\*\"|b?\\*'[^']*'|[^\s,;&}\])\"']+)"
        ),
        rf"\1{STRUCK}",
    ),
)
"""What looks like a secret. Compiled for the first line that is logged: a mover says little, and is to start fast."""

_values: frozenset[str] = frozenset()
_values_lock = threading.RLock()  # what the garbage collector ends may log, in the midst of making the pattern
_values_pattern: re.Pattern[str] | None = None


def redact(value: str | bytes) -> None:
    """Have `value` struck from every later line; also as the forms it takes in JSON and repr. Idempotent.

    For secrets read at run time whose shape nothing gives away. Values under six characters are ignored.
    """
    global _values, _values_pattern
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
    text = text.strip()
    if len(text) < SHORTEST_SECRET:
        return
    forms = {text, json.dumps(text)[1:-1], repr(text)[1:-1], json.dumps(repr(text)[1:-1])[1:-1]}
    forms |= {line.strip() for line in text.splitlines() if len(line.strip()) >= 16}
    with _values_lock:
        if forms <= _values:
            return
        _values |= forms  # a new set: who strikes a line may be looking through the old one
        _values_pattern = None


PUBLIC_OPTION = (
    r"(?i)region|endpoint|bucket|container|proxy_url|timeout|url_style|virtual_hosted|allow_|skip_|conditional_put"
    r"|account_name|use_emulator|checksum"
)
"""Names of store options that say where and how, never who: struck they would blot out ordinary words."""


def redact_options(options: Mapping[str, str]) -> None:
    """Have the values of store options struck, but for those that are no secret by their name."""
    for name, value in options.items():
        if not re.search(PUBLIC_OPTION, name):
            redact(value)


def redact_key(key: str | bytes) -> None:
    """Have a key struck: as it is, and in hex and base64 whichever of them it was given in."""
    raw = key if isinstance(key, bytes) else key.encode()
    redact(raw)
    redact(base64.b64encode(raw))
    forms = {raw} if len(raw) == KEY_BYTES else set()
    text = raw.strip()
    with contextlib.suppress(ValueError):
        forms.add(bytes.fromhex(text.decode("ascii", "replace")))
    with contextlib.suppress(ValueError):
        forms.add(base64.b64decode(text.replace(b"-", b"+").replace(b"_", b"/"), validate=True))
    for form in forms:
        if len(form) == KEY_BYTES:
            redact(form.hex())
            redact(form.hex().upper())
            redact(base64.b64encode(form.hex().encode()))
            redact(base64.b64encode(form).rstrip(b"="))
            redact(base64.urlsafe_b64encode(form).rstrip(b"="))
            redact(repr(form)[2:-1])


def strike(text: str) -> str:
    """Return `text` without what looks like, or is registered as, a secret."""
    # Most lines hold none, and to see that is fifty times faster than to make or to use the pattern.
    if any(value in text for value in _values):
        text = (_values_pattern or _pattern_of_values()).sub(STRUCK, text)
    for form, replacement in _forms():
        text = form.sub(replacement, text)
    return text


def _pattern_of_values() -> re.Pattern[str]:
    global _values_pattern
    with _values_lock:
        # The longest first: a secret that contains another must not leave its tail behind.
        made = re.compile("|".join(re.escape(value) for value in sorted(_values, key=len, reverse=True)))
        _values_pattern = made
    return made


@functools.cache
def _forms() -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(form), replacement) for form, replacement in _PATTERNS)


_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message, what was given as `extra`, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, secrets struck."""
        # Each part is struck before it is quoted, because quoting hides line ends and quotes from the patterns.
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _cut(strike(record.getMessage())),
        }
        for key, value in vars(record).items():
            if key not in _STANDARD and not key.startswith("_"):
                line[strike(key)] = _plain(key, value)
        if record.exc_info:
            line["exception"] = _cut(strike(self.formatException(record.exc_info)))
        elif record.exc_text:
            line["exception"] = _cut(strike(record.exc_text))
        if record.stack_info:
            line["stack"] = _cut(strike(record.stack_info))
        return json.dumps(line, ensure_ascii=False, default=str)


class PlainFormatter(logging.Formatter):
    """One readable line per record; a traceback follows on lines of its own."""

    def __init__(self) -> None:
        """Fix the layout."""
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """Return the text, secrets struck."""
        return _cut(strike(super().format(record)))


def _plain(key: str, value: object) -> object:
    if isinstance(value, bool | int | float) or value is None:
        return value
    shown = value if isinstance(value, str) else repr(value)
    # The key tells what the value is: `password=...` is struck by the same patterns that strike it in a text.
    whole = strike(f"{key}={shown}")
    return _cut(whole.removeprefix(f"{key}=")) if whole.startswith(f"{key}=") else STRUCK


def _cut(text: str) -> str:
    return text if len(text) <= LINE_LIMIT else text[: LINE_LIMIT - 1] + "…"


def setup(level: str = "info", json: bool = True, stream: TextIO | None = None) -> None:
    """Send all logging to `stream` (standard error), in one format, through redaction. Idempotent.

    Raises ValueError for a level that is none of debug, info, warning, error.
    """
    number = {"debug": 10, "info": 20, "warning": 30, "error": 40}.get(level.lower())
    if number is None:
        raise ValueError(f"{level!r} is not a log level; use debug, info, warning or error")
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if json else PlainFormatter())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(number)
    # These tell of every request and every timer at info.
    for noisy in ("aiohttp.access", "apscheduler", "kubernetes_asyncio", "grpclib", "asyncio", "hpack"):
        logging.getLogger(noisy).setLevel(max(number, logging.WARNING))
