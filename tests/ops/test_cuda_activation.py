"""The elementwise and row kernels in the simulator: vectors with a ragged end, long rows, rows with −∞."""

import math

import numpy as np
import pytest

from minisd.ops import reference
from minisd.ops.cuda import activation
from minisd.ops.cuda.device import on_device
from minisd.ops.dispatch import RUNGS
from tests.cudasim.simulator import Simulator, needs_simulator
from tests.numerics import assert_faithful, relative_l2

pytestmark = needs_simulator
GEGLU = {"naive": activation.geglu_naive, "vectors": activation.geglu_vectors}
SOFTMAX = {"naive": activation.softmax_naive, "warp": activation.softmax_warp, "vectors": activation.softmax_vectors}


def run(f, *args):
    with on_device(Simulator()):
        return f(*args)


def rung(op, name):
    return next(r.run for r in RUNGS[op] if r.name == name)


@pytest.mark.parametrize("dtype, bound", [("float16", 1e-3), ("float32", 1e-6)])
@pytest.mark.parametrize("name", ["naive", "vectors"])
@pytest.mark.parametrize("op", activation.FUNCTIONS)
def test_activations_of_more_than_a_block(op, name, dtype, bound):
    x = (3 * np.random.RandomState(0).randn(7, 601)).astype(dtype)
    y = run(rung(op, name), x)
    assert y.dtype == x.dtype and relative_l2(y, getattr(reference, op)(x.astype("float64"))) <= bound


@pytest.mark.parametrize("dtype, bound", [("float16", 1e-3), ("float32", 1e-6)])
@pytest.mark.parametrize("shape", [(3, 5, 32), (130, 80)])
@pytest.mark.parametrize("name", GEGLU)
def test_geglu(name, shape, dtype, bound):
    x = np.random.RandomState(0).randn(*shape).astype(dtype)
    y = run(GEGLU[name], x)
    assert y.shape == (*shape[:-1], shape[-1] // 2) and relative_l2(y, reference.geglu(x.astype("float64"))) <= bound


def test_geglu_vectors_refuse_ragged_halves():
    refuses = next(r.refuses for r in RUNGS["geglu"] if r.name == "vectors")
    assert "multiples of 8" in refuses(np.zeros((3, 24), "float16"))
    assert refuses(np.zeros((3, 24), "float32")) is None and refuses(np.zeros((3, 32), "float16")) is None


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("name", SOFTMAX)
def test_softmax_of_long_rows_with_holes(name, dtype):
    x = (5 * np.random.RandomState(0).randn(9, 304)).astype(dtype)
    x[2, ::2] = -math.inf
    x[3, 1:] = -math.inf
    truth = reference.softmax(x.astype("float64"))
    assert_faithful(run(SOFTMAX[name], x), truth, reference.softmax(x), name=name)


@pytest.mark.parametrize("dtype, n", [("float16", 2560), ("float32", 1280), ("float16", 8)])
def test_softmax_of_rows_that_fill_the_registers(dtype, n):
    x = (5 * np.random.RandomState(0).randn(5, n)).astype(dtype)
    assert_faithful(run(activation.softmax_vectors, x), reference.softmax(x.astype("float64")), reference.softmax(x), name=f"{n}")


def test_softmax_vectors_refuse_ragged_and_long_rows():
    refuses = next(r.refuses for r in RUNGS["softmax"] if r.name == "vectors")
    assert "a multiple of 8" in refuses(np.zeros((3, 77), "float16")) and "at most 2560" in refuses(np.zeros((3, 4096), "float16"))
    assert refuses(np.zeros((3, 80), "float16")) is None and refuses(np.zeros((3, 1280), "float32")) is None


@pytest.mark.parametrize("dtype, bound", [("float16", 1e-3), ("float32", 1e-7)])
@pytest.mark.parametrize("dim, flip", [(320, True), (33, False)])
def test_the_timestep_table_rounds_where_the_reference_does(dim, flip, dtype, bound):
    t = np.array([0.0, 17.0, 925.25, 999.0])
    keywords = dict(dim=dim, flip_sin_to_cos=flip, freq_shift=0.0, dtype=np.dtype(dtype))
    with on_device(Simulator()):
        y = activation.timestep_embedding(t, **keywords)
    assert y.dtype == dtype and relative_l2(y, reference.timestep_embedding(t, **{**keywords, "dtype": np.dtype("float32")})) <= bound
