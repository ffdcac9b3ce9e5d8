"""Memory that is used again: not before its last view is gone, aligned, bounded, from any thread."""

import gc
import threading

import numpy as np
import pytest

from minisd.ops.cpu import arena

MB = 1 << 20


@pytest.fixture(autouse=True)
def nothing_waits():
    gc.collect()
    arena._waiting.clear()
    yield
    arena._waiting.clear()


def address(x):
    return x.ctypes.data


def test_an_array_like_any_other():
    x = arena.empty((3, 512, 1024), "float32")
    assert (x.shape, x.dtype, type(x)) == ((3, 512, 1024), np.float32, np.ndarray)
    assert address(x) % 64 == 0 and x.flags.c_contiguous and x.flags.writeable
    assert arena.empty((0, 7), "float64").shape == (0, 7) and arena.empty((5,), "float32").flags.owndata  # small ones are malloc's


@pytest.mark.parametrize("view", [lambda x: x[5:7], lambda x: x.T, lambda x: x.reshape(-1)[::2], lambda x: memoryview(x), lambda x: x.view("int32")])
def test_memory_waits_for_the_last_view(view):
    x = arena.empty((1024, 512), "float32")
    at, kept = address(x), view(x)
    del x
    other = arena.empty((1024, 512), "float32")
    assert address(other) != at and not arena._waiting
    del kept
    assert address(arena.empty((512, 1024), "float32")) == at


def test_it_serves_what_is_about_its_size():
    for elements, again in ((MB, True), (MB - 1000, True), (MB // 2, True), (MB // 2 - 1, False), (MB + 1, False)):
        x = arena.empty((MB,), "float32")
        at = address(x)
        del x
        y = arena.empty((elements,), "float32")
        assert (address(y) == at) == again, elements
        del y
        arena._waiting.clear()


def test_what_waits_is_bounded():
    """A miss lets go of the largest first, until 64 MB wait."""
    held = [arena.empty((n * MB,), "uint8") for n in (100, 40, 20, 30)]
    del held
    assert sum(raw.nbytes for raw in arena._waiting) == 190 * MB
    arena.empty((200 * MB,), "uint8")
    assert sorted(raw.nbytes for raw in arena._waiting if raw.nbytes < 200 * MB) == [20 * MB, 30 * MB]


def test_no_two_threads_get_the_same():
    errors = []

    def work(number):
        for i in range(200):
            x = arena.empty((MB // 4 + number % 2,), "float32")
            x[:: 1 << 12] = number
            if not (x[:: 1 << 12] == number).all():
                errors.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(arena._waiting) <= 6
