"""The attention kernels at Stable Diffusion's head widths, in the simulator: ragged numbers of queries and keys, causal, extreme logits."""

import numpy as np
import pytest

from minisd.ops import reference
from minisd.ops.cuda import attention
from minisd.ops.cuda.device import on_device
from tests.cudasim.simulator import Simulator, needs_simulator
from tests.numerics import relative_l2

pytestmark = needs_simulator
RUNGS = {"naive": attention.naive, "online": attention.online, "tiles": attention.tiles, "flash": attention.flash}
# B, N, S, T, D, causal, logits multiplied by
SHAPES = {
    "self_40": (1, 2, 65, 65, 40, False, 1), "cross_40": (2, 1, 64, 77, 40, False, 1), "one_query": (1, 1, 1, 130, 40, False, 1),
    "causal_64": (1, 2, 77, 77, 64, True, 1), "causal_fewer_queries": (1, 1, 10, 77, 64, True, 1), "one_key_64": (1, 1, 5, 1, 64, False, 1),
    "cross_80": (1, 1, 3, 77, 80, False, 1), "self_160": (1, 1, 66, 66, 160, False, 1), "causal_160": (1, 1, 70, 70, 160, True, 1),
    "large_logits": (1, 1, 64, 128, 64, False, 36), "equal_scores": (1, 1, 16, 100, 40, False, 0),
}  # fmt: skip


def inputs(B, N, S, T, D, causal, logits, dtype="float16"):
    """q, k, v as [B, N, ·, D] views of token-major arrays, and the keywords."""
    random = np.random.RandomState(S + T + D)
    q, k, v = (random.randn(B, n, N, D).astype(dtype).transpose(0, 2, 1, 3) for n in (S, T, T))
    return (q * np.dtype(dtype).type(logits), k, v), dict(scale=D**-0.5, mask=None, causal=causal)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", RUNGS)
def test_half_is_within_a_thousandth_of_float64(name, shape):
    arrays, keywords = inputs(*SHAPES[shape])
    truth = reference.attention(*(a.astype("float64") for a in arrays), **keywords)
    with on_device(Simulator()) as _:
        y = RUNGS[name](*arrays, **keywords)
    assert y.shape == truth.shape and y.dtype == np.float16
    assert relative_l2(y, truth) <= 1e-3


def test_heads_stay_inside_tokens():
    """Joining the heads again is a view: no copy in `multi_head`."""
    arrays, keywords = inputs(*SHAPES["cross_40"])
    with on_device(Simulator()):
        y = attention.flash(*arrays, **keywords)
    assert y.transpose(0, 2, 1, 3).flags.c_contiguous


@pytest.mark.parametrize("width", attention.FLASH_WIDTHS)
def test_flash_fits_into_every_gpus_shared_memory(width):
    assert attention.flash_bytes(width) <= 99 << 10
