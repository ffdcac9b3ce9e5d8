"""The one test of a pullback: <u, J v> = <Jᵀ u, v> for random u and v, J v by central differences in float64."""

import numpy as np

from tests.tiny_models import random


def arrays(name: str, *shapes):
    """Standard normal float64 arrays, drawn from a generator that the name seeds."""
    draw = random(name)
    return [draw.standard_normal(shape) for shape in shapes]


def check(f, *inputs, name="", h=1e-5, tolerance=1e-7, **pull_options):
    """f(*inputs) -> y, pullback: each gradient by itself, and none of another shape or dtype than its input.

    Central differences are h² f‴/6 off, and their rounding is 1e-16 |f| / h: at h = 1e-5 both are about 1e-10 for functions of size 1.
    """
    y, pullback = f(*inputs)
    (u,) = arrays(f"u of {name}", y.shape)
    gradients = pullback(u, **pull_options)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    assert len(gradients) == len(inputs), f"{name}: {len(gradients)} gradients of {len(inputs)} inputs"
    for i, (x, gradient) in enumerate(zip(inputs, gradients)):
        assert gradient.shape == x.shape and gradient.dtype == x.dtype, f"{name}: gradient {i} is {gradient.dtype} {gradient.shape}, x is {x.shape}"
        (v,) = arrays(f"v {i} of {name}", x.shape)
        moved = [[*inputs[:i], x + sign * h * v, *inputs[i + 1 :]] for sign in (1, -1)]
        plus, minus = (f(*m)[0] for m in moved)
        jv, jtu = float((u * (plus - minus)).sum()) / (2 * h), float((gradient * v).sum())
        size = max(abs(jv), float(np.linalg.norm(gradient)))  # a projection may be 0 by chance
        assert abs(jv - jtu) <= tolerance * size, f"{name}: gradient {i} projects to {jtu!r}, the difference quotient is {jv!r}"
