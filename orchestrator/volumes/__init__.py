"""Kubernetes' storage objects: snapshots, re-homed snapshots, clones, mover Jobs and their removal.

Each file has a pure `build`, an idempotent `ensure`, a `look` and an ordered `remove`. What must never happen here: a
decision about a recovery point (that is `decisions/`), a delete without a uid, or an object of somebody else adopted
because it has the name that we wanted.
"""
