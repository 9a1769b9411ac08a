"""How this process keeps memory. Never imports torch."""

import ctypes

# of glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed for what comes next; True where it does. To be called before threads start.

    Otherwise every tensor of more than 32 MiB is fetched from the system at each training step, which clears it page by
    page, and given back: three tenths of a Conv4's step at 64 px. One arena for all threads, since only the first
    holds such blocks; small tensors of two threads then wait for each other a little. docs/speed.md has the measures.
    Source: mallopt(3).
    """
    malloc = ctypes.CDLL(None)
    if not hasattr(malloc, "gnu_get_libc_version"):
        return False
    settings = {M_ARENA_MAX: 1, M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1}
    return all(malloc.mallopt(name, value) == 1 for name, value in settings.items())
