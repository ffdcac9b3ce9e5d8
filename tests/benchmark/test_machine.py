"""The roof and the CPU."""

import math

import numpy as np
import pytest

from minisd.benchmark.machine import Cpu, Roof, best_of, processor


def test_the_roof_is_the_slower_of_the_two():
    roof = Roof(flops=100.0, bandwidth=10.0)
    assert roof.seconds(200, 5) == 2.0 and roof.seconds(100, 50) == 5.0 and roof.seconds(0, 0) == 0.0


def test_the_best_of_some_calls():
    times = iter([3.0, 1.0, 2.0])
    assert best_of(lambda: None, lambda call: (next(times), call()), times=3) == 1.0
    assert best_of(lambda: None, times=0) == math.inf


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_cpu(dtype):
    cpu = Cpu(side=64, copied=1 << 16)
    roof = cpu.roof(dtype)
    assert roof.flops > 0 and roof.bandwidth > 0 and processor() in cpu.name and "threads" in cpu.name
    x = np.ones(3)
    assert cpu.array(x) is x and cpu.sets(10**12) == 1
    measure, how = cpu.timed([lambda: 5])
    seconds, result = measure()
    assert seconds >= 0 and result == 5 and how == "wall clock"
