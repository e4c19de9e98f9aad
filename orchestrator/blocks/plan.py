"""From checked ranges to the set of chunks that a mover reads.

Adding too much is always safe, adding too little never is: what a reported range touches, what a resize changed and
what is known to be damaged in the base all go in.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from orchestrator.extents import ChunkSet, Extents


async def collect(batches: AsyncIterator[Extents], volume_size: int, chunk_size: int) -> ChunkSet:
    """Return every chunk that a range touches. Streams: memory is one bit per chunk and one batch."""
    chunks = ChunkSet(volume_size, chunk_size)
    async for batch in batches:
        chunks.add(batch)
    return chunks


def whole(volume_size: int, chunk_size: int) -> ChunkSet:
    """Return every chunk of the volume: the full rung."""
    chunks = ChunkSet(volume_size, chunk_size)
    chunks.add_chunks(0, chunks.chunk_count)
    return chunks


def add_resized(chunks: ChunkSet, base_size: int) -> None:
    """Add what a change of size alone made different from the base, whether or not it was reported.

    Grown: everything from the old end on, with the chunk that was short there. Shrunk: the chunk that is short now.
    """
    if chunks.volume_size > base_size:
        chunks.add_range(base_size, chunks.volume_size - base_size)
    elif chunks.volume_size < base_size and chunks.volume_size % chunks.chunk_size:
        chunks.add_range(chunks.volume_size - 1, 1)
