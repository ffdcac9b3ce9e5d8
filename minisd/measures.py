"""How far apart two arrays are, in float64, whatever their layout and precision: the arithmetic of `minisd diff`."""

import math

import numpy as np


def like(a, b):
    """a in the shape of b where that keeps the order of the values: [B, C, H, W] for [B, C, HW], as in torch's VAE; [T, C] for [1, T, C].

    Also tokens [B, HW, C] as the image [B, C, H, W] that they are in LDM's VAE, which attends with 1×1 convolutions.
    """
    if a.ndim == 3 and b.ndim == 4 and a.shape == (b.shape[0], b.shape[2] * b.shape[3], b.shape[1]):
        return a.swapaxes(1, 2).reshape(b.shape)
    flattened = a.size == b.size and a.shape[:2] == b.shape[:2]
    return a.reshape(b.shape) if flattened or [n for n in a.shape if n != 1] == [n for n in b.shape if n != 1] else a


def coarser(a, b) -> np.dtype:
    """The dtype with the larger roundoff; integers count as float32."""
    dtypes = [v.dtype if v.dtype.kind == "f" else np.dtype("float32") for v in (a, b)]
    return max(dtypes, key=lambda dtype: np.finfo(dtype).eps)


def relative(a, b) -> float:
    """‖a − b‖ / ‖b‖ in float64; two zero arrays are 0 apart, anything else is ∞ away from zero."""
    a, b = a.astype("float64").ravel(), b.astype("float64").ravel()
    return ratio(float(np.linalg.norm(a - b)), float(np.linalg.norm(b)))


def ratio(a: float, b: float) -> float:
    return a / b if b else (0.0 if a == 0.0 else math.inf)


def cosine(a, b) -> float:
    norms = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    return float(np.dot(a.ravel(), b.ravel())) / norms if norms else float(not a.any() and not b.any())
