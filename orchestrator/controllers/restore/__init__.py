"""Restores: a recovery point written to a new volume, handed over last."""

from __future__ import annotations

from orchestrator.controllers.restore.controller import RestoreController

__all__ = ["RestoreController"]
