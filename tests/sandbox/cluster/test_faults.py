"""Faults are switched on as asked, or not at all."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.sandbox.faults import BadFaultValue, UnknownFault, switch

pytestmark = pytest.mark.quick


class Written:
    """Keeps what would be written to the cluster."""

    def __init__(self) -> None:
        self.data: dict[str, str] = {}

    async def ensure(self, _kind: Any, manifest: dict[str, Any]) -> None:
        self.data |= manifest["data"]


@pytest.mark.parametrize(
    ("fault", "value"), [("clone-slow", "soon"), ("attach-limit", "0"), ("cbt-slow", "-1"), ("snapshot-slow", "nan")]
)
async def test_a_value_that_would_not_be_heeded_is_refused(fault: str, value: str) -> None:
    api: Any = Written()
    with pytest.raises(BadFaultValue):
        await switch(api, fault, value)
    assert api.data == {}


async def test_a_fault_that_there_is_not_is_refused() -> None:
    api: Any = Written()
    with pytest.raises(UnknownFault):
        await switch(api, "cbt-sideways", "on")


@pytest.mark.parametrize(
    ("fault", "value", "kept"),
    [
        ("clone-slow", "2.5", "2.5"),
        ("clone-slow", "on", "on"),
        ("attach-limit", None, "off"),
        ("cbt-block-type", "FIXED_LENGTH", "FIXED_LENGTH"),
    ],
)
async def test_a_fault_gets_the_value_that_was_asked_for(fault: str, value: str | None, kept: str) -> None:
    api: Any = Written()
    await switch(api, fault, value)
    assert api.data == {fault: kept}
