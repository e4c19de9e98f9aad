"""How long tests wait for what other tasks and processes do.

A limit only ends a test that would hang: what is waited for is looked at all the time, so a generous one costs nothing.
On a machine whose neighbours take most of its cores a minute's work can take five.
"""

from __future__ import annotations

LONG = 300.0
"""Seconds for a whole installation, a cluster or a mover to come to something."""
SHORT = 60.0
"""Seconds for tasks of this process, or one small program."""
