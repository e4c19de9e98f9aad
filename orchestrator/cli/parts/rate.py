"""Read how many bytes per second a command may take.

`tidemark copy`, whose start is a good part of a small increment, reads its limit here too: what only a quantity with
a unit needs is imported where there is one.
"""

from __future__ import annotations

MOST = 1 << 60
"""Beyond that nothing is limited, and sums of it aren't exact."""


def bytes_per_second(text: str) -> int:
    """Return a limit given as bytes or as a Kubernetes quantity (`100M`, `64Mi`); ValueError, in a person's words."""
    try:
        limit = int(text)
    except ValueError:
        limit = _quantity(text.strip())
    if limit < 1:
        raise ValueError(f"{text!r} is less than 1 byte per second; leave the limit out to have none")
    if limit > MOST:
        raise ValueError(f"{text!r} is more than anything does; leave the limit out to have none")
    return limit


def given(text: str) -> int:
    """Return a limit as Typer's options read it: what is none is wrong usage."""
    import typer

    try:
        return bytes_per_second(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _quantity(text: str) -> int:
    from orchestrator.api.quantity import parse_quantity

    if text.endswith(("n", "u", "m")) and text[:-1].strip("+-.0123456789") == "":
        # Kubernetes' thousandths: rounded up, 10m would be one byte per second.
        raise ValueError(f"{text!r} is less than a byte: a million is M, 1024 times 1024 is Mi")
    try:
        return parse_quantity(text)
    except ArithmeticError:  # an exponent beyond what is reckoned with
        raise ValueError(f"{text!r} is not a quantity such as 10Gi, 500M or 1073741824") from None
