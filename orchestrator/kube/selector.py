"""Label selectors, as far as our own caches use them: `a=b,c!=d,e,!f`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Selector(NamedTuple):
    """A parsed selector: every requirement must hold."""

    requirements: tuple[tuple[str, str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Selector:
        """Parse equality and existence requirements; raises ValueError for set-based ones."""
        if "(" in text:
            raise ValueError(f"set-based selectors are not understood here: {text}")
        return cls(tuple(_requirement(part.strip()) for part in text.split(",") if part.strip()))

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Return whether `labels` fulfil every requirement."""
        return all(_holds(labels, *requirement) for requirement in self.requirements)


def _requirement(part: str) -> tuple[str, str, str]:
    if "!=" in part:
        key, _, value = part.partition("!=")
        return key.strip(), "!=", value.strip()
    if "=" in part:
        key, _, value = part.replace("==", "=").partition("=")
        return key.strip(), "=", value.strip()
    if part.startswith("!"):
        return part[1:].strip(), "!", ""
    return part, "?", ""


def _holds(labels: Mapping[str, str], key: str, operator: str, value: str) -> bool:
    match operator:
        case "=":
            return labels.get(key) == value
        case "!=":
            return labels.get(key) != value
        case "!":
            return key not in labels
        case _:
            return key in labels
