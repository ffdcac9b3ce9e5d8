"""SiLU and the two GELUs in a few in-place passes over blocks that stay in the cache."""

import numpy as np

from ..dispatch import rung
from .arena import empty
from .parallel import blocks, parallel_for, scratch

BLOCK = 1 << 16  # elements

# erf(x) ≈ tanh(x P(x²)), fitted by the project: largest error 6.0e-8, one unit in the last place of float32 below 1.
# Lower even degrees diverge outside the fit because their leading coefficient is negative; degree 6 does not.
ERF_AS_TANH = (1.12837971, 0.102765481, -1.84383734e-4, -6.25719532e-4, 8.97125694e-5, -5.9856874e-6, 1.5896002e-7)


def refuses_all_but_float32(x, *args, **kwargs):
    return None if x.dtype == np.float32 else "is made for float32: other dtypes take the reference"


def in_blocks(x, f):
    """A new array with f(block) applied in place to its blocks."""
    x = np.asarray(x, order="C")
    y = empty(x.shape, x.dtype)
    old, new = x.reshape(-1), y.reshape(-1)

    def block(part):
        np.copyto(new[part], old[part])
        f(new[part])

    parallel_for(blocks(new.size, BLOCK), block)
    return y


def silu_in_place(x, slope=1.0):
    """x ← x / (1 + exp(−slope · x)): exact at both ends, since 1 + e loses nothing and an infinite e gives the 0 it should."""
    e = np.multiply(x, -slope, out=scratch("t", x.shape, x.dtype))
    with np.errstate(over="ignore"):
        np.exp(e, out=e)
    e += 1.0
    x /= e


def gelu_in_place(x):
    """x ← x · (1 + tanh(u P(u²))) / 2 with u = x/√2, which is x · (1 + erf(u)) / 2 to float32 rounding."""
    u = np.multiply(x, 0.5**0.5, out=scratch("u", x.shape, x.dtype))
    square = np.multiply(u, u, out=scratch("square", x.shape, x.dtype))
    p = np.multiply(square, ERF_AS_TANH[-1], out=scratch("t", x.shape, x.dtype))
    with np.errstate(over="ignore"):  # where the polynomial overflows, its tanh is 1 as erf is
        for coefficient in ERF_AS_TANH[-2:0:-1]:
            p += coefficient
            p *= square
        p += ERF_AS_TANH[0]
        p *= u
    np.tanh(p, out=p)
    p += 1.0
    x *= 0.5
    x *= p


def geglu_rows(x, y):
    """y [S, C] ← h · GELU(g) for the rows x = [h, g] [S, 2C], by blocks that stay in the cache."""
    C = y.shape[1]

    def block(part):
        gate = scratch("gate", y[part].shape, x.dtype)
        np.copyto(gate, x[part, C:])
        gelu_in_place(gate)
        np.multiply(gate, x[part, :C], out=y[part])

    parallel_for(blocks(len(x), max(1, BLOCK // C)), block)
    return y


@rung("silu", "in_place", owner="numpy", refuses=refuses_all_but_float32)
def silu(x):
    """x / (1 + e⁻ˣ) in four passes over each block."""
    return in_blocks(x, silu_in_place)


@rung("quick_gelu", "in_place", owner="numpy", refuses=refuses_all_but_float32)
def quick_gelu(x):
    """x / (1 + exp(−1.702 x)) in four passes over each block."""
    return in_blocks(x, lambda block: silu_in_place(block, 1.702))


@rung("gelu", "tanh_polynomial", owner="numpy", refuses=refuses_all_but_float32)
def gelu(x):
    """Exact GELU through erf(u) = tanh(u P(u²)), a polynomial of degree 6 in u²: erf is 6e-8 from the truth."""
    return in_blocks(x, gelu_in_place)


@rung("geglu", "tanh_polynomial", owner="numpy", refuses=refuses_all_but_float32)
def geglu(x):
    """h · GELU(g) with the fast GELU, by blocks of rows."""
    C = x.shape[-1] // 2
    rows = x.reshape(-1, 2 * C)
    return geglu_rows(rows, empty((len(rows), C), x.dtype)).reshape(*x.shape[:-1], C)
