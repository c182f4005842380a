"""What becomes of memory that arrays no longer need."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""
KEPT, LARGEST_KEPT = 2**30, 2**25
"""Bytes; glibc takes no larger M_MMAP_THRESHOLD on 64 bits."""


def keep_freed_memory() -> None:
    """Let this process use the memory of freed arrays again, not give it back and ask anew.

    Each batch's arrays would otherwise be new pages, which the system clears one by one: 8 % of an
    alert's CPU time. At most `KEPT` bytes are held free at the heap's end, and arrays above
    `LARGEST_KEPT` are given back as before. Without glibc this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(M_TRIM_THRESHOLD, KEPT)
