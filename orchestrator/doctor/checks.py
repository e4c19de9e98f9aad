"""Run every check, in the order in which an operator would look."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime
from email.utils import parsedate_to_datetime

import aiohttp

from orchestrator.clock import Clock
from orchestrator.config import Settings
from orchestrator.doctor.cluster import api_server, clocks, definitions
from orchestrator.doctor.controller import controller, permissions
from orchestrator.doctor.finding import Check, Finding, Place, Verdict, bad, warn
from orchestrator.doctor.repositories import repositories
from orchestrator.doctor.storage import drivers
from orchestrator.doctor.work import backups, leftovers, policies
from orchestrator.errors import TidemarkError
from orchestrator.kube.client import Client
from orchestrator.kube.errors import Forbidden, NotFound
from orchestrator.kube.transport import Transport

ASK_S = 10.0
CHECK_S = 60.0

CHECKS: tuple[Check, ...] = (
    api_server,
    clocks,
    definitions,
    controller,
    permissions,
    drivers,
    repositories,
    policies,
    backups,
    leftovers,
)


async def examine(
    client: Client, settings: Settings, clock: Clock, transport: Transport | None = None
) -> list[Finding]:
    """Run every check and return what they found. A check that can't look says so, and the others go on.

    `transport` is the client's own; without it nobody asks the API server what time it is.
    """
    here, server, version = await _ask_time(transport, clock)
    place = Place(client, settings, here, server, version)
    found: list[Finding] = []
    for check in CHECKS:
        mine, alive = await run_check(check, place)
        found.extend(mine)
        if not alive and check is api_server:
            break
    return found


async def run_check(check: Check, place: Place) -> tuple[list[Finding], bool]:
    """Return what one check found, what kept it from looking included, and whether it got an answer."""
    name = check.__name__.replace("_", "-")
    found: list[Finding] = []
    try:
        async with asyncio.timeout(CHECK_S):
            async for finding in check(place):
                found.append(finding)  # noqa: PERF401 - what was found before an error counts
    except Forbidden as error:
        found.append(warn(name, f"could not look any further: {_words(error)}", "Run it as an admin of the cluster."))
    except NotFound as error:
        found.append(
            warn(name, f"could not look any further: {error.target.resource} is not there", "See definitions above.")
        )
    except TidemarkError as error:
        found.append(bad(name, f"could not look: {error}", error.remedy))
        return found, False
    except TimeoutError:
        found.append(bad(name, f"could not look within {CHECK_S:.0f} s", "The API server is slow; try again."))
        return found, False
    return found, True


async def _ask_time(transport: Transport | None, clock: Clock) -> tuple[datetime, datetime | None, str]:
    """Return our clock and the API server's Date header at one moment, and its version."""
    before = clock.now()
    if transport is None:
        return before, None, ""
    try:
        async with transport.request("GET", "/version", timeout_s=ASK_S) as response:
            after = clock.now()
            body = await response.read()
            date = response.headers.get("Date", "")
    except (aiohttp.ClientError, OSError, TimeoutError):
        return before, None, ""  # the first check says so
    middle = before + (after - before) / 2
    return middle, _date(date), _version(body)


def _words(error: Forbidden) -> str:
    """Return the server's own words, which name person, verb and kind already."""
    return str(error).removeprefix(f"{error.target}: ")


def _date(text: str) -> datetime | None:
    try:
        return parsedate_to_datetime(text)
    except ValueError:
        return None


def _version(body: bytes) -> str:
    try:
        answer = json.loads(body)
    except ValueError:
        return ""
    return str(answer.get("gitVersion", "")) if isinstance(answer, dict) else ""


__all__ = ["CHECKS", "Finding", "Verdict", "examine", "run_check"]
