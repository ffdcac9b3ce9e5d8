"""A function as one CUDA graph, on a stand-in that records: what is replayed, whose memory it is, and what happens where it cannot be recorded."""

import gc
import logging
import weakref

import numpy as np
import pytest

from minisd import ops
from minisd.ops.cuda.graph import Graph, Replay
from tests.cudasim.recorder import State, put, recorder
from tests.cudasim.simulator import needs_simulator

pytestmark = needs_simulator


@pytest.fixture
def gpu():
    with recorder() as gpu:
        yield gpu


def draw(*shape, seed=0):
    return np.random.RandomState(seed).standard_normal(shape).astype("float16")


def f(x, t):
    """Kernels and CuPy's own operations in turn; every array on the way dies as soon as it was read."""
    y = ops.silu(x) + t
    y = ops.softmax(y)
    y += ops.silu(y)
    return np.concatenate((y, ops.silu(y * 2.0)))


def test_a_replay_is_the_function_of_its_inputs(gpu):
    graph = Graph(f, [put(draw(3, 8)), put(draw(3, 8, seed=1))])
    launched = len(gpu.launches)
    for seed in (2, 3, 2):
        x, t = draw(3, 8, seed=seed), draw(3, 8, seed=seed + 10)
        y = graph(put(x), put(t)).get()
        assert len(gpu.launches) == launched  # Python launched nothing
        np.testing.assert_array_equal(y, f(put(x), put(t)).get())
        launched = len(gpu.launches)


def test_a_result_is_the_callers(gpu):
    """The next replay does not write over it, and the inputs are only read."""
    x, t = put(draw(3, 8)), put(draw(3, 8, seed=1))
    graph = Graph(f, [x, t])
    first, kept = graph(x, t), graph(x, t).get()
    graph(put(draw(3, 8, seed=5)), t)
    np.testing.assert_array_equal(first.get(), kept)
    np.testing.assert_array_equal(x.get(), draw(3, 8))


def test_the_memory_of_what_died_is_used_again_but_by_nobody_else(gpu):
    """Seven arrays lie in four pieces of memory; arrays made later keep their numbers through a replay."""
    x, t = put(draw(3, 8)), put(draw(3, 8, seed=1))
    pools = []

    def counted(x, t):
        pools.append(State.malloc.__self__)
        return f(x, t)

    graph = Graph(counted, [x, t])
    assert pools[0] is pools[1] is graph.pool is not State.malloc.__self__
    assert len(graph.graph.nodes) == 8 and sorted(raw.nbytes for raw in graph.pool.free) == [48, 48, 48]  # and the result, 96 bytes
    later = [put(np.full((3, 8), 7.0, "float16")) for _ in range(20)]
    y = graph(x, t).get()
    assert all((a.get() == 7.0).all() for a in later)
    for a in later:
        a[...] = np.float16(np.nan)  # and what others write is no input of the graph
    np.testing.assert_array_equal(graph(x, t).get(), y)


def test_the_graph_keeps_its_function_alive_and_nothing_keeps_the_graph(gpu):
    """The addresses of f's constants are in it."""
    w = put(draw(8))
    reference = weakref.ref(w)
    replay = Replay()

    def g(x, w=w):
        return x + w

    y = replay(g, "kind", put(draw(3, 8))).get()
    replay(g, "kind", put(draw(3, 8)))
    del g, w
    gc.collect()
    assert reference() is not None
    np.testing.assert_array_equal(replay(None, "kind", put(draw(3, 8))).get(), y)
    del replay
    gc.collect()
    assert reference() is None


def looks(x):
    return x * 2.0 if x[0, 0] > 0 else x


def brings(x):
    return x * put(np.float32(2.0))


def asks_cublas(x):
    return x @ x


@pytest.mark.parametrize("f, reason", [(looks, "synchronous"), (brings, "H2D"), (asks_cublas, "cuBLAS")])
def test_what_cannot_be_recorded_runs_as_before(gpu, caplog, f, reason):
    x, replay = put(draw(4, 4)), Replay()
    with caplog.at_level(logging.DEBUG, "minisd"):
        for _ in range(4):
            np.testing.assert_array_equal(replay(f, "kind", x).get(), f(x).get())
    (line,) = caplog.messages  # it is tried once
    assert "kernel by kernel" in line and reason in line
    assert State.nodes is None and not State.streams
    assert replay(f, "kind", x).base.pool is State.malloc.__self__


def test_an_error_of_the_function_is_its_own(gpu):
    def wrong(x):
        return ops.silu(x.astype("int32"))

    with pytest.raises(Exception, match="expected float16"):
        Replay()(wrong, "kind", put(draw(4, 4)))


def test_other_shapes_dtypes_and_kinds_are_recorded_anew(gpu):
    calls, replay = [], Replay()

    def g(x):
        calls.append(x.shape)
        return x + x

    x = put(draw(4, 4))
    for kind, a in [("a", x), ("a", put(draw(4, 8))), ("b", put(draw(4, 8))), ("b", put(draw(4, 8).astype("float32")))]:
        pool = weakref.ref(replay.graph.pool) if replay.graph else None
        for called in (1, 2, 0, 0):  # launched, rehearsed and recorded, replayed
            calls.clear()
            np.testing.assert_array_equal(replay(g, kind, a).get(), 2 * a.get())
            assert calls == [a.shape] * called
            assert pool is None or pool() is None  # the last one's memory went with it


def test_products_are_recorded_with_a_handle_of_their_own(gpu):
    """On the stream that is recorded, with a workspace out of the graph's memory; it goes with the graph. Elsewhere CuPy's @ is asked."""
    x, w, b = put(draw(4, 12)), put(draw(8, 12, seed=1)), put(draw(8, seed=2))  # 12 is no multiple of 8: nothing for our own kernel
    plain = ops.linear(x, w, b).get()
    assert not gpu.cublas.calls
    graph = Graph(lambda x: ops.linear(x, w, b), [x])
    create, stream, workspace, *products = gpu.cublas.calls
    assert create[0] == "cublasCreate_v2" and stream[0] == "cublasSetStream_v2" and workspace[0] == "cublasSetWorkspace_v2"
    assert workspace[2:] == (graph.blas.workspace.data.ptr, 32 << 20) and graph.blas.workspace.base.pool is graph.pool
    assert [name for name, _ in products] == ["cublasGemmEx"] * 2  # warmed up and recorded
    np.testing.assert_array_equal(graph(x).get(), plain)
    other = put(draw(4, 12, seed=3))
    np.testing.assert_array_equal(graph(other).get(), ops.linear(other, w, b).get())
    del graph
    gc.collect()
    assert gpu.cublas.calls[-1][0] == "cublasDestroy_v2"


def test_cupy_has_what_is_asked_of_it():
    """Where CuPy is installed; importing it needs no GPU."""
    cuda = pytest.importorskip("cupy").cuda
    assert all(hasattr(cuda.Stream(null=True), name) for name in ("begin_capture", "end_capture", "synchronize", "ptr", "__enter__"))
    assert hasattr(cuda.Graph, "launch") and hasattr(cuda.MemoryPool, "malloc")
    for f in (cuda.using_allocator, cuda.get_current_stream, cuda.device.get_cublas_handle, cuda.runtime.runtimeGetVersion):
        assert callable(f)
