"""The time embedding, backwards."""

from minisd.vjp.layers.timestep import time_embedding
from tests.goldens import golden
from tests.vjp.projection import arrays, check


def test_time_embedding():
    p = golden("unet_sd1").model("float64").params.time_embedding
    (t_sin,) = arrays("t_sin", (2, 18))
    check(lambda t_sin: time_embedding(p, t_sin), t_sin, name="time_embedding")
