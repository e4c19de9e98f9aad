"""Checks of an installation: name, verdict, remedy. For the operator at three in the morning.

Each check looks and changes nothing. What it can't look at (no permission, no answer) is a verdict too, never silence.
"""

from __future__ import annotations

from orchestrator.doctor.checks import Finding, Verdict, examine

__all__ = ["Finding", "Verdict", "examine"]
