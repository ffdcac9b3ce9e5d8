"""Resnets and changes of size, backwards."""

import pytest

from minisd.vjp.layers import resnet
from tests.goldens import golden
from tests.vjp.projection import arrays, check

EPS = dict(groups=6, eps=1e-5)


@pytest.mark.parametrize("block, channels", [(0, 18), (1, 18)], ids=["same width", "shortcut"])
def test_resnet_block(block, channels):
    p = golden("unet_sd1").model("float64").params.down_blocks[block].resnets[0]
    x, t_emb = arrays("resnet", (2, 5, 3, channels), (2, p.time_emb_proj.weight.shape[1]))
    check(lambda x, t: resnet.resnet_block(p, x, t, **EPS), x, t_emb, name="resnet_block")


def test_without_a_time_dx_comes_alone():
    p = golden("vae").model("float64").params.decoder.mid_block.resnets[0]
    (x,) = arrays("no time", (1, 3, 4, 30))
    check(lambda x: resnet.resnet_block(p, x, **EPS), x, name="resnet_block of the VAE")


def test_changes_of_size():
    p = golden("unet_sd1").model("float64").params
    (x,) = arrays("sizes", (2, 5, 4, 18))
    check(lambda x: resnet.downsample(p.down_blocks[0].downsamplers[0], x, padding=((0, 1), (0, 1))), x, name="downsample")
    (x,) = arrays("up", (2, 3, 4, 42))
    check(lambda x: resnet.upsample(p.up_blocks[0].upsamplers[0], x, size=(5, 8)), x, name="upsample")
