"""Look at a namespace until nothing that was seen alive went meanwhile: records, map pages and relocation records.

Others remove, sweep and compact while a look lasts, for days if its process was stopped. What it saw alive may then be
gone, and rightly so. And a removal that ran between two of its listings shows neither its marker nor the manifest: the
point's intent looks like an unfinished backup's, on a base that was swept long ago. So it looks anew. Only what
something still names that lives is missed by anybody. What must never happen here: part of one look used with another,
or a look with a gap taken for whole.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Collection
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from orchestrator.repository.census import Census
from orchestrator.repository.errors import Damaged, ObjectMissing, SweepBlocked, SweepOvertaken, UnsupportedFormat
from orchestrator.repository.following import Following
from orchestrator.repository.vault import Vault

LOOKS = 3
MISSING = "it is missing"


async def look(
    vault: Vault,
    folder: Path,
    *,
    now: datetime,
    before: datetime,
    intent_age: timedelta,
    end: Collection[str] = (),
) -> tuple[Census, Following]:
    """Return a census and where the packs that it saw went, whole; of a blind one nothing but the census counts.

    `before`: a newer relocation record put before then takes the place of older ones. `end`: intents that count as
    expired. Both are in files under `folder`. Raises SweepBlocked when something that says what is alive can't be
    read, SweepOvertaken, and the store's Retryable errors.
    """
    missed: _Missed | None = None
    for number in range(LOOKS):
        place = folder / f"look-{number}"
        place.mkdir()
        census = Census(vault, place)
        following, marking = Following(vault, census, place), False
        try:
            await census.take(now=now, intent_age=intent_age, end=end)
            if missed is not None and missed.is_needed(census) and not census.overdue:
                raise SweepBlocked(missed.key, MISSING)
            marking = True
            await census.mark(apart=missed is not None and missed.page)
            marking = False
            if not census.blind:
                await following.take(before)
            return census, following
        except (Damaged, UnsupportedFormat) as error:
            if not (marking and census.overdue) or (missed is not None and missed.page):
                raise SweepBlocked(error.key, error.what) from error
            missed = _Missed(error.key, marking, census.roots)
        except ObjectMissing as error:
            if missed is not None and (missed.is_needed(census) if marking else missed.key == error.key):
                raise SweepBlocked(error.key, MISSING) from error
            missed = _Missed(error.key, marking, census.roots)
        await asyncio.to_thread(shutil.rmtree, place)
    assert missed is not None
    raise SweepOvertaken(missed.key)


class _Missed(NamedTuple):
    """What one look could not read."""

    key: str
    page: bool
    """It was a page of a map, and not a record: those are listed first, and one that went isn't listed again."""
    roots: set[str]
    """What that look marked from."""

    def is_needed(self, census: Census) -> bool:
        """Say whether a page is still reached: all that the look marked from is named by something alive to this day.

        What is unreached stays unreached. So if a page was swept rightly, a root that led to it had to go before.
        """
        return self.page and self.roots <= census.roots
