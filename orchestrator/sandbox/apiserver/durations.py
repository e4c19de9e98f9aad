"""Ages as kubectl writes them."""

from __future__ import annotations

import datetime as dt

from orchestrator.sandbox.apiserver.objects import parse_time


def age(text: object) -> str:
    """Write how long ago a time was, as kubectl does (`5d3h`, `47s`, `<unknown>`, `<invalid>`)."""
    if not isinstance(text, str) or not text:
        return "<unknown>"
    try:
        seconds = int((dt.datetime.now(dt.UTC) - parse_time(text)).total_seconds())
    except ValueError:
        return "<invalid>"
    return human_duration(seconds)


def human_duration(seconds: int) -> str:
    """Write a duration as k8s.io/apimachinery `duration.HumanDuration`."""
    if seconds < -1:
        return "<invalid>"
    if seconds < 0:
        return "0s"
    if seconds < 120:
        return f"{seconds}s"
    minutes = seconds // 60
    if minutes < 10:
        return f"{minutes}m{seconds % 60}s" if seconds % 60 else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    hours = seconds // 3600
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    days = hours // 24
    if hours < 192:
        return f"{days}d{hours % 24}h" if hours % 24 else f"{days}d"
    if days < 365 * 2:
        return f"{days}d"
    years = days // 365
    if years < 8:
        return f"{years}y{days % 365}d" if days % 365 else f"{years}y"
    return f"{years}y"
