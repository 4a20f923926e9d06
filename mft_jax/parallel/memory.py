"""The C library's allocator, told to keep freed memory for the next compiled call."""

import ctypes

# glibc's mallopt parameters (malloc.h) and what they are set to.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8
_SETTINGS = {_MMAP_THRESHOLD: 1 << 30, _TRIM_THRESHOLD: (1 << 31) - 1, _TOP_PAD: 1 << 28, _ARENA_MAX: 1}


def keep_freed_memory() -> bool:
    """Stops glibc from returning memory to the kernel after every call; a fifth of a CPU training step is page faults otherwise.

    For a program that owns its process, before it computes. Returns False where the C library has no such setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return all(mallopt(parameter, value) == 1 for parameter, value in _SETTINGS.items())
