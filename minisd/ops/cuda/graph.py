"""A function of arrays as one CUDA graph: its launches are recorded once and replayed by a single call.

    replay = Replay()
    y = replay(f, kind, x, t)        # f(x, t): recorded at the second call of a kind, replayed from then on

A step of Stable Diffusion is some hundred kernels of 5 to 100 µs, and Python needs about 10 µs to launch each. A graph needs none: the GPU
is handed all of them at once. What is recorded are addresses, which is why

- the inputs are copied into arrays of the graph's own before each replay, and the result is copied out of one;
- every array that f makes on its way comes from a memory pool of the graph's own. Where one of them dies, the pool gives its memory to a later
  array of f. That is right also in the replay: the kernels run one after the other, in the recorded order, so the later array is written after
  the last kernel that reads the earlier one. But nobody else may be given that memory, now or later: each replay writes there. So the pool
  is never used for anything but this one recording, and lives as long as the graph.

f must not look at numbers on its way (`float(x)`, `x.get()`, an `if` on a value) and must not bring any from the host: CuPy refuses both while it
records, and the step is then launched kernel by kernel, as before.
"""

import contextlib
import logging
import threading

from .cublas import recorded_on
from .device import device

log = logging.getLogger("minisd")


class Graph:
    """f(*inputs), recorded: called with other arrays of the same shapes and dtypes it gives f of them. Raises what f or CUDA raise."""

    def __init__(self, f, inputs):
        cuda = device().cupy.cuda
        self.f = f  # and with it the weights, whose addresses are in the graph
        self.inputs = [x.copy() for x in inputs]
        self.pool = cuda.MemoryPool()
        stream = cuda.Stream(non_blocking=True)  # the default stream cannot be recorded
        cuda.get_current_stream().synchronize()
        with stream, cuda.using_allocator(self.pool.malloc), recorded_on(stream) as self.blas:
            f(*self.inputs)  # compiles and loads kernels, and leaves in the pool the memory that the recording will ask for
            stream.synchronize()
            self.graph, self.output = record(stream, f, self.inputs)

    def __call__(self, *inputs):
        for mine, x in zip(self.inputs, inputs):
            mine[...] = x
        self.graph.launch()
        return self.output.copy()  # the next replay writes over the graph's own


def record(stream, f, inputs):
    """The graph of what f launches on this stream, and the array that f returned."""
    stream.begin_capture()
    try:
        output = f(*inputs)
    except BaseException:
        with contextlib.suppress(Exception):  # that the recording is broken is known
            stream.end_capture()
        raise
    return stream.end_capture(), output


class Replay:
    """The function that was called last, and its graph. One thread at a time replays it."""

    def __init__(self):
        self.key, self.graph, self.tried, self.lock = None, None, False, threading.Lock()

    def __call__(self, f, kind, *inputs):
        """f(*inputs). kind: all that f depends on besides the shapes and dtypes of the inputs, comparable by ==.

        The first call of a kind is launched, because it may be the only one; the second is recorded.
        """
        key = (kind, [(x.shape, x.dtype) for x in inputs])
        with self.lock:
            if key != self.key:
                self.key, self.graph, self.tried = key, None, False
            elif not self.tried:
                self.tried = True
                try:
                    self.graph = Graph(f, inputs)
                except Exception as reason:
                    log.debug("a step is launched kernel by kernel, because it cannot be recorded as a CUDA graph: %s", reason)
            return f(*inputs) if self.graph is None else self.graph(*inputs)
