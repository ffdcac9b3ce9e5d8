"""3×3 convolution by Winograd's minimal filtering: 2.25 products an output pixel (F(4×4)), or 4 (F(2×2)), instead of 9.

In one dimension, m outputs of a 3-tap filter g over n = m + 2 inputs d are a product of polynomials, which is cheap at points:

    y = Aᵀ [(G g) ⊙ (Bᵀ d)]        n products instead of 3m

G evaluates the filter at n points, Bᵀ the input, Aᵀ interpolates. In two dimensions it is done to rows, then to columns: each
tile of m × m outputs takes n × n products, and over channels the ⊙ becomes n² matrix products [tiles, C] @ [C, C′].

Points. 0, ±1 (and ∞) for F(2×2). For F(4×4) the customary 0, ±1, ±2 have transforms with coefficients up to 8; the points
0, ±1/√2, ±√2 halve the error for the same number of operations, since 1/√2 and √2 are reciprocal and neither is far from 1.

The weights are transformed in every call, U = (G ⊗ G) w by one matrix product: 0.5 ns a number, where storing U would take four
times the memory of the weights.

Lavin & Gray, arXiv:1509.09308; Barabasz et al., arXiv:1803.10986 (points).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..dispatch import rung
from .arena import empty
from .conv2d import add_in_place, gather, pieces
from .parallel import parallel_for, scratch

TILES = 256  # of one block: the matrix product is near its best, and the block stays in the shared cache
A, B = 0.5**0.5, 2.0**0.5  # the points ±a, ±b of F(4×4)


@dataclass(frozen=True)
class Filtering:
    """F(m×m, 3×3): G [n, 3], and Bᵀ and Aᵀ as functions of n arrays into n and m arrays."""

    m: int
    G: np.ndarray
    transform_input: Callable
    transform_output: Callable


def input_2(d, t):
    """Bᵀd for the points 0, 1, −1, ∞."""
    np.subtract(d[0], d[2], out=t[0])
    np.add(d[1], d[2], out=t[1])
    np.subtract(d[2], d[1], out=t[2])
    np.subtract(d[1], d[3], out=t[3])


def output_2(m, y):
    """Aᵀm: y₀ = m₀ + (m₁ + m₂), y₁ = (m₁ − m₂) − m₃."""
    np.add(m[1], m[2], out=y[0])
    np.subtract(m[1], m[2], out=y[1])
    y[0] += m[0]
    y[1] -= m[3]


def input_4(d, t):
    """Bᵀd for the points 0, ±a, ±b, ∞. Both signs of a point share an even and an odd half: tₚₘ = even ± odd."""
    for middle, first in ((d[2], 0), (d[3], 1)):  # t₀ = d₀ − 2.5 d₂ + d₄ and t₅ = d₁ − 2.5 d₃ + d₅
        end = t[5 * first]
        np.multiply(middle, 2.5, out=end)
        np.subtract(d[first], end, out=end)
        end += d[4 + first]
    for point, other, plus, minus in ((A, 2.0, t[1], t[2]), (B, 0.5, t[3], t[4])):
        np.multiply(d[1], other, out=minus)
        np.subtract(d[3], minus, out=minus)
        minus *= point  # odd = point · (d₃ − other · d₁)
        np.multiply(d[2], other, out=plus)
        np.subtract(d[4], plus, out=plus)  # even = d₄ − other · d₂
        plus += minus
        minus *= -2.0
        minus += plus


def output_4(m, y):
    """Aᵀm: with p, q the sums and r, s the differences of the pairs, y₀ = m₀+p+q, y₁ = ar+bs, y₂ = p/2+2q, y₃ = ar/2+2bs+m₅."""
    p = np.add(m[1], m[2], out=y[0])
    q = np.add(m[3], m[4], out=y[1])
    np.multiply(q, 4.0, out=y[2])
    y[2] += p
    y[2] *= 0.5
    p += q
    p += m[0]  # y₀
    r = np.subtract(m[1], m[2], out=y[1])
    s = np.subtract(m[3], m[4], out=y[3])
    r *= A
    s *= B
    r += s  # y₁
    s *= 3.0
    s += r
    s *= 0.5
    s += m[5]  # y₃ = (y₁ + 3 b s)/2 + m₅ = a r/2 + 2 b s + m₅


def evaluation(points) -> np.ndarray:
    """G [n, 3]: row x is [1, x, x²] / Π(x − x′) over the other points; the last row, for ∞, is [0, 0, 1]."""
    rows = [[x**k / np.prod([x - other for other in points if other != x]) for k in range(3)] for x in points]
    return np.array([*rows, [0.0, 0.0, 1.0]], dtype="float64")


F2 = Filtering(2, evaluation((0.0, 1.0, -1.0)) * [[-1.0], [1.0], [1.0], [1.0]], input_2, output_2)
F4 = Filtering(4, evaluation((0.0, A, -A, B, -B)), input_4, output_4)


def winograd(F: Filtering, x, w, b, padding, embedding, skip):
    """y[tile] = Aᵀ [U ⊙ Bᵀ x[tile] B] A, by blocks of about 256 tiles; a ragged size is cut out of whole tiles at the end."""
    m, n = F.m, F.m + 2
    (top, bottom), (left, right) = padding
    H, W = x.shape[1] + top + bottom - 2, x.shape[2] + left + right - 2
    C_out, C = w.shape[:2]
    tall, wide = -(-H // m), -(-W // m)  # tiles
    work = pieces(len(x), tall, wide, TILES)
    GG = np.kron(F.G, F.G).astype(x.dtype)  # [n·n, 9]
    taps = w.transpose(2, 3, 1, 0).reshape(9, -1)  # free: weights are stored channels-last
    y = empty((len(x), H, W, C_out), x.dtype)

    def weights(i, out=None):
        """U [n, C, C′] for the points (i, 0 … n−1)."""
        return np.matmul(GG[n * i : n * i + n], taps, out=out).reshape(n, C, C_out)

    U = None
    if len(work) > 1:  # made once for all blocks; a single block makes them a row at a time
        U = scratch("U", (n, n, C * C_out), x.dtype)
        parallel_for(range(n), lambda i: weights(i, U[i]))

    def block(piece):
        images, rows = piece
        grid = (images.stop - images.start, rows.stop - rows.start, wide)
        d = gather(x, images, rows.start * m - top, grid[1] * m + 2, -left, wide * m + 2)
        V = input_tiles(F, d, grid)  # [n, n, tiles, C]
        M = scratch("tiles_2", (n, n, V.shape[2], C_out), x.dtype)
        parallel_for(range(n), lambda i: np.matmul(V[i], weights(i) if U is None else U[i].reshape(n, C, C_out), out=M[i]))
        lines = slice(rows.start * m, rows.stop * m)
        out = y[images, lines]
        whole = output_tiles(F, M, grid)[:, : out.shape[1], :W]
        np.copyto(out, whole) if b is None else np.add(whole, b, out=out)
        add_in_place(y, images, lines, embedding, skip)

    parallel_for(work, block)
    return y


def input_tiles(F, d, grid):
    """V = Bᵀ d B of every tile: first along the height, whole image rows at a time, then along the width.

    d [b, m·r + 2, m·t + 2, C] for a grid of (b, r, t) tiles -> [n, n, b·r·t, C]
    """
    (b, r, t), m, n, C = grid, F.m, F.m + 2, d.shape[-1]
    halfway = scratch("tiles_2", (n, b, r, m * t + 2, C), d.dtype)
    V = scratch("tiles_1", (n, n, b, r, t, C), d.dtype)
    F.transform_input([d[:, i : i + m * r - m + 1 : m] for i in range(n)], halfway)
    for lines, v in zip(halfway, V):
        F.transform_input([lines[:, :, j : j + m * t - m + 1 : m] for j in range(n)], v)
    return V.reshape(n, n, b * r * t, C)


def output_tiles(F, M, grid):
    """Aᵀ M A of every tile, laid out as an image.        M [n, n, b·r·t, C′] -> [b, m·r, m·t, C′]"""
    (b, r, t), m, n, C = grid, F.m, F.m + 2, M.shape[-1]
    halfway = scratch("tiles_1", (m, n, b, r, t, C), M.dtype)
    y = scratch("tiles_2", (b, r, m, t, m, C), M.dtype)
    M = M.reshape(n, n, b, r, t, C)
    for j in range(n):
        F.transform_output(M[:, j], halfway[:, j])
    for i in range(m):
        F.transform_output(halfway[i], [y[:, :, i, :, j] for j in range(m)])
    return y.reshape(b, r * m, t * m, C)


MIN_CHANNELS, MIN_TILES = 128, 64  # with fewer the transforms, of the image or of the weights, take what the products save


def refuses_unsuitable(x, w, m, stride):
    if w.shape[2:] != (3, 3) or stride != 1:
        return "is for 3×3 kernels with stride 1"
    if x.dtype != np.float32:
        return "is for float32: it trades digits for products"
    if min(w.shape[:2]) < MIN_CHANNELS:
        return f"needs {MIN_CHANNELS} channels on either side to be worth its transforms"
    tiles = len(x) * (x.shape[1] // m) * (x.shape[2] // m)
    return None if tiles >= MIN_TILES else f"{tiles} tiles are too few to be worth the transform of the weights"


def refuses_2(x, w, *args, stride, **kwargs):
    return refuses_unsuitable(x, w, 2, stride)


def refuses_4(x, w, *args, stride, **kwargs):
    return refuses_unsuitable(x, w, 4, stride)


@rung("conv2d", "winograd2", owner="numpy", numerics="fast", refuses=refuses_2)
def winograd_2(x, w, b, *, stride, padding, embedding=None, skip=None):
    """Winograd F(2×2, 3×3): 4 products an output pixel instead of 9.

    Numerics: fast. Relative L2 error against float64 at most 1e-6 on random images and weights (im2col 4e-7).
    """
    return winograd(F2, x, w, b, padding, embedding, skip)


@rung("conv2d", "winograd4", owner="numpy", numerics="fast", refuses=refuses_4)
def winograd_4(x, w, b, *, stride, padding, embedding=None, skip=None):
    """Winograd F(4×4, 3×3) at the points 0, ±1/√2, ±√2: 2.25 products an output pixel instead of 9.

    Numerics: fast. Relative L2 error against float64 at most 4e-6 on random images and weights (im2col 4e-7).
    """
    return winograd(F4, x, w, b, padding, embedding, skip)
