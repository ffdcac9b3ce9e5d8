"""The one comparison of the project: how far from the truth may a result be?

Truth is float64. A result is faithful if its error is at most twice the error that plain torch makes in the same dtype, plus a
floor of one unit in the last place:

    |ours − truth| <= factor · |plain − truth| + ulp · |truth| + tiny

held for two norms: L2, which sees a small bias everywhere, and the maximum, which sees one wrong element.
ulp is 2⁻²³ for float32, 2⁻¹⁰ for float16, 2⁻⁵² for float64; tiny is the smallest normal number, below which libraries may flush to 0.
All assertions read `error <= tolerance`, so that NaN fails.
"""

import math

import numpy as np

from minisd.backend import to_numpy


def relative_l2(a, b) -> float:
    """‖a − b‖ / ‖b‖ in float64; two zero arrays are 0 apart, anything else is ∞ away from zero."""
    return _ratio(_l2(_float64(a) - _float64(b)), _l2(_float64(b)))


def max_error(a, b) -> float:
    """max|a − b| / max|b| in float64, with the same meaning of zero."""
    return _ratio(_max(_float64(a) - _float64(b)), _max(_float64(b)))


def assert_faithful(ours, truth, plain, *, name, factor=2.0):
    """`ours` has the dtype of `plain`, is finite, and is at most `factor` times as far from the float64 `truth` as `plain` is.

    ours, plain [...] of one floating dtype, truth [...] float64 -> (relative L2 error of ours, of plain)
    """
    ours, truth, plain = to_numpy(ours), to_numpy(truth), to_numpy(plain)
    assert truth.dtype == np.float64, f"{name}: the truth is {truth.dtype}, not float64"
    assert ours.dtype == plain.dtype, f"{name}: ours is {ours.dtype}, plain is {plain.dtype}"
    assert ours.shape == truth.shape == plain.shape, f"{name}: shapes ours {ours.shape}, truth {truth.shape}, plain {plain.shape}"
    _assert_finite(ours, name, "ours")
    _assert_finite(truth, name, "the truth")
    _assert_finite(plain, name, "plain")

    kind = np.finfo(plain.dtype)
    ulp, tiny = float(kind.eps), float(kind.smallest_normal)
    for norm, label, floor in ((_l2, "L2 error", tiny * math.sqrt(truth.size)), (_max, "largest error", tiny)):
        size = norm(truth)
        e_ours, e_plain = norm(_float64(ours) - truth), norm(_float64(plain) - truth)
        tolerance = factor * e_plain + ulp * size + floor
        assert e_ours <= tolerance, (
            f"{_report(name, label, ours, truth, e_ours, tolerance, size)}, plain {_ratio(e_plain, size):.3e}"
            f" (ours is {_ratio(e_ours, e_plain):.2f} times as far away)\n  plain there {plain[_worst(ours, truth)]!r}"
        )
    return relative_l2(ours, truth), relative_l2(plain, truth)


def assert_close_f64(ours, truth, *, name, tolerance=1e-10):
    """Two float64 computations of the same thing agree: relative L2 error and max|error| / max|truth| at most `tolerance`."""
    ours, truth = to_numpy(ours), to_numpy(truth)
    assert ours.dtype == truth.dtype == np.float64, f"{name}: ours is {ours.dtype}, truth {truth.dtype}, not float64"
    assert ours.shape == truth.shape, f"{name}: shapes ours {ours.shape}, truth {truth.shape}"
    _assert_finite(ours, name, "ours")
    _assert_finite(truth, name, "the truth")
    for norm, label in ((_l2, "L2 error"), (_max, "largest error")):
        size, e_ours = norm(truth), norm(ours - truth)
        assert e_ours <= tolerance * size, _report(name, label, ours, truth, e_ours, tolerance * size, size)


def _float64(x) -> np.ndarray:
    return to_numpy(x).astype("float64")


def _l2(x) -> float:
    return float(np.linalg.norm(x.ravel()))


def _max(x) -> float:
    return float(np.max(np.abs(x), initial=0.0))


def _ratio(a: float, b: float) -> float:
    return a / b if b else (0.0 if a == 0.0 else math.inf)


def _worst(ours, truth) -> tuple:
    return tuple(map(int, np.unravel_index(np.argmax(np.abs(_float64(ours) - truth)), truth.shape)))


def _assert_finite(x, name, who):
    wrong = np.argwhere(~np.isfinite(x))
    where = tuple(map(int, wrong[0])) if len(wrong) else ()
    assert len(wrong) == 0, f"{name}: {who} has {x[where]!r} at {where}; {len(wrong)} of {x.size} elements are not finite"


def _report(name, label, ours, truth, error, tolerance, size) -> str:
    worst = _worst(ours, truth)
    return (
        f"{name}: {label} {error:.3e}, allowed {tolerance:.3e}\n"
        f"  worst at {worst}: ours {ours[worst]!r}, truth {truth[worst]!r}\n"
        f"  relative to the size of the truth: ours {_ratio(error, size):.3e}"
    )
