"""Range and moments of an array at the speed of memory: what a trace says about every layer, so it must cost little.

Each block of 65,536 numbers is swept four times while it is in the cache of a core: minimum, maximum, Σx, Σx². The sums are of 1024
numbers in x's own precision, and float64 above that. Σx² also tells whether all is finite. Where the short way loses digits, because
the mean is more than three deviations from 0 or something is not finite, the block is measured again in float64.
"""

import math

import numpy as np

from .ops.cpu.parallel import blocks, parallel_for

BLOCK, ROW = 1 << 16, 1 << 10
ONES = {dtype: np.ones(ROW, dtype=dtype) for dtype in ("float32", "float64")}


def statistics(x) -> dict:
    """Range and moments of the finite values of x, and how many of the others are NaN and infinite.

    x real, of any shape -> {"min", "max", "mean", "std", "nan", "inf"}; min and max are None where no value is finite
    """
    flat = x.reshape(-1) if x.dtype.name in ONES else x.reshape(-1).astype("float64")
    whole = flat.size - flat.size % ROW
    parts = [flat[part].reshape(-1, ROW) for part in blocks(whole, BLOCK)] + [flat[None, whole:]] * (whole < flat.size)
    found = np.empty((len(parts), 7), dtype="float64")

    def measure(i):
        found[i] = quick(parts[i])

    parallel_for(range(len(parts)), measure)
    low, high, n, mean, squares, nan, inf = found.T
    count = n.sum()
    if not count:
        return {"min": None, "max": None, "mean": 0.0, "std": 0.0, "nan": int(nan.sum()), "inf": int(inf.sum())}
    centre = float((n * mean).sum() / count)
    deviations = float((squares + n * (mean - centre) ** 2).sum())  # about the common mean
    return {"min": float(low.min()), "max": float(high.max()), "mean": centre, "std": math.sqrt(deviations / count),
            "nan": int(nan.sum()), "inf": int(inf.sum())}  # fmt: skip


def quick(rows):
    """(min, max, n, mean, Σ(x − mean)², NaNs, infinities) of a block [R, ≤ 1024]."""
    low, high, n = rows.min(), rows.max(), rows.size
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.vecdot(rows, ONES[rows.dtype.name][: rows.shape[1]]).sum(dtype="float64")
        square = np.vecdot(rows, rows).sum(dtype="float64")
        deviations = square - total * total / n
    if deviations > 0.1 * square:  # false for NaN and ∞
        return low, high, n, total / n, deviations, 0, 0
    return slow(rows)


def slow(x):
    """The same by its definition, in float64."""
    wide = x.astype("float64").ravel()
    finite = wide[np.isfinite(wide)]
    nan = int(np.isnan(wide).sum())
    mean = finite.mean() if finite.size else 0.0
    return (finite.min(initial=math.inf), finite.max(initial=-math.inf), finite.size, mean, ((finite - mean) ** 2).sum(),
            nan, wide.size - finite.size - nan)  # fmt: skip
