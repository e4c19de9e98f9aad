"""Kubernetes quantities, as far as sizes go."""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal

_FORM = re.compile(r"^([+-]?[0-9]+(?:\.[0-9]*)?|[+-]?\.[0-9]+)(?:([KMGTPE]i)|([numkMGTPE])|[eE]([+-]?[0-9]+))?$")
_BINARY = {f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", start=1)}
_DECIMAL = {"n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "k": Decimal(10) ** 3} | {
    unit: Decimal(1000) ** power for power, unit in enumerate("MGTPE", start=2)
}


def parse_quantity(text: str | float) -> int:
    """Return whole bytes, rounded up. Raises ValueError for what Kubernetes would refuse.

    Source: apimachinery `resource.Quantity` (suffixes Ki..Ei, n..E, decimal exponent).
    """
    match = _FORM.match(str(text))
    if match is None:
        raise ValueError(f"{text!r} is not a quantity such as 10Gi, 500M or 1073741824")
    number, binary, decimal, exponent = match.groups()
    factor = _BINARY[binary] if binary else _DECIMAL[decimal] if decimal else Decimal(10) ** int(exponent or 0)
    return int((Decimal(number) * factor).to_integral_value(rounding=ROUND_CEILING))


def exact_quantity(size_bytes: int) -> str:
    """Return the shortest quantity in binary units that says exactly so many bytes."""
    units = ["", "Ki", "Mi", "Gi", "Ti"]
    while size_bytes and size_bytes % 1024 == 0 and len(units) > 1:
        size_bytes //= 1024
        units.pop(0)
    return f"{size_bytes}{units[0]}"


def format_size(size_bytes: int) -> str:
    """Return a size as people read it, binary units, at most one decimal."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError
