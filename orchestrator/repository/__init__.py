"""The on-disk format: what a recovery point is made of, how it is sealed, committed, found again and swept.

The format is written down in `docs/repository-format.md`; this room is its only implementation in the product.
What must never happen here: an object overwritten, a manifest put before all that it needs, a nonce used twice
under one key, a delete of something that a manifest or a live intent can reach, a key in a log line.
"""
