"""Launchers of everything that is done number by number or row by row: activations, GEGLU, softmax, the timestep embedding.

The kernels are in `kernels/activation`, `kernels/softmax` and `kernels/timestep`.
"""

import math

from ..dispatch import rung
from .device import device
from .kernel import OF_DTYPE, Kernel
from .norm import HALF_OR_FLOAT, refuses_long_rows, refuses_wide, vector_size

FUNCTIONS = {"silu": 0, "gelu": 1, "quick_gelu": 2}  # as in functions.cuh
TYPES_AND_FUNCTIONS = tuple((T, number) for (T,) in HALF_OR_FLOAT for number in FUNCTIONS.values())
NAIVE = Kernel("activation/1_naive.cu", "activation_naive", TYPES_AND_FUNCTIONS)
VECTORS = Kernel("activation/2_vectors.cu", "activation_vectors", TYPES_AND_FUNCTIONS)
GEGLU_NAIVE = Kernel("activation/1_naive.cu", "geglu_naive", HALF_OR_FLOAT)
GEGLU_VECTORS = Kernel("activation/2_vectors.cu", "geglu_vectors", HALF_OR_FLOAT)
SOFTMAX_NAIVE = Kernel("softmax/1_naive.cu", "softmax_naive", HALF_OR_FLOAT)
SOFTMAX_WARP = Kernel("softmax/2_warp.cu", "softmax_warp", HALF_OR_FLOAT)
SOFTMAX_VECTORS = Kernel("softmax/3_vectors.cu", "softmax_vectors", HALF_OR_FLOAT)
TIMESTEP = Kernel("timestep/1_table.cu", "timestep_table", HALF_OR_FLOAT)
MOST = 2**31 - 2**12  # elements of one launch: the kernels count in 32 bits


def refuses_huge(x):
    return refuses_wide(x) or (f"counts up to {MOST} elements" if x.size > MOST else None)


def _elementwise(kernel, name, x, each):
    """`each` numbers a thread."""
    dev = device()
    x = dev.contiguous(x)
    y = dev.empty(x.shape, x.dtype)
    dev.launch(kernel(OF_DTYPE[x.dtype], FUNCTIONS[name]), math.ceil(x.size / (256 * each)), 256, x, y, x.size)
    return y


def _register(op):
    """The two rungs of one activation function."""

    def naive(x):
        return _elementwise(NAIVE, op, x, 1)

    def vectors(x):
        return _elementwise(VECTORS, op, x, vector_size(x))

    naive.__doc__ = "CUDA: one thread for one number."
    vectors.__doc__ = "CUDA: 16 bytes a thread."
    rung(op, "naive", owner="cupy", refuses=refuses_huge)(naive)
    rung(op, "vectors", owner="cupy", refuses=refuses_huge)(vectors)


for _op in FUNCTIONS:
    _register(_op)


def _geglu(kernel, x, each):
    dev = device()
    x = dev.contiguous(x)
    C = x.shape[-1] // 2
    y = dev.empty((*x.shape[:-1], C), x.dtype)
    dev.launch(kernel(OF_DTYPE[x.dtype]), math.ceil(y.size / (256 * each)), 256, x, y, y.size, C)
    return y


@rung("geglu", "naive", owner="cupy", refuses=refuses_huge)
def geglu_naive(x):
    """CUDA: one thread for one number of the result."""
    return _geglu(GEGLU_NAIVE, x, 1)


def refuses_ragged_halves(x):
    V = vector_size(x)
    return refuses_huge(x) or (None if x.shape[-1] % (2 * V) == 0 else f"needs halves that are multiples of {V}: a load is 16 bytes")


@rung("geglu", "vectors", owner="cupy", refuses=refuses_ragged_halves)
def geglu_vectors(x):
    """CUDA: 16 bytes of either half a thread."""
    return _geglu(GEGLU_VECTORS, x, vector_size(x))


def _softmax(kernel, x, rows_per_block):
    dev = device()
    x = dev.contiguous(x)
    y = dev.empty(x.shape, x.dtype)
    rows = x.size // x.shape[-1]
    dev.launch(kernel(OF_DTYPE[x.dtype]), math.ceil(rows / rows_per_block), 128, x, y, rows, x.shape[-1])
    return y


@rung("softmax", "naive", owner="cupy", refuses=refuses_wide)
def softmax_naive(x):
    """CUDA: one thread for one row, three loops."""
    return _softmax(SOFTMAX_NAIVE, x, 128)


@rung("softmax", "warp", owner="cupy", refuses=refuses_wide)
def softmax_warp(x):
    """CUDA: one warp for one row, maximum and sum in one pass."""
    return _softmax(SOFTMAX_WARP, x, 4)


@rung("softmax", "vectors", owner="cupy", refuses=refuses_long_rows)
def softmax_vectors(x):
    """CUDA: the same with 16-byte loads, and the row in registers: x is read once."""
    return _softmax(SOFTMAX_VECTORS, x, 4)


def refuses_double_table(t, *, dtype, **kwargs):
    return None if dtype in OF_DTYPE and dtype.itemsize <= 4 else "gives float16 and float32"


@rung("timestep_embedding", "table", owner="cupy", refuses=refuses_double_table)
def timestep_embedding(t, *, dim, flip_sin_to_cos, freq_shift, dtype):
    """CUDA: one thread for one sine or cosine, rounded to float32 where torch rounds."""
    dev = device()
    t = dev.contiguous(t.astype("float64"))
    y = dev.empty((len(t), dim), dtype)
    dev.launch(TIMESTEP(OF_DTYPE[dtype]), math.ceil(y.size / 256), 256, t, y, len(t), dim, freq_shift, int(flip_sin_to_cos))
    return y
