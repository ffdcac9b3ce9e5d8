"""Linear layers and embeddings, backwards."""

import numpy as np
import pytest

from minisd import ops
from minisd.vjp import ops as vjp
from tests.vjp.projection import arrays, check


@pytest.mark.parametrize("x", [(1, 1), (7,), (2, 3, 5)])
def test_linear(x):
    x, w, b = arrays(f"linear {x}", x, (4, x[-1]), (4,))
    assert np.array_equal(vjp.linear(x, w, b)[0], ops.linear(x, w, b))
    check(lambda x: vjp.linear(x, w, b), x, name="linear")
    check(vjp.linear, x, w, b, name="linear with parameters", wrt_params=True)
    check(lambda x, w: (lambda y, pull: (y, lambda dy: pull(dy, wrt_params=True)[:2]))(*vjp.linear(x, w)), x, w, name="linear without bias")
    assert vjp.linear(x, w)[1](x[..., :1].repeat(4, axis=-1), wrt_params=True)[2] is None


def test_an_input_that_can_be_made_again_is_made_for_the_weights_only():
    x, w, dy = arrays("again", (3, 5), (2, 5), (3, 2))
    made = []
    y, pullback = vjp.linear(x, w, again=lambda: made.append(1) or x)
    pullback(dy)
    assert not made
    assert np.array_equal(pullback(dy, wrt_params=True)[1], dy.T @ x) and made == [1]


def test_embedding_sums_over_the_places_of_a_token():
    (table, dy) = arrays("embedding", (5, 3), (2, 4, 3))
    ids = np.array([[0, 4, 4, 1], [4, 0, 2, 4]])
    check(lambda table: vjp.embedding(ids, table), table, name="embedding")
    gradient = vjp.embedding(ids, table)[1](dy)
    assert np.allclose(gradient[4], dy[0, 1] + dy[0, 2] + dy[1, 0] + dy[1, 3], rtol=1e-15, atol=0) and not gradient[3].any()
