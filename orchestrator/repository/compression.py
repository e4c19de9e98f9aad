"""Compress a frame when it helps: zstd level 1, or as it is."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from orchestrator.repository.crypto import Bytes

RAW, ZSTD = 0, 1
LEVEL = 1
_own = threading.local()
"""Each thread's compressor: making one for every chunk takes a tenth of what a small chunk takes."""


def compress(data: Bytes) -> tuple[int, Bytes]:
    """Return (codec, bytes): zstd-1 if that saves at least 1/16, else the data itself, not copied."""
    compressor: zstd.ZstdCompressor | None = getattr(_own, "compressor", None)
    if compressor is None:
        compressor = zstd.ZstdCompressor(LEVEL)
    _own.compressor = None  # one that broke off in a frame is never used again
    packed = compressor.compress(data, compressor.FLUSH_FRAME)
    _own.compressor = compressor
    if len(packed) <= len(data) - len(data) // 16:
        return ZSTD, packed
    return RAW, data


def decompress(codec: int, data: Bytes, limit: int) -> Bytes:
    """Undo `compress`; ValueError when the codec is unknown, the data malformed or longer than `limit` bytes."""
    if codec == RAW:
        if len(data) > limit:
            raise ValueError(f"{len(data)} bytes, at most {limit} expected")
        return data
    if codec != ZSTD:
        raise ValueError(f"codec {codec} is unknown")
    reader = zstd.ZstdDecompressor()
    try:
        plain = reader.decompress(data, max_length=limit + 1)
    except zstd.ZstdError as error:
        raise ValueError("not a zstd frame") from error
    if len(plain) > limit or not reader.eof or reader.unused_data:
        raise ValueError(f"more than {limit} bytes, or not one whole zstd frame")
    return plain
