"""Products that are ready before the loop."""

import numpy as np
import pytest

from minisd.layers.basic import linear
from minisd.layers.ready import ALIGNED, Ready, products, project
from minisd.params import Params

draw = np.random.RandomState(0).standard_normal
WIDTHS = (5, 16, 7)


@pytest.fixture
def layers():
    shapes = {f"{i}.{leaf}": shape for i, C in enumerate(WIDTHS) for leaf, shape in (("weight", (C, 6)), ("bias", (C,)))}
    p = Params.from_state_dict({name: draw(shape) for name, shape in shapes.items()}, "unet")
    return list(p)


@pytest.mark.parametrize("shape", [(1, 2, 3, 6), (4, 2, 6)])
def test_every_product_is_that_of_its_layer_and_its_input(layers, shape):
    """To the last bit, if all inputs are multiplied at once."""
    x = draw(shape)
    ready = products(layers, x)
    assert len(ready) == shape[0] and all(len(r) == shape[1] for r in ready)
    for p, C in zip(layers, WIDTHS):
        y = linear(p, x)
        assert y.shape == (*shape[:-1], C)
        for i, r in enumerate(ready):
            np.testing.assert_array_equal(r[p], y[i])
            np.testing.assert_array_equal(project(p, r), y[i])
        np.testing.assert_array_equal(project(p, x), y)


def test_they_lie_in_one_flat_array_each_at_a_multiple_of_16_bytes(layers):
    (ready,) = products(layers, draw((1, 3, 6)))
    assert ready.flat.ndim == 1 and ready.flat.flags.c_contiguous
    assert [begin % ALIGNED for begin, _ in ready.places.values()] == [0, 0, 0]
    again = Ready(ready.flat.copy(), ready.places)  # another flat array with the same places: other inputs of the same shape
    for p in layers:
        assert ready[p].base is not None and ready[p].flags.c_contiguous
        np.testing.assert_array_equal(again[p], ready[p])
