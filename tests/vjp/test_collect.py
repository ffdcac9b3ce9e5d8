"""Gradients of parameters: under their names, summed, and only inside the block that asks for them."""

import numpy as np

from minisd.params import Params
from minisd.vjp import parameter_gradients
from minisd.vjp.layers.basic import linear
from tests.vjp.projection import arrays


def test_they_are_summed_under_their_names_and_only_while_asked_for():
    w, b, x, dy = arrays("collect", (2, 3), (2,), (4, 3), (4, 2))
    p = Params.from_state_dict({"a.weight": w, "a.bias": b}, path="net").a
    _, pullback = linear(p, x)
    pullback(dy)
    with parameter_gradients() as outer:
        pullback(dy)
        with parameter_gradients() as inner:
            pullback(dy)
        pullback(dy)
    pullback(dy)
    assert list(inner) == ["net.a.weight", "net.a.bias"]
    assert np.array_equal(inner["net.a.weight"], dy.T @ x) and np.array_equal(outer["net.a.weight"], 2 * dy.T @ x)
    assert np.allclose(inner["net.a.bias"], dy.sum(axis=0), rtol=1e-14, atol=0)


def test_a_layer_without_bias_has_no_gradient_of_it():
    w, x = arrays("no bias", (2, 3), (4, 3))
    _, pullback = linear(Params.from_state_dict({"weight": w}), x)
    with parameter_gradients() as gradients:
        pullback(x[:, :2])
    assert list(gradients) == ["weight"]
