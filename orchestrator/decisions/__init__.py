"""What to do next, from what was seen. Pure, synchronous and total: no I/O, no clock, no memory.

One module per noun: `decide(seen) -> Step`, the life of the object drawn beside it. What must never happen here: a
look at the world, or a case that no Step answers.
"""
