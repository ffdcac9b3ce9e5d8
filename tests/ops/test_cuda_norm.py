"""The norm kernels in the simulator at Stable Diffusion's widths: many groups, far means, more pixels than a chunk."""

import re
from collections import Counter

import numpy as np
import pytest

from minisd.checkpoint import component_shapes
from minisd.config import UNetConfig, VAEConfig
from minisd.ops import reference
from minisd.ops.cuda import norm
from minisd.ops.cuda.device import on_device
from minisd.ops.dispatch import RUNGS
from tests.cudasim.simulator import Simulator, needs_simulator
from tests.numerics import relative_l2

GROUP = {"naive": norm.group_norm_naive, "shuffles": norm.group_norm_shuffles, "two_kernels": norm.group_norm_two_kernels,
         "one_pass": norm.group_norm_one_pass}  # fmt: skip
LAYER = {"naive": norm.layer_norm_naive, "warp": norm.layer_norm_warp, "vectors": norm.layer_norm_vectors}
# x, groups, mean over deviation, act
SHAPES = {
    "sd_320": ((2, 3, 5, 320), 32, 0.0, "silu"), "one_pixel_640": ((1, 1, 1, 640), 32, 0.0, None), "concat_960": ((1, 2, 3, 960), 32, 1.0, None),
    "many_pixels": ((1, 37, 19, 32), 4, 0.0, "silu"), "tokens": ((2, 50, 64), 8, 0.0, None), "far_mean": ((1, 9, 7, 64), 32, 100.0, None),
    "mid_1280": ((2, 4, 3, 1280), 32, 0.0, "silu"), "skip_2560": ((1, 1, 3, 2560), 32, 0.0, "silu"),
    "more_chunks_than_lanes": ((1, 40, 40, 16), 2, 3.0, "silu"),
}  # fmt: skip


def inputs(shape, mean, dtype):
    random = np.random.RandomState(sum(shape))
    return [a.astype(dtype) for a in (random.randn(*shape) + mean, 1 + 0.2 * random.randn(shape[-1]), random.randn(shape[-1]))]


@pytest.mark.parametrize("name", GROUP)
@needs_simulator[0]
@needs_simulator[1]
def test_group_norm_of_numbers_far_from_zero(name):
    """Mean 1000, deviation 1: with sums of x itself the result is 1.7e-5 from the truth, with sums of x − shift within the bound."""
    x, w, b = inputs((1, 32, 32, 16), 1000.0, "float32")
    truth = reference.group_norm(*(a.astype("float64") for a in (x, w, b)), groups=2, eps=1e-5, act=None)
    with on_device(Simulator()):
        assert relative_l2(GROUP[name](x, w, b, groups=2, eps=1e-5, act=None), truth) <= 2e-6


@pytest.mark.parametrize("dtype, bound", [("float16", 1e-3), ("float32", 1e-6)])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", GROUP)
@needs_simulator[0]
@needs_simulator[1]
def test_group_norm(name, shape, dtype, bound):
    size, groups, mean, act = SHAPES[shape]
    x, w, b = inputs(size, mean, dtype)
    keywords = dict(groups=groups, eps=1e-5, act=act)
    truth = reference.group_norm(*(a.astype("float64") for a in (x, w, b)), **keywords)
    with on_device(Simulator()):
        y = GROUP[name](x, w, b, **keywords)
    assert y.dtype == x.dtype and relative_l2(y, truth) <= bound


@pytest.mark.parametrize("dtype, bound", [("float16", 1e-3), ("float32", 1e-6)])
@pytest.mark.parametrize("shape", [(5, 320), (2, 3, 1280), (1, 8), (130, 24)])
@pytest.mark.parametrize("name", LAYER)
@needs_simulator[0]
@needs_simulator[1]
def test_layer_norm(name, shape, dtype, bound):
    x, w, b = inputs(shape, 10.0, dtype)
    truth = reference.layer_norm(*(a.astype("float64") for a in (x, w, b)), eps=1e-5)
    with on_device(Simulator()):
        y = LAYER[name](x, w, b, eps=1e-5)
    assert y.dtype == x.dtype and relative_l2(y, truth) <= bound


BUNDLES = [(320, 32, 8, 4), (640, 32, 8, 2), (1280, 32, 8, 1), (960, 32, 8, 4), (320, 32, 4, 2), (96, 32, 8, 8)]


@pytest.mark.parametrize("C, groups, V, bundle", BUNDLES)
def test_the_smallest_bundle_of_whole_vectors(C, groups, V, bundle):
    assert norm.bundle_of(C, groups, V) == bundle
    assert bundle * (C // groups) % V == 0


def test_no_bundle():
    assert norm.bundle_of(32, 32, 16) == 0 and norm.bundle_of(21, 7, 8) == 0


def test_one_pass_refuses_what_does_not_fit():
    x = np.zeros((1, 64, 64, 320), "float16")
    assert "more than 20480 numbers" in norm.refuses_large_groups(x, x[0, 0, 0], x[0, 0, 0], groups=32, eps=1e-5, act=None)
    assert norm.refuses_large_groups(x[:, :16, :16], x[0, 0, 0], x[0, 0, 0], groups=32, eps=1e-5, act=None) is None


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("name", GROUP)
@needs_simulator[0]
@needs_simulator[1]
def test_a_mean_of_a_thousand_deviations(name, dtype):
    """Mean 100, deviation 0.1. The truth is of the numbers as they are stored: in float16 their steps are 0.0625."""
    random = np.random.RandomState(0)
    x = (100 + 0.1 * random.randn(1, 23, 11, 32)).astype(dtype)
    w, b = np.ones(32, dtype), np.zeros(32, dtype)
    keywords = dict(groups=4, eps=1e-5, act=None)
    truth = reference.group_norm(*(a.astype("float64") for a in (x, w, b)), **keywords)
    with on_device(Simulator()):
        y = GROUP[name](x, w, b, **keywords)
    assert relative_l2(y, truth) <= (1e-3 if dtype == "float16" else 1e-5)


# ----- which rung takes which norm of the official models ------------------------------------------------------------------------

# level of the UNet (its pixels at 512² and 768²): {channels: how many of the 61 norms have so many}; groups are 32
UNET = {(4096, 9216): {320: 13, 640: 2, 960: 1}, (1024, 2304): {320: 1, 640: 11, 960: 1, 1280: 1, 1920: 1},
        (256, 576): {640: 1, 1280: 11, 1920: 1, 2560: 2}, (64, 144): {1280: 12, 2560: 3}}  # fmt: skip
HALF = {(256, 640), (256, 1280), (256, 2560), (64, 1280), (64, 2560), (144, 1280), (144, 2560)}
ONE_PASS = {"float16": HALF, "float32": HALF | {(1024, 320), (1024, 640), (256, 1920), (576, 640)}}  # (pixels, channels): narrower bundles of 4
VAE = {4096: {512: 11}, 16384: {512: 6}, 65536: {512: 1, 256: 5}, 262144: {256: 1, 128: 6}}  # the decoder's 30 at 512²


def norm_weights(config, pattern):
    """How many group norms of a model have so many channels, by its checkpoint's names."""
    return Counter(shape[0] for name, shape in component_shapes(config).items() if re.search(pattern, name) and len(shape) == 1)


def test_the_table_has_every_group_norm_of_the_models():
    unet = sum((Counter(level) for level in UNET.values()), Counter())
    assert unet == norm_weights(UNetConfig(), r"(resnets\.\d+\.norm\d|attentions\.\d+\.norm|conv_norm_out)\.weight$") and unet.total() == 61
    config = VAEConfig(block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
                       up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2)  # fmt: skip
    vae = sum((Counter(level) for level in VAE.values()), Counter())
    assert vae == norm_weights(config, r"^decoder.*(norm\d?|group_norm|conv_norm_out)\.weight$") and vae.total() == 30


def chosen(S, C, B, dtype):
    x = np.broadcast_to(np.zeros((), dtype), (B, S, C))
    ladder = [r for r in RUNGS["group_norm"] if r.owner in ("cupy", "any")]
    return next(r.name for r in reversed(ladder) if r.refuses(x, x[0, 0], x[0, 0], groups=32, eps=1e-5, act="silu") is None)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_rung_of_every_group_norm_of_the_models(dtype):
    for sizes, level in UNET.items():
        for S in sizes:
            for C in level:
                assert chosen(S, C, 2, dtype) == ("one_pass" if (S, C) in ONE_PASS[dtype] else "two_kernels"), (S, C)
    for S, level in VAE.items():
        for C in level:
            assert chosen(S, C, 1, dtype) == "two_kernels", (S, C)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("C", [320, 640, 1280, 768, 1024])
def test_the_rung_of_every_layer_norm_of_the_models(C, dtype):
    x = np.zeros((1, C), dtype)
    assert next(r.name for r in reversed(RUNGS["layer_norm"]) if r.refuses(x, x[0], x[0], eps=1e-5) is None) == "vectors"


@pytest.mark.parametrize("dtype, V", [("float16", 8), ("float32", 4)])
def test_one_pass_fits_into_every_gpus_shared_memory(dtype, V):
    """At its limit, for every width of a stripe: what it keeps and the partial sums."""
    for stripe in range(V, 512 * V + 1, V):
        rows, pixels = 512 // (stripe // V), norm.KEPT // stripe
        assert pixels * stripe * np.dtype(dtype).itemsize + 4 * (rows * (stripe + 1) + norm.BUNDLE) <= 99 << 10
