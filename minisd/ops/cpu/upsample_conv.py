"""Doubling by repeated pixels, then a 3×3 convolution: nine products at the low resolution instead of 36.

In one dimension, with D[i] = x[i] − x[i−1] and zeros outside, the upsampled row x₀ x₀ x₁ x₁ … gives

    y[2i]     = w₀ x[i−1] + (w₁ + w₂) x[i]  =  (w₀ + w₁ + w₂) x[i] − w₀ D[i]
    y[2i + 1] = (w₀ + w₁) x[i] + w₂ x[i+1]  =  (w₀ + w₁ + w₂) x[i] + w₂ D[i+1]

three products for two outputs, not six. In two dimensions the rule is applied to rows and columns: nine products [pixels, C] @ [C, C′]
for four outputs, not 36, and the upsampled array is never made.
"""

import numpy as np

from ..dispatch import rung
from .arena import empty
from .conv2d import gather, pieces
from .parallel import blocks, parallel_for, scratch

MIN_CHANNELS = 64
PIXELS = 512  # of the small image in one block
G = np.array([[-1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0]], dtype="float64")  # −w₀, w₀ + w₁ + w₂, w₂


def refuses_others(x, w, b, *, size):
    if w.shape[2:] != (3, 3):
        return "is for 3×3 kernels"
    if min(w.shape[:2]) < MIN_CHANNELS:
        return f"needs {MIN_CHANNELS} channels on either side to be worth its sums"
    if tuple(size) != (2 * x.shape[1], 2 * x.shape[2]):
        return f"doubles exactly; {tuple(size)} cuts a row or column off"
    return None if x.dtype == np.float32 else "is for float32: it trades digits for products"


@rung("upsample_conv2d", "nine_products", owner="numpy", numerics="fast", refuses=refuses_others)
def nine_products(x, w, b, *, size):
    """x, its differences in height, in width and in both, times nine sums of the taps; then ten additions for four pixels.

    Numerics: fast. Relative L2 error against float64 at most 1e-6 on random images and weights.
    """
    B, H, W, C = x.shape
    C_out = len(w)
    taps = w.transpose(2, 3, 1, 0).reshape(9, -1)  # free: weights are stored channels-last
    GG = np.kron(G, G).astype(x.dtype)
    P = scratch("U", (9, C * C_out), x.dtype)
    parallel_for(blocks(C * C_out, 1 << 18), lambda part: np.matmul(GG, taps[:, part], out=P[:, part]))
    y = empty((B, 2 * H, 2 * W, C_out), x.dtype)

    def block(piece):
        images, rows = piece
        count, r = images.stop - images.start, rows.stop - rows.start
        d = gather(x, images, rows.start - 1, r + 2, -1, W + 2)
        inputs = scratch("tiles_1", (3, 3, count, r, W, C), x.dtype)  # 0, 1, 2: difference to the pixel before, pixel, to the next
        down = d[:, 1:] - d[:, :-1]
        for i, lines in enumerate((down[:, :-1], d[:, 1:-1], down[:, 1:])):
            np.subtract(lines[:, :, 1:-1], lines[:, :, :-2], out=inputs[i, 0])
            np.copyto(inputs[i, 1], lines[:, :, 1:-1])
            np.subtract(lines[:, :, 2:], lines[:, :, 1:-1], out=inputs[i, 2])
        q = scratch("tiles_2", (3, 3, count, r, W, C_out), x.dtype)
        factors = P.reshape(3, 3, C, C_out)
        parallel_for(np.ndindex(3, 3), lambda at: np.matmul(inputs[at].reshape(-1, C), factors[at], out=q[at].reshape(-1, C_out)))
        if b is not None:
            q[1, 1] += b
        for j in (0, 2):  # the left and the right pixel of a pair; then the upper and the lower line
            q[1, j] += q[1, 1]
            for i in (0, 2):
                fine = y[images, 2 * rows.start + i // 2 : 2 * rows.stop : 2, j // 2 :: 2]
                np.add(q[i, j], q[i, 1], out=fine)
                fine += q[1, j]

    parallel_for(pieces(B, H, W, PIXELS), block)
    return y
