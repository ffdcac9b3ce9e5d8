"""Resnets and changes of size, against diffusers' modules; and that on a GPU nothing is added in a pass of its own."""

import numpy as np
import pytest

from minisd.layers.attention import transformer_block
from minisd.layers.resnet import resnet_block
from minisd.params import Params
from tests.cudasim.simulator import Simulator, gpu_ladder
from tests.goldens import check, every_record_of, golden

KINDS = ("ResnetBlock2D", "Downsample2D", "Upsample2D")


@every_record_of(*KINDS)
def test_computes_what_the_reference_computes(name, path):
    check(golden(name), path)


class Recorder(Simulator):
    """Runs nothing, and keeps which of the sums each launch was given."""

    def run(self, instance, grid, block, arguments, shared):
        given = {p.name for p, a in zip(instance.parameters, arguments) if a is not None}
        self.launches.append((instance.expression.partition("<")[0], given & {"embedding", "skip"}))


def half_params(**shapes):
    arrays = {name.replace("__", "."): np.zeros(shape, "float16") for name, shape in shapes.items()}
    return Params.from_state_dict(arrays, path="net")


def biased(**shapes):
    return {f"{name}__{part}": size for name, shape in shapes.items() for part, size in (("weight", shape), ("bias", shape[:1]))}


@pytest.mark.parametrize("C_out", [320, 640])
@pytest.mark.parametrize("side", [8, 64])
def test_the_gpu_adds_embedding_and_skip_in_epilogues(side, C_out):
    """At 8×8 behind parts of K, at 64×64 in the product itself; the shortcut's own bias too."""
    more = {} if C_out == 320 else dict(conv_shortcut=(C_out, 320, 1, 1))
    p = half_params(**biased(norm1=(320,), conv1=(C_out, 320, 3, 3), time_emb_proj=(C_out, 16), norm2=(C_out,), conv2=(C_out, C_out, 3, 3), **more))
    device = Recorder()
    with gpu_ladder(device), np.errstate(invalid="ignore"):
        y = resnet_block(p, np.zeros((2, side, side, 320), "float16"), np.zeros((2, 16), "float16"), groups=32, eps=1e-5)
    last = "conv2d_total" if side == 8 else "conv2d_fused"
    assert y.shape == (2, side, side, C_out)
    assert [launch for launch in device.launches if launch[1]] == [(last, {"embedding"}), (last, {"skip"})]


def test_the_gpu_adds_the_skips_of_a_transformer_in_epilogues():
    """Three sums, three products: two linear layers behind attention, one behind GEGLU."""
    C = 320
    attention = dict(to_q__weight=(C, C), to_k__weight=(C, C), to_v__weight=(C, C), **biased(to_out__0=(C, C)))
    shapes = {f"{name}__{key}": size for name in ("attn1", "attn2") for key, size in attention.items()}
    shapes |= biased(norm1=(C,), norm2=(C,), norm3=(C,), ff__net__0__proj=(8 * C, C), ff__net__2=(C, 4 * C))
    device, x = Recorder(), np.zeros((1, 4096, C), "float16")
    with gpu_ladder(device), np.errstate(invalid="ignore"):
        transformer_block(half_params(**shapes), x, x[:, :77], heads=8)
    assert [launch for launch in device.launches if launch[1]] == [("gemm_mma", {"skip"})] * 3
    assert sum(name == "gemm_geglu" for name, _ in device.launches) == 1
