"""Slices of other people's objects: only the fields that we read or patch. Never PUT back whole."""
