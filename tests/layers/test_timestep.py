"""How a timestep becomes an embedding, against diffusers' modules."""

import numpy as np

from minisd.layers.ready import products
from minisd.layers.timestep import time_projection
from minisd.ops import silu
from tests.goldens import check, every_record_of, golden

KINDS = ("Timesteps", "TimestepEmbedding")


@every_record_of(*KINDS)
def test_computes_what_the_reference_computes(name, path):
    check(golden(name), path)


def test_a_projection_is_the_same_whether_it_is_ready_or_not():
    """And half of its rows are those of half the batch."""
    p = golden("unet_sd1").model("float32").params.down_blocks[0].resnets[0].time_emb_proj
    t_emb = np.random.RandomState(0).standard_normal((4, p.weight.shape[1])).astype("float32")
    (ready,) = products([p], silu(t_emb)[None])
    for rows in (4, 2):
        y = time_projection(p, t_emb, rows)
        assert y.shape == (rows, len(p.weight))
        np.testing.assert_array_equal(time_projection(p, ready, rows), y)
    np.testing.assert_array_equal(time_projection(p, t_emb, 2), time_projection(p, t_emb, 4)[:2])
