"""Doubling by repeated pixels, backwards: what went to four pixels comes back as their sum."""

from ... import ops
from ...backend import array_module
from .conv2d import conv2d_image, conv2d_weights, reversed_taps
from .linear import total

PADDING = ((1, 1), (1, 1))


def upsample_nearest(x, *, size):
    """y[h, w] = x[h // 2, w // 2]    →    dx[h, w] = the sum of dy over the (at most) 2 × 2 pixels that x[h, w] became.

    dy [B, H′, W′, C] -> dx [B, H, W, C]
    """
    return ops.upsample_nearest(x, size=size), lambda dy: sum_of_pixels(dy, x.shape)


def upsample_conv2d(x, w, b=None, *, size):
    """y = conv2d(upsampled x)    →    dx = Σ₂ₓ₂ of the convolution's dx, which is one 4×4 convolution of dy with stride 2:

    in one dimension dx[i] = Σₘ dy[2i + m] vₘ for m = −1 … 2, with v = [w₂, w₁ + w₂, w₀ + w₁, w₀], the reversed taps * [1, 1].
    16 products a small pixel instead of 36, and no large image in between. An odd size, cut off, takes the two steps one by one.
    dy [B, H′, W′, C′] -> dx [B, H, W, C]; wrt_params: dx, dw, db as in conv2d
    """

    def pullback(dy, wrt_params=False):
        if tuple(size) == (2 * x.shape[1], 2 * x.shape[2]):
            dx = ops.conv2d(dy, doubled_taps(w), stride=2, padding=1)
        else:
            dx = sum_of_pixels(conv2d_image(dy, w, (*dy.shape[:3], w.shape[1]), 1, PADDING), x.shape)
        if not wrt_params:
            return dx
        dw = conv2d_weights(dy, ops.upsample_nearest(x, size=size), w, 1, PADDING)
        return dx, dw, None if b is None else total(dy.reshape(-1, dy.shape[-1]))

    return ops.upsample_conv2d(x, w, b, size=size), pullback


def sum_of_pixels(dy, shape):
    """Sums over 2 × 2 pixels; a row or column that was cut off counts as 0.        [B, 2H or 2H − 1, 2W or 2W − 1, C] -> [B, H, W, C] = shape"""
    B, H, W, C = shape
    whole = array_module(dy).pad(dy, ((0, 0), (0, 2 * H - dy.shape[1]), (0, 2 * W - dy.shape[2]), (0, 0)))
    return whole.reshape(B, H, 2, W, 2, C).sum(axis=(2, 4))


def doubled_taps(w):
    """v, the reversed taps convolved with a 2 × 2 square of ones.        [C′, C, 3, 3] -> [C, C′, 4, 4], stored channels-last"""
    taps = reversed_taps(w)
    v = array_module(w).zeros((4, 4, *taps.shape[1::-1]), dtype=w.dtype).transpose(3, 2, 0, 1)
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        v[:, :, i : i + 3, j : j + 3] += taps
    return v
