"""One pool of threads for all ops: each op cuts its own work, and BLAS runs on one thread inside every piece.

NumPy releases the interpreter lock inside its loops and in BLAS, so Python threads do run side by side. Cutting the work above
BLAS threads everything, also the element-wise passes, and keeps a block in the cache of one core from the first pass to the last.

The pieces depend on the shapes only, never on the number of threads, and no two write to the same place: the result is the same,
bit by bit, on one core and on many. There are as many workers as BLAS would have had threads (OPENBLAS_NUM_THREADS counts).
"""

import functools
import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np

from ...blas import one_thread


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="minisd")


_lock = threading.Lock()
_busy = 0  # helpers at work, or on their way


def _hire(wanted: int, workers: int) -> int:
    """As many helpers as are idle, at most `wanted`: a piece of a busy machine's work is not handed over only to wait in a queue."""
    global _busy
    with _lock:
        hired = max(0, min(wanted, workers - 1 - _busy))
        _busy += hired
    return hired


def _release():
    global _busy
    with _lock:
        _busy -= 1


def _start_afresh():
    global _lock, _busy
    _pool.cache_clear()
    _lock, _busy = threading.Lock(), 0


if hasattr(os, "register_at_fork"):  # a child process has none of its parent's threads
    os.register_at_fork(after_in_child=_start_afresh)


def parallel_for(items, work):
    """Calls work(item) for every item, on all idle workers, and returns when the last one is done. May be nested.

    The caller works too. Helpers that have not begun when it runs out of items are cancelled, so nesting cannot lock up.
    """
    items = list(items)
    with one_thread() as workers:
        queue = iter(items)

        def drain():
            for item in queue:
                work(item)

        def help():
            try:
                drain()
            finally:
                _release()

        helpers = [_pool().submit(help) for _ in range(_hire(len(items) - 1, workers))]
        try:
            drain()
        finally:
            started = []
            for helper in helpers:
                if helper.cancel():
                    _release()
                else:
                    started.append(helper)
            wait(started)
        for helper in started:
            helper.result()  # raises what stopped it


def blocks(n: int, size: int) -> list[slice]:
    """0 … n cut into slices of `size`; the last one may be shorter."""
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


_local = threading.local()


def scratch(name: str, shape, dtype) -> np.ndarray:
    """An uninitialised array that this thread reuses whenever it asks for the same name: no page faults, aligned to a cache line."""
    buffers = _local.__dict__.setdefault("buffers", {})
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if name not in buffers or buffers[name].nbytes < size:
        raw = np.empty(size + 64, dtype="uint8")
        start = -raw.ctypes.data % 64
        buffers[name] = raw[start : start + size]
    return buffers[name][:size].view(dtype).reshape(shape)
