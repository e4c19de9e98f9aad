"""Fixtures of the sandbox's own tests."""

from tests.sandbox.cluster.fixtures import directory, sandbox, world

__all__ = ["directory", "sandbox", "world"]
