"""The pool: every item once, errors reach the caller, nesting ends, and results do not depend on the number of threads."""

import threading
import time

import numpy as np
import pytest

from minisd import blas, ops
from minisd.ops.cpu import parallel
from minisd.ops.cpu.parallel import blocks, parallel_for, scratch
from minisd.resident import HalfWeight


@pytest.fixture(params=[1, 2, 5])
def workers(request, monkeypatch):
    """As many workers as if BLAS had had so many threads."""

    class Threads:
        def __enter__(self):
            return request.param

        def __exit__(self, *error):
            return False

    monkeypatch.setattr("minisd.ops.cpu.parallel.one_thread", Threads)
    return request.param


def test_every_item_is_worked_on_once(workers):
    done = []
    parallel_for(range(1000), done.append)
    assert sorted(done) == list(range(1000))


def test_it_returns_when_the_last_helper_is_done(workers):
    caller, done = threading.current_thread(), []

    def work(item):
        time.sleep(0.001 if threading.current_thread() is caller else 0.05)
        done.append(item)

    parallel_for(range(20), work)
    assert sorted(done) == list(range(20))


def test_nested_calls_end(workers):
    done = []
    parallel_for(range(8), lambda i: parallel_for(range(8), lambda j: parallel_for(range(3), lambda k: done.append((i, j, k)))))
    assert len(set(done)) == len(done) == 192


def test_an_error_reaches_the_caller(workers):
    def work(item):
        if item == 3:
            raise ValueError("three")

    with pytest.raises(ValueError, match="three"):
        parallel_for(range(9), work)


def test_no_helper_is_hired_twice(workers):
    """However deep the nesting, at most `workers` threads work; and every helper is free again at the end."""
    at_work, most, lock = set(), [0], threading.Lock()

    def work(item):
        with lock:
            at_work.add(threading.get_ident())
            most[0] = max(most[0], len(at_work))
        time.sleep(0.001)
        with lock:
            at_work.discard(threading.get_ident())

    for _ in range(3):
        parallel_for(range(4), lambda i: parallel_for(range(6), work))
    assert 1 <= most[0] <= workers and parallel._busy == 0


def test_an_error_frees_the_helpers(workers):
    def work(item):
        raise ValueError(item)

    with pytest.raises(ValueError):
        parallel_for(range(9), work)
    assert parallel._busy == 0


def test_the_number_of_threads_changes_no_bit():
    """BLAS at one thread, the same pieces: what a worker computes is the same whoever it is."""
    random = np.random.RandomState(5)
    x, w = random.randn(2, 36, 40, 128).astype("float32"), random.randn(128, 128, 3, 3).astype("float32")
    tokens, big = random.randn(3000, 64).astype("float32"), random.randn(200, 64).astype("float32")
    q = random.randn(1, 2, 700, 40).astype("float32")
    wide, text = random.randn(40, 64).astype("float32"), random.randn(2, 12, 77, 8).astype("float32")
    calls = [
        *(lambda rung=rung: _by(rung, x, w) for rung in ("im2col", "winograd2", "winograd4")),
        lambda: ops.conv2d(x, w[:3], None, padding=1),
        lambda: ops.upsample_conv2d(x, w, None, size=(72, 80)),
        lambda: ops.group_norm(x, w[0, :, 0, 0], w[1, :, 0, 0], groups=8, eps=1e-5, act="silu"),
        lambda: ops.layer_norm(tokens, big[0], big[1], eps=1e-5),
        lambda: ops.linear(tokens, big),
        lambda: ops.linear(w[..., 0, 0], x[0].reshape(-1, 128)),
        lambda: ops.feed_forward(tokens, wide, wide[:, 0], big[:, :20], big[:, 0]),
        lambda: ops.attention(q, q, q, scale=0.2),
        lambda: ops.attention(text, text, text, scale=0.2, causal=True),
        lambda: ops.gelu(x),
        lambda: HalfWeight(x.astype("float16")).read(),
    ]

    def with_threads(count):
        with blas.one_thread():  # inside, the ops find a BLAS that had `count` threads
            saved, blas.one_thread.threads = blas.one_thread.threads, count
            try:
                return [call() for call in calls]
            finally:
                blas.one_thread.threads = saved

    one, two, five = map(with_threads, (1, 2, 5))
    for i, (a, b, c) in enumerate(zip(one, two, five)):
        assert np.array_equal(a, b) and np.array_equal(a, c), i


def _by(rung, x, w):
    with ops.using(conv2d=rung):
        return ops.conv2d(x, w, None, padding=1)


def test_blocks_cover_the_range():
    assert blocks(10, 4) == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert blocks(0, 4) == []


def test_scratch_is_one_buffer_a_name_and_a_thread():
    a = scratch("test", (3, 5), "float32")
    assert a.ctypes.data % 64 == 0 and a.shape == (3, 5)
    assert np.shares_memory(a, scratch("test", (2,), "float64"))
    assert not np.shares_memory(a, scratch("test too", (3, 5), "float32"))
    others = []
    thread = threading.Thread(target=lambda: others.append(scratch("test", (3, 5), "float32")))
    thread.start()
    thread.join()
    assert not np.shares_memory(a, others[0])
