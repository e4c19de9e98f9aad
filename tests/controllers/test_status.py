"""A status patch says what changed and nothing else, and gives the new status exactly."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.api.tidemark.fields import Bytes
from orchestrator.api.tidemark.recovery_point import PointBase, PointPhase, RecoveryPointStatus
from orchestrator.controllers.status import difference

pytestmark = pytest.mark.quick

statuses = st.builds(
    RecoveryPointStatus,
    phase=st.sampled_from(PointPhase),
    message=st.text(max_size=5),
    sequence=st.integers(0, 3),
    base=st.none() | st.builds(PointBase, point=st.text(max_size=3), uid=st.text(max_size=3)),
    bytes=st.none() | st.builds(Bytes, volume=st.integers(0, 2), allocated=st.none(), changed=st.none() | st.just(1),
                                read=st.just(0), uploaded=st.integers(0, 2)),
)  # fmt: skip


def merged(old: Any, patch: Any) -> Any:
    """RFC 7396, as an API server does it."""
    if not isinstance(patch, dict):
        return patch
    result = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


@given(old=statuses, new=statuses)
def test_the_patch_turns_the_old_status_into_the_new_one(old: RecoveryPointStatus, new: RecoveryPointStatus) -> None:
    after = merged(msgspec.to_builtins(old), difference(old, new))
    assert msgspec.convert(after, RecoveryPointStatus) == new


@given(status=statuses)
def test_nothing_is_said_when_nothing_changed(status: RecoveryPointStatus) -> None:
    assert difference(status, status) == {}
