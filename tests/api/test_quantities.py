"""Sizes as Kubernetes writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis.strategies import integers

from orchestrator.api.quantity import exact_quantity, parse_quantity

pytestmark = pytest.mark.quick


@given(integers(0, 1 << 60))
def test_an_exact_quantity_says_exactly_so_many_bytes(size: int) -> None:
    assert parse_quantity(exact_quantity(size)) == size
    assert parse_quantity(exact_quantity(size << 16)) == size << 16


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0"), (1000, "1000"), (64 << 10, "64Ki"), (1 << 20, "1Mi"), (1 << 50, "1024Ti"), (1536 << 10, "1536Ki")],
)
def test_an_exact_quantity_is_the_shortest_in_binary_units(size: int, text: str) -> None:
    assert exact_quantity(size) == text
