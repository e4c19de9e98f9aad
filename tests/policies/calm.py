"""Hypothesis settings for machines that do other things at the same time: no verdict depends on speed."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

CALM = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
