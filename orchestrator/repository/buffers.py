"""Large buffers that cost little to begin with.

Fresh memory comes from the kernel zeroed, page by page as it is touched. In huge pages that is a few dozen faults for
a pack instead of twelve thousand, and what is never touched is never paid for.
"""

from __future__ import annotations

import contextlib
import functools
import mmap

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BELOW, KEPT_AT_MOST = 4 << 20, 8 << 20
"""Bytes: single pieces larger than the first go back to the kernel; each heap keeps no more than the second."""


def big_buffer(size: int) -> mmap.mmap:
    """Return `size` bytes of zeroed private memory, page aligned, in huge pages where the kernel has them."""
    buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel built without them: small pages serve as well
        buffer.madvise(mmap.MADV_HUGEPAGE)
    return buffer


@functools.cache
def keep_freed_memory() -> None:
    """Have the C library keep what is freed for the next chunk, once per process; does nothing where it can't.

    By default it gives every chunk's memory back to the kernel and takes as much anew, zeroed page by page: a third of
    the time of decompressing. What is kept is bounded; larger buffers go back as ever.
    """
    import ctypes

    with contextlib.suppress(AttributeError, OSError):  # another C library than glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, KEPT_BELOW)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_AT_MOST)
