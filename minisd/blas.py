"""Which matrix kernel NumPy's OpenBLAS runs, and on how many threads. Importable before NumPy, which is the point.

OpenBLAS chooses a kernel once, while NumPy is being imported, by a list of known processors; on recent AMD ones it chooses badly:

    Zen 5    gets the AVX2 kernel (Haswell); the AVX-512 one (SkylakeX) is twice as fast: 122 → 237 GFLOP/s on one thread
    Zen 4    may get the AVX-512 kernel, which it runs in two halves: the AVX2 one is 7 % faster: 102 → 109 GFLOP/s

The command line calls `choose_kernel()` first of all. Who uses minisd as a library may do the same:

    import minisd.blas; minisd.blas.choose_kernel()
    import numpy
"""

import ctypes
import functools
import logging
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

SKYLAKEX_NEEDS = {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512cd"}  # without them its first instruction is fatal
ZEN_4, ZEN_5 = 25, 26  # "cpu family"; Zen 3 shares 25 but has no AVX-512

log = logging.getLogger(__name__)


def best_kernel(cpuinfo: str) -> str | None:
    """The OpenBLAS kernel for the processor that /proc/cpuinfo describes; None leaves the choice to OpenBLAS."""
    fields = dict(line.split("\t: ", 1) if "\t: " in line else (line.strip(":\t "), "") for line in cpuinfo.split("\n\n")[0].splitlines())
    fields = {name.strip(): value for name, value in fields.items()}
    if fields.get("vendor_id") != "AuthenticAMD" or not SKYLAKEX_NEEDS <= set(fields.get("flags", "").split()):
        return None
    family = int(fields["cpu family"])
    return "SkylakeX" if family >= ZEN_5 else "Haswell" if family == ZEN_4 else None


def choose_kernel() -> str | None:
    """Sets OPENBLAS_CORETYPE for this processor, unless it is set already. Call it before NumPy is imported.

    Returns the kernel asked for, by us or by the user; None where OpenBLAS knows best. If NumPy is already there and runs another
    kernel, it says so once and changes nothing.
    """
    asked = os.environ.get("OPENBLAS_CORETYPE")
    cpuinfo = Path("/proc/cpuinfo")
    if asked or not cpuinfo.exists():
        return asked
    best = best_kernel(cpuinfo.read_text())
    if best and "numpy" in sys.modules:
        if kernel() not in (best, None):
            _say_too_late(best)
    elif best:
        os.environ["OPENBLAS_CORETYPE"] = best
    return best


@functools.cache
def _say_too_late(best: str):
    log.warning("NumPy was imported before minisd could choose its matrix kernel: it runs %s, %s is faster here. "
                "Set OPENBLAS_CORETYPE=%s before you start Python.", kernel(), best, best)  # fmt: skip


_RESULTS = {"get_corename": ctypes.c_char_p, "get_num_threads": ctypes.c_int, "set_num_threads": None}


@functools.cache
def _openblas(function: str):
    """A function of the OpenBLAS that NumPy's wheels carry, or None where NumPy has another BLAS."""
    import numpy as np

    try:
        f = getattr(ctypes.CDLL(np._core._multiarray_umath.__file__), f"scipy_openblas_{function}64_")
    except (AttributeError, OSError):
        return None
    f.restype = _RESULTS[function]
    return f


def kernel() -> str | None:
    """The name of the running kernel, such as "Haswell" or "SkylakeX"; None if NumPy has another BLAS than OpenBLAS."""
    name = _openblas("get_corename")
    return name and name().decode()


class _OneThread:
    """Holds BLAS at one thread while anyone asks for it, then gives it back the number that it had."""

    def __init__(self):
        self.lock, self.holders, self.threads = Lock(), 0, 1

    @contextmanager
    def __call__(self):
        get, put = _openblas("get_num_threads"), _openblas("set_num_threads")
        if get is None or put is None:
            yield 1  # a BLAS that cannot be held back threads by itself: one worker for it
            return
        with self.lock:
            if not self.holders:
                self.threads = get()
                put(1)
            self.holders += 1
        try:
            yield self.threads
        finally:
            with self.lock:
                self.holders -= 1
                if not self.holders:
                    put(self.threads)


one_thread = _OneThread()
