"""What an interrupted try of the same intent has already stored, so that a rerun copies only the tail."""

from __future__ import annotations
