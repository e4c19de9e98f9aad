"""What the status page shows, and how: one self-contained page, nothing loaded from elsewhere, everything escaped."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

import msgspec

from policies.duration import format_duration

ROWS_SHOWN = 200
"""Rows of one table on the page; /status.json has them all."""

Standing = Literal["ok", "breached", "unprotected", "none"]


class PolicyRow(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One BackupPolicy."""

    namespace: str
    name: str
    standing: Standing
    """ok, breached, unprotected (a volume has no point at all), none (no objective)."""
    target_s: float | None = None
    worst_age_s: float | None = None
    worst_pvc: str = ""
    compliant: str = ""
    last_point: datetime | None = None
    next_run: str = ""
    suspended: bool = False
    message: str = ""


class PointRow(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One recovery point in flight."""

    namespace: str
    name: str
    pvc: str
    phase: str
    progress: str = ""
    mode: str = ""
    reason: str = ""
    since: datetime | None = None


class RepositoryRow(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One BackupRepository."""

    name: str
    url: str
    ready: str
    points: int | None = None
    size: str = ""
    last_checked: datetime | None = None
    last_maintenance: datetime | None = None
    last_verified: datetime | None = None
    hurt: int = 0
    """Points that the last verification found damaged or missing."""
    message: str = ""


class StatusPage(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """All of it, as things stood at `at`."""

    at: datetime
    version: str
    leading: bool
    policies: tuple[PolicyRow, ...] = ()
    points: tuple[PointRow, ...] = ()
    """Recovery points in flight, not the finished ones."""
    repositories: tuple[RepositoryRow, ...] = ()


STYLE = """
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.05rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #8884; vertical-align: top; }
th { font-weight: 600; } .dim { opacity: .65; }
.ok { color: #18794e; } .bad { color: #cd2b31; font-weight: 600; } .warn { color: #ad5700; }
@media (prefers-color-scheme: dark) { .ok { color: #4cc38a; } .bad { color: #ff6369; } .warn { color: #f1a10d; } }
"""
STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()

_STANDINGS: dict[Standing, tuple[str, str]] = {
    "ok": ("ok", "within RPO"),
    "breached": ("bad", "RPO breached"),
    "unprotected": ("bad", "not yet protected"),
    "none": ("dim", "no objective"),
}


def render(page: StatusPage) -> str:
    """Return the page as HTML. Every value is escaped; ages are told against `page.at`."""
    breached = sum(row.standing in {"breached", "unprotected"} for row in page.policies)
    headline = _mark("bad", f"{breached} of {len(page.policies)} policies out of RPO") if breached else ""
    role = "leading" if page.leading else "standing by"
    return "".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Tidemark</title>',
            '<meta name="viewport" content="width=device-width"><meta http-equiv="refresh" content="10">',
            f"<style>{STYLE}</style></head><body><h1>Tidemark</h1>",
            f'<p class="dim">{_text(page.version)} · {role} · {_instant(page.at)}</p>',
            f"<p>{headline}</p>" if headline else "",
            _policies(page),
            _points(page),
            _repositories(page),
            '<p class="dim"><a href="/metrics">metrics</a> · <a href="/status.json">status.json</a> · ',
            '<a href="/readyz">readyz</a></p></body></html>',
        )
    )


def _policies(page: StatusPage) -> str:
    rows = []
    for row in page.policies:
        css, words = _STANDINGS[row.standing]
        lag = _seconds(row.worst_age_s) + (f" ({row.worst_pvc})" if row.worst_pvc else "")
        rows.append(
            (
                _text(f"{row.namespace}/{row.name}"),
                _mark(css, words) + (" " + _mark("warn", "suspended") if row.suspended else ""),
                _text(_seconds(row.target_s)),
                _text(lag),
                _text(row.compliant),
                _ago(row.last_point, page.at),
                _text(row.next_run),
                _text(row.message),
            )
        )
    heads = ("Policy", "RPO", "Target", "Worst age", "Compliant", "Last point", "Next run", "")
    return _table("Policies", heads, rows, "No BackupPolicy yet.")


def _points(page: StatusPage) -> str:
    rows = [
        (
            _text(f"{row.namespace}/{row.name}"),
            _text(row.pvc),
            _text(row.phase),
            _text(row.progress),
            _text(row.mode),
            _ago(row.since, page.at),
            _text(row.reason),
        )
        for row in page.points
    ]
    heads = ("Point", "Volume", "Phase", "Progress", "Mode", "Started", "")
    return _table("In flight", heads, rows, "Nothing is being copied.")


def _repositories(page: StatusPage) -> str:
    marks = {"True": ("ok", "ready"), "False": ("bad", "not ready")}
    rows = [
        (
            _text(row.name),
            _text(row.url),
            _mark(*marks.get(row.ready, ("dim", "not known yet"))),
            _text("" if row.points is None else str(row.points)),
            _text(row.size),
            _ago(row.last_checked, page.at),
            _ago(row.last_maintenance, page.at),
            _ago(row.last_verified, page.at) + (" " + _mark("bad", f"{row.hurt} points hurt") if row.hurt else ""),
            _text(row.message),
        )
        for row in page.repositories
    ]
    heads = ("Repository", "URL", "State", "Points", "Size", "Checked", "Swept", "Verified", "")
    return _table("Repositories", heads, rows, "No BackupRepository yet: points are snapshots only.")


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> str:
    if not rows:
        return f'<h2>{_text(title)}</h2><p class="dim">{_text(empty)}</p>'
    head = "".join(f"<th>{_text(h)}</th>" for h in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows[:ROWS_SHOWN])
    more = len(rows) - ROWS_SHOWN
    rest = f'<p class="dim">{more} more in <a href="/status.json">status.json</a></p>' if more > 0 else ""
    return f"<h2>{_text(title)}</h2><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{rest}"


def _text(value: str) -> str:
    return html.escape(value, quote=True)


def _mark(css: str, words: str) -> str:
    return f'<span class="{css}">{_text(words)}</span>'


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    # Above an hour, seconds only make the table jump.
    whole = int(value) if value < 3600 else int(value) // 60 * 60
    return format_duration(timedelta(seconds=whole))


def _instant(value: datetime) -> str:
    return _text(value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"))


def _ago(value: datetime | None, now: datetime) -> str:
    if value is None:
        return '<span class="dim">never</span>'
    age = _seconds(max((now - value).total_seconds(), 0.0))
    return f'<time title="{_instant(value)}">{age} ago</time>'
