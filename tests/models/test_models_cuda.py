"""The three networks by the GPU's kernels, at toy width in the simulator: every launcher fed by the real layers, in float16.

Compared with the float64 model on the same float16 numbers, and with what the reference makes of them in float16; heads are 40, 64 and 80
wide, so that attention runs on tensor cores.
"""

import collections

import numpy as np
import pytest

from minisd.checkpoint import component_shapes
from minisd.config import CLIPTextConfig, UNetConfig, VAEConfig
from minisd.models import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
from minisd.params import Params
from tests.cudasim.simulator import FORWARD, Simulator, gpu_ladder, needs_simulator
from tests.numerics import relative_l2

pytestmark = needs_simulator
UNET = UNetConfig(
    block_out_channels=(40, 80), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    cross_attention_dim=24, attention_head_dim=(1, 1), norm_num_groups=4, layers_per_block=1,
)  # fmt: skip
VAE = VAEConfig(
    block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4
)
CLIP = CLIPTextConfig(vocab_size=50, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=1, hidden_act="quick_gelu")


def model(cls, config, dtype):
    """Weights of the variance that keeps activations near 1, as float16 numbers, convolutions channels-last as a loader leaves them."""
    random, tensors = np.random.RandomState(0), {}
    for name, shape in component_shapes(config).items():
        w = random.randn(*shape) / np.prod(shape[1:]) ** 0.5 if len(shape) > 1 else 0.1 * random.randn(*shape) + name.endswith("weight")
        w = w.astype("float16").astype(dtype)
        tensors[name] = np.ascontiguousarray(w.transpose(2, 3, 1, 0)).transpose(3, 2, 0, 1) if w.ndim == 4 else w
    return cls(config, Params.from_state_dict(tensors, path=cls.component))


def draw(*shape):
    return np.random.RandomState(sum(shape)).randn(*shape).astype("float16")


def unet(dtype):
    """Two latents of odd height, a fractional timestep, a prompt of 7 tokens."""
    z, context = draw(2, 4, 5, 6).astype(dtype), draw(2, 7, 24).astype(dtype)
    return model(UNet2DConditionModel, UNET, dtype)(z, np.array([17.0, 925.25]), context)


def decode(dtype):
    return model(AutoencoderKL, VAE, dtype).decode(draw(1, 4, 5, 6).astype(dtype))


def encode(dtype):
    """Odd sizes, padded on one side on the way down."""
    return model(AutoencoderKL, VAE, dtype).encode(draw(1, 3, 10, 14).astype(dtype)).mode()


def clip(dtype):
    return model(CLIPTextModel, CLIP, dtype)(np.arange(26).reshape(2, 13))


WANTED = {
    unet: {"conv2d_fused", "conv2d_parts", "conv2d_total", "gemm_mma", "gemm_geglu", "attention_few_keys", "group_norm_one_pass", "layer_norm_vectors",
           "activation_vectors", "timestep_table"},
    decode: {"conv2d_fused", "conv2d_upsampled", "group_norm_one_pass", "gemm_mma"},
    encode: {"conv2d_fused", "group_norm_one_pass", "gemm_mma"},
    clip: {"gemm_mma", "attention_few_keys", "layer_norm_vectors", "activation_vectors"},
}  # fmt: skip


@pytest.mark.parametrize("run", WANTED, ids=lambda f: f.__name__)
def test_a_network_on_the_kernels(run):
    truth = run("float64")
    with gpu_ladder(Simulator(ways=[FORWARD])) as device:
        y = run("float16")
    assert y.dtype == np.float16 and y.shape == truth.shape
    assert relative_l2(y, truth) <= 2 * relative_l2(run("float16"), truth)  # outside the block float16 is the reference's
    launched = collections.Counter(expression.partition("<")[0] for expression in device.launches)
    assert WANTED[run] <= set(launched), launched


def test_no_attention_of_the_unet_takes_the_reference():
    """30 pixels and 7 tokens are few keys."""
    with gpu_ladder(Simulator(ways=[FORWARD])) as device:
        unet("float16")
    blocks = sum(name.endswith("attn1.to_q.weight") for name in component_shapes(UNET))
    assert sum(expression.startswith("attention_few_keys") for expression in device.launches) == 2 * blocks == 8
