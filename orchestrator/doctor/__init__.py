"""Checks of an installation: name, verdict, remedy. For the operator at three in the morning.

Each check looks and changes nothing. What it can't look at (no permission, no answer, a name that resolves only inside
the cluster) is a verdict too, never silence. What must never happen here: a key, a token or a credential in a finding.
"""

from __future__ import annotations

from orchestrator.doctor.checks import examine
from orchestrator.doctor.finding import Finding, Verdict

__all__ = ["Finding", "Verdict", "examine"]
