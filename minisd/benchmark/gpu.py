"""The GPU of a measurement: arguments that rotate past its cache, launches recorded as one CUDA graph, time by events on the device.

CuPy's own matrix product cannot be recorded (`ops/cuda/cublas.py` can). A rung that uses it is launched call by call, and what is measured is
then the longer of kernel and launch.
Memory that a graph was recorded with is nobody else's. Results are looked at before anything is timed, and not again.
"""

import contextlib
import math
from collections.abc import Callable
from functools import cached_property

import numpy as np

from ..errors import ResourceError
from ..ops.cuda.cublas import recorded_on
from .machine import Machine, Roof, best_of

PAST_THE_CACHE = 3  # all sets of arguments together are so many times the L2 cache
MOST_SETS = 64
SPAN = 0.004  # seconds that one sample should last: far above what an event resolves
MOST_CALLS = 256  # of one sample


class Gpu(Machine):
    """CuPy's current device."""

    owner = "cupy"

    def __init__(self):
        try:
            import cupy
        except ImportError:
            raise ResourceError("CuPy is not installed", "it runs the kernels on the GPU", 'pip install "cupy-cuda13x[ctk]"') from None
        if not cupy.cuda.is_available():
            raise ResourceError("no GPU was found", "CuPy sees no device, or no driver", "run on a machine with an NVIDIA GPU; nvidia-smi shows it")
        self.cupy = cupy

    @cached_property
    def properties(self) -> dict:
        return self.cupy.cuda.runtime.getDeviceProperties(self.cupy.cuda.Device().id)

    @property
    def name(self) -> str:
        return self.properties["name"].decode()

    @property
    def cache_bytes(self) -> int:
        return self.properties["l2CacheSize"]

    def array(self, x):
        order = sorted(range(x.ndim), key=lambda axis: -x.strides[axis])  # CuPy would make it C-contiguous on the way
        return self.cupy.asarray(np.ascontiguousarray(x.transpose(order))).transpose(np.argsort(order).tolist())

    def sets(self, nbytes):
        return max(1, min(MOST_SETS, math.ceil(PAST_THE_CACHE * self.cache_bytes / max(nbytes, 1))))

    def timed(self, calls):
        cuda = self.cupy.cuda
        stream, pool = cuda.Stream(non_blocking=True), cuda.MemoryPool()  # the default stream cannot be recorded
        with stream, cuda.using_allocator(pool.malloc), recorded_on(stream) as blas:
            once, _ = self.clock(stream, lambda: run(calls, len(calls)))  # compiles, loads, and fills the pool
            once, _ = self.clock(stream, lambda: run(calls, len(calls)))
            n = samples(once / len(calls), len(calls))
            run(calls, n)
            stream.synchronize()
            try:
                graph, kept = self.record(stream, lambda: run(calls, n))
                launch, how = graph.launch, f"graph of {n}"
            except Exception as reason:  # whatever CuPy or CUDA say against recording this
                launch, kept = None, None
                how = f"{n} launches, not a graph: {str(reason).splitlines()[0] if str(reason) else type(reason).__name__}"
                stream = cuda.Stream(non_blocking=True)

        def measure(kept=(kept, blas, pool)):  # the graph writes there, also to arrays that died while it was recorded
            with stream:
                seconds, result = self.clock(stream, launch or (lambda: run(calls, n)))
            return seconds / n, result

        return measure, how

    def record(self, stream, call: Callable) -> tuple:
        """The CUDA graph of what `call` launches on this stream, and what it returned: to be kept alive as long as the graph."""
        stream.begin_capture()
        try:
            kept = call()
        except BaseException:
            with contextlib.suppress(Exception):  # that the recording is broken is known
                stream.end_capture()
            raise
        return stream.end_capture(), kept

    def clock(self, stream, call: Callable) -> tuple[float, object]:
        """Seconds on the device between two events around a call on this stream."""
        start, end = self.cupy.cuda.Event(), self.cupy.cuda.Event()
        start.record(stream)
        result = call()
        end.record(stream)
        end.synchronize()
        return self.cupy.cuda.get_elapsed_time(start, end) / 1e3, result

    def roof(self, dtype, side: int = 8192, copied: int = 2 << 30):
        cupy = self.cupy
        random = cupy.random.RandomState(0)
        a, b = (random.standard_normal((side, side), dtype="float32").astype(dtype) for _ in "ab")  # zeros would draw less power, and run faster
        x = cupy.ones(copied, "uint8")
        y = cupy.empty_like(x)
        stream = cupy.cuda.get_current_stream()
        flops = bandwidth = math.inf
        for _ in range(2):  # the first time is warming up
            flops = best_of(lambda: a @ b, lambda f: self.clock(stream, f))
            bandwidth = best_of(lambda: y.data.copy_from_device_async(x.data, copied), lambda f: self.clock(stream, f))
        return Roof(2 * side**3 / flops, 2 * copied / bandwidth)


def run(calls: list[Callable], n: int) -> list:
    """n calls, by turns over the sets of arguments; the results of the last turn, so that those rotate too."""
    results: list = [None] * len(calls)
    for i in range(n):
        results[i % len(calls)] = calls[i % len(calls)]()
    return results


def samples(seconds: float, sets: int) -> int:
    """How many calls make a sample of SPAN seconds: whole turns over the sets, but for very slow calls."""
    n = max(1, min(MOST_CALLS, math.ceil(SPAN / max(seconds, 1e-9))))
    return math.ceil(n / sets) * sets if n > sets else n
