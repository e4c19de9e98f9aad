"""Tidemark: Kubernetes volume backup at the cost of what changed."""
