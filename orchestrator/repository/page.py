"""Pages of the chunk map as bytes: leaves with one entry per chunk that isn't a hole, inner pages above them.

A leaf carries the table of the packs it uses. An inner page of level 1 also carries, for each leaf, the few entries
that changed since that leaf was written (its overlay): scattered changes then cost 44 bytes each, not a leaf.
"""

from __future__ import annotations
