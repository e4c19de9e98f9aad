"""Tidemark: Kubernetes volume backup at the cost of what changed."""

__version__ = "0.1.0"
"""Kept equal to pyproject.toml's by a test: asking importlib.metadata costs a mover a seventh of its start."""
