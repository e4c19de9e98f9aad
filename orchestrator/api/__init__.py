"""The shapes of objects: ours (`tidemark/`), slices of others (`foreign/`), and what crosses into a mover.

Frozen msgspec Structs without behaviour that could do I/O. Anything that needs a clock, a client or a decision
belongs above.
"""
