"""Memory for large results that is used again: no page faults, and aligned to a cache line.

Fresh memory costs a page fault every 4 kB (or 2 MB) and is zeroed by the system before it is written: up to a quarter of the time of a
decode. Here the memory of an array whose last view is gone waits for the next array of about its size. Nobody has to give
anything back, and nobody can keep too little: the array holds its memory as any array does.

What waits is bounded: an array that nothing fits lets go of all that waits, but for 64 MB. So the peak is nearly that of plain arrays.
"""

import math
import threading

import numpy as np

LARGE = 1 << 20  # bytes; what is smaller comes out of the memory that malloc keeps anyway
SLACK = 2  # times the size asked for, at most, is handed out: after a halving of the channels the old memory still serves
WAITING = 64 << 20  # bytes that may wait for ever

_waiting: list = []
_lock = threading.Lock()


class _Memory(np.ndarray):
    """Bytes that are handed out. A type of its own, because NumPy shortens chains of views of one type: a view would skip the lease."""


class _Lease(np.ndarray):
    """The base of one result and of all its views. It goes with the last of them, and its memory waits again."""

    def __del__(self):
        _waiting.append(self.base)


def _take(size: int) -> _Memory:
    """Memory of at least `size` bytes that nobody uses. Only `append` happens to the list without the lock."""
    with _lock:
        fitting = [(raw.nbytes, i) for i, raw in enumerate(_waiting[:]) if size <= raw.nbytes <= SLACK * size]
        if fitting:
            return _waiting.pop(min(fitting)[1])
        while sum(raw.nbytes for raw in _waiting[:]) > WAITING:
            _waiting.pop(max((raw.nbytes, i) for i, raw in enumerate(_waiting[:]))[1])
    raw = np.empty(size + 64, dtype="uint8")
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(_Memory)


def empty(shape, dtype) -> np.ndarray:
    """An uninitialised array, as np.empty makes it."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE:
        return np.empty(shape, dtype=dtype)
    return np.ndarray(shape, dtype, buffer=_take(size).view(_Lease))
