"""The one comparison of the project: how far from the truth may a result be?

Truth is float64. A result is faithful if its error is at most twice the error that plain torch makes in the same dtype, plus one
unit in the last place:

    err(ours, truth) <= factor · err(plain, truth) + ulp        with ulp = 2⁻²³ for float32, 2⁻⁵² for float64, 2⁻¹⁰ for float16

held for two errors, both relative and so without a unit: the L2 norm, which sees a small bias everywhere, and the largest single
error over max|truth|, which sees one wrong element. All assertions read `err <= tolerance`, so that NaN fails.
"""

import math

import numpy as np

from minisd.backend import to_numpy


def relative_l2(a, b) -> float:
    """‖a − b‖ / ‖b‖ in float64; two zero arrays are 0 apart, anything else is ∞ away from zero."""
    a, b = _float64(a), _float64(b)
    distance, size = np.linalg.norm((a - b).ravel()), np.linalg.norm(b.ravel())
    return _over(distance, size)


def max_error(a, b) -> float:
    """max|a − b| / max|b| in float64, with the same meaning of zero."""
    a, b = _float64(a), _float64(b)
    return _over(np.max(np.abs(a - b), initial=0.0), np.max(np.abs(b), initial=0.0))


def assert_faithful(ours, truth, plain, *, name, factor=2.0):
    """`ours` has the dtype of `plain`, is finite, and is at most `factor` times as far from the float64 `truth` as `plain` is.

    ours, plain [...] of one floating dtype, truth [...] float64 -> (relative L2 error of ours, of plain)
    """
    ours, truth, plain = to_numpy(ours), to_numpy(truth), to_numpy(plain)
    assert truth.dtype == np.float64, f"{name}: the truth is {truth.dtype}, not float64"
    assert ours.shape == truth.shape == plain.shape, f"{name}: shapes ours {ours.shape}, truth {truth.shape}, plain {plain.shape}"
    assert ours.dtype == plain.dtype, f"{name}: ours is {ours.dtype}, plain is {plain.dtype}"
    _assert_finite(ours, truth, name)

    ulp = float(np.finfo(plain.dtype).eps)
    for kind, error in (("relative L2 error", relative_l2), ("largest error / max|truth|", max_error)):
        e_ours, e_plain = error(ours, truth), error(plain, truth)
        tolerance = factor * e_plain + ulp
        assert e_ours <= tolerance, _report(name, kind, ours, truth, e_ours, tolerance, plain, e_plain)
    return relative_l2(ours, truth), relative_l2(plain, truth)


def assert_close_f64(ours, truth, *, name, tolerance=1e-10):
    """Two float64 computations of the same thing agree: both errors at most `tolerance`."""
    ours, truth = to_numpy(ours), to_numpy(truth)
    assert ours.dtype == truth.dtype == np.float64, f"{name}: ours is {ours.dtype}, truth {truth.dtype}, not float64"
    assert ours.shape == truth.shape, f"{name}: shapes ours {ours.shape}, truth {truth.shape}"
    _assert_finite(ours, truth, name)
    for kind, error in (("relative L2 error", relative_l2), ("largest error / max|truth|", max_error)):
        e_ours = error(ours, truth)
        assert e_ours <= tolerance, _report(name, kind, ours, truth, e_ours, tolerance)


def _float64(x) -> np.ndarray:
    return to_numpy(x).astype("float64")


def _over(distance, size) -> float:
    if size == 0.0:
        return 0.0 if distance == 0.0 else math.inf
    return float(distance / size)


def _assert_finite(ours, truth, name):
    wrong = np.argwhere(~np.isfinite(ours))
    assert len(wrong) == 0, f"{name}: {ours[tuple(wrong[0])]} at {tuple(map(int, wrong[0]))}, {len(wrong)} of {ours.size} are not finite"
    assert np.isfinite(truth).all(), f"{name}: the truth itself is not finite"


def _report(name, kind, ours, truth, e_ours, tolerance, plain=None, e_plain=None) -> str:
    worst = np.unravel_index(np.argmax(np.abs(_float64(ours) - truth)), truth.shape)
    lines = [
        f"{name}: {kind} {e_ours:.3e} > {tolerance:.3e} allowed ({e_ours / tolerance:.2f} times)",
        f"  worst at {tuple(map(int, worst))}: ours {ours[worst]!r}, truth {truth[worst]!r}",
    ]
    if plain is not None:
        ratio = e_ours / e_plain if e_plain else math.inf
        lines.append(f"  plain {plain[worst]!r} there; error of plain {e_plain:.3e}, so ours is {ratio:.2f} times as far away")
    return "\n".join(lines)
