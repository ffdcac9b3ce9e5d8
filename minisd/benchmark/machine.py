"""What a measurement needs of the machine it runs on: its arrays, its clock, and its two roofs; the CPU's."""

import math
import os
import platform
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from .timing import wall


@dataclass(frozen=True)
class Roof:
    """The two rates that no rung can beat, measured: of a large matrix product by the vendor's library, and of a copy beyond the cache."""

    flops: float  # a second
    bandwidth: float  # bytes read and bytes written, a second

    def seconds(self, flop: int, nbytes: int) -> float:
        """The least time for so much work."""
        return max(flop / self.flops, nbytes / self.bandwidth)


class Machine(ABC):
    """Where a ladder is measured."""

    owner: str  # whose arrays: "numpy" or "cupy"
    name: str

    @abstractmethod
    def array(self, x: np.ndarray):
        """x as an array of this machine, in the same order in memory."""

    @abstractmethod
    def sets(self, nbytes: int) -> int:
        """How many sets of arguments of so many bytes a contestant is given by turns."""

    @abstractmethod
    def timed(self, calls: list[Callable]) -> tuple[Callable, str]:
        """calls: the same on different sets of arguments -> (function that measures: () -> (seconds a call, result), how)"""

    @abstractmethod
    def roof(self, dtype: str) -> Roof:
        """Measured now, for products in this dtype."""


class Cpu(Machine):
    """NumPy. Arguments are in the cache if they fit, as they are behind the layer before."""

    owner = "numpy"

    def __init__(self, side: int = 2048, copied: int = 256 << 20):
        self.side, self.copied = side, copied  # of the roofs' matrix product and copy

    @property
    def name(self) -> str:
        return f"{processor()}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} threads"

    def array(self, x):
        return x

    def sets(self, nbytes):
        return 1

    def timed(self, calls):
        return lambda: wall(calls[0]), "wall clock"

    def roof(self, dtype):
        dtype = "float32" if dtype == "float16" else dtype  # which NumPy has no product in
        a = np.full((self.side, self.side), 1.25, dtype)
        x = np.ones(self.copied, "uint8")
        y = np.empty_like(x)
        return Roof(2 * self.side**3 / best_of(lambda: a @ a), 2 * self.copied / best_of(lambda: np.copyto(y, x)))


def best_of(call: Callable, clock: Callable = wall, times: int = 5) -> float:
    """Seconds of the fastest of some calls: a roof is what the machine can do."""
    return min((clock(call)[0] for _ in range(times)), default=math.inf)


@cache
def processor() -> str:
    """As the system calls it."""
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()
