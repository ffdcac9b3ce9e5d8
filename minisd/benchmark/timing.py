"""Contestants take turns: a busy moment of the machine hits all of them, and medians are compared."""

import gc
import time
from collections.abc import Callable


def wall(call: Callable) -> tuple[float, object]:
    """Seconds of one call, and its result."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def interleave(made: dict, rounds: int, *, warm: bool = True, clock: Callable = wall, say: Callable = lambda line: None) -> tuple[dict, dict]:
    """Seconds, a list a contestant, without the first round if it is to warm up; and their last results.

    made: {name: what `clock` takes}; clock(made[name]) -> (seconds, result)
    """
    seconds, results = {name: [] for name in made}, {}
    for i in range(0 if warm else 1, rounds + 1):
        for name, call in made.items():
            gc.collect()
            took, results[name] = clock(call)
            say(f"  round {i}  {name:<20} {took:8.3f} s")
            if i:
                seconds[name].append(float(f"{took:.4g}"))
    return seconds, results
