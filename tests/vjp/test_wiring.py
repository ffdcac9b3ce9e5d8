"""Chains of pullbacks, and what a public pullback refuses."""

import numpy as np
import pytest

from minisd.errors import ContractError
from minisd.vjp.wiring import Chain, public


def scaled(p, x, *, by):
    return p * by * x, lambda dy: dy * by * p


def test_a_chain_goes_back_through_its_steps():
    steps = Chain(np.ones(2))
    steps.then(scaled, 2.0, by=3.0)
    steps.then(lambda p, x: (x**2, lambda dy: 2 * x * dy), None)
    assert steps.y.tolist() == [36.0, 36.0]
    assert steps.pullback(np.ones(2)).tolist() == [72.0, 72.0] == steps.pullback(np.ones(2)).tolist()


def test_a_gradient_that_is_not_like_the_value_is_refused():
    y, pullback = public(np.ones((2, 3), "float32"), lambda dy: dy)
    assert pullback(y) is y
    for wrong in (y.T, y.astype("float64")):
        with pytest.raises(ContractError, match=r"the gradient is .*, the value float32 \[2, 3\]"):
            pullback(wrong)
