"""The GPU's clock on a stand-in for CuPy: what is recorded, what is launched instead, and how many arguments rotate."""

import sys

import numpy as np
import pytest

from minisd.benchmark.calls import Call
from minisd.benchmark.gpu import MOST_CALLS, MOST_SETS, Gpu, run, samples
from minisd.benchmark.ladder import measure
from minisd.benchmark.machine import Roof
from minisd.errors import ResourceError
from tests.benchmark.cupy_clock import Clock


@pytest.fixture
def cupy(monkeypatch):
    clock = Clock()
    monkeypatch.setitem(sys.modules, "cupy", clock)
    return clock


def test_calls_are_recorded_once_and_replayed(cupy):
    calls = [lambda i=i: cupy.tick(i) for i in range(3)]
    timed, how = Gpu().timed(calls)
    n = samples(1e-3, 3)
    assert how == f"graph of {n}" and cupy.recorded == 1 and cupy.launched == 0
    seconds, _ = timed()
    assert seconds == pytest.approx(0.1 / n) and cupy.launched == 1


def test_what_cannot_be_recorded_is_launched_call_by_call(cupy):
    cupy.refuses = "cuBLAS while a stream is recorded\nsecond line"
    timed, how = Gpu().timed([cupy.tick])
    assert how == "4 launches, not a graph: cuBLAS while a stream is recorded"
    seconds, result = timed()
    assert seconds == pytest.approx(1e-3) and result == [None] and cupy.launched == 0


def test_a_call_that_breaks_while_it_is_recorded_ends_the_recording(cupy):
    def call():
        assert not cupy.recording, "no numbers are looked at here"
        return cupy.tick()

    _, how = Gpu().timed([call])
    assert "not a graph: no numbers" in how and not cupy.recording


def test_arguments_rotate_past_the_cache(cupy):
    gpu = Gpu()
    assert gpu.cache_bytes == 1000 and gpu.name == "a GPU of the tests"
    assert gpu.sets(10) == MOST_SETS and gpu.sets(1000) == 3 and gpu.sets(10**9) == 1 and gpu.sets(0) == MOST_SETS
    seen = []
    assert run([lambda: seen.append(0) or "a", lambda: seen.append(1) or "b"], 5) == ["a", "b"] and seen == [0, 1, 0, 1, 0]


def test_a_sample_lasts_some_milliseconds_and_whole_turns():
    assert samples(1e-5, 1) == MOST_CALLS and samples(1e-3, 3) == 6 and samples(1.0, 3) == 1 and samples(0.0, 64) == 256
    assert samples(1e-5, 48) % 48 == 0


def test_arrays_keep_their_order_in_memory(cupy):
    x = np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1)
    y = Gpu().array(x)
    assert np.array_equal(x, y) and y.strides == x.strides


def test_the_roof(cupy):
    roof = Gpu().roof("float16", side=4, copied=16)
    assert roof.bandwidth == pytest.approx(2 * 16 / 1e-3) and roof.flops == pytest.approx(2 * 4**3 / 1e-3)  # a millisecond each


def test_a_whole_ladder(cupy):
    """Everything but the device: arrays, turns, recording, the table. NumPy's rungs are the ones that run."""
    rows = measure(Call.of("linear", (3, 4, 5)), machine=Gpu(), rounds=1, roof=Roof(1e9, 1e9)).rows
    ran = [row for row in rows if not row.left_out]
    assert ran and all(row.how.startswith("graph of") and row.ms > 0 for row in ran)


def test_without_a_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ResourceError, match="CuPy is not installed") as caught:
        Gpu()
    assert "pip install" in caught.value.fix
    clock = Clock()
    clock.cuda.is_available = lambda: False
    monkeypatch.setitem(sys.modules, "cupy", clock)
    with pytest.raises(ResourceError, match="no GPU was found"):
        Gpu()
