"""The layers with one weight and one bias, backwards: the inputs' gradients, and the weights' by their names."""

import numpy as np
import pytest

from minisd.params import Params
from minisd.vjp import parameter_gradients
from minisd.vjp.layers import basic
from tests.vjp.projection import arrays, check

LAYERS = {  # shape of x, of the weight, options
    "linear": ((2, 3, 5), (4, 5), {}),
    "conv2d": ((2, 5, 4, 3), (4, 3, 3, 3), dict(stride=2, padding=1)),
    "upsample_conv2d": ((2, 3, 4, 3), (4, 3, 3, 3), dict(size=(6, 7))),
    "group_norm": ((2, 3, 4, 6), (6,), dict(groups=2, eps=1e-3, act="silu")),
    "layer_norm": ((2, 3, 6), (6,), dict(eps=1e-3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_inputs_and_parameters(name):
    shape, weight, options = LAYERS[name]
    x, w, b = arrays(name, shape, weight, weight[:1])

    def by_parameters(x, w, b):
        """The parameters as inputs: their gradients are what is collected."""
        p = Params.from_state_dict({"weight": w, "bias": b}, path="p")
        y, pullback = getattr(basic, name)(p, x, **options)

        def pull(dy):
            with parameter_gradients() as gradients:
                dx = pullback(dy)
            return dx, gradients["p.weight"], gradients["p.bias"]

        return y, pull

    check(by_parameters, x, w, b, name=name)


def test_embedding():
    table, dy = arrays("embedding layer", (5, 3), (2, 3))
    _, pullback = basic.embedding(Params.from_state_dict({"weight": table}, path="p"), np.array([1, 1]))
    assert pullback(dy) is None
    with parameter_gradients() as gradients:
        assert pullback(dy) is None
    assert np.allclose(gradients["p.weight"][1], dy.sum(axis=0), rtol=1e-14, atol=0)
