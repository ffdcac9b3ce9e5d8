"""What `minisd.benchmark.gpu` uses of CuPy, on NumPy arrays: streams that can be recorded, graphs, events whose clock a test moves."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np


class Clock:
    """A stand-in for the module `cupy`. Each launch of anything takes a millisecond of the device's time."""

    def __init__(self, refuses: str = ""):
        self.now, self.refuses, self.recorded, self.launched = 0.0, refuses, 0, 0
        self.recording = False
        outer = self

        class Stream:
            def __init__(self, non_blocking=False):
                self.non_blocking = non_blocking

            def __enter__(self):
                return self

            def __exit__(self, *_):
                pass

            def synchronize(self):
                assert not outer.recording, "a stream cannot be waited for while it is recorded"

            def begin_capture(self):
                assert self.non_blocking, "the default stream cannot be recorded"
                outer.recording = True

            def end_capture(self):
                outer.recording = False
                if outer.refuses:
                    raise RuntimeError(outer.refuses)
                outer.recorded += 1
                return SimpleNamespace(launch=outer.launch)

        class Event:
            def record(self, stream):
                self.at = outer.now

            def synchronize(self):
                assert not outer.recording

        def properties(device):
            return {"name": b"a GPU of the tests", "l2CacheSize": 1000}

        self.ndarray = type("ndarray", (), {})  # nobody's array
        self.cuda = SimpleNamespace(
            Stream=Stream, Event=Event, get_elapsed_time=lambda start, end: end.at - start.at, is_available=lambda: True,
            MemoryPool=lambda: SimpleNamespace(malloc=None), using_allocator=nullcontext, Device=lambda: SimpleNamespace(id=0),
            runtime=SimpleNamespace(getDeviceProperties=properties), get_current_stream=Stream,
        )  # fmt: skip

        class Matrix:
            def astype(self, dtype):
                return self

            def __matmul__(self, other):
                return outer.tick()

        self.random = SimpleNamespace(RandomState=lambda seed: SimpleNamespace(standard_normal=lambda shape, dtype: Matrix()))

    def tick(self, result=None):
        """A kernel runs, or is recorded."""
        if not self.recording:
            self.now += 1.0
        return result

    def launch(self):
        self.launched += 1
        self.now += 100.0

    def asarray(self, x):
        return np.asarray(x)

    def _memory(self, x):
        return SimpleNamespace(data=SimpleNamespace(copy_from_device_async=lambda source, n: self.tick()))

    def ones(self, n, dtype):
        return self._memory(n)

    empty_like = _memory
