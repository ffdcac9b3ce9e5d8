"""The kernels for compute capability 9.0 in the simulator: ragged on all sides, and refused everywhere else."""

import re
import subprocess

import numpy as np
import pytest

from minisd import ops
from minisd.ops import reference
from minisd.ops.cuda import hopper, nvrtc
from minisd.ops.cuda.compile import build
from minisd.ops.cuda.device import SHARED, on_device
from minisd.ops.cuda.kernel import source
from tests.cudasim.simulator import Simulator, gpu_ladder, needs_simulator
from tests.numerics import relative_l2
from tests.ops.test_cuda_attention import SHAPES as ATTENTION_SHAPES
from tests.ops.test_cuda_attention import inputs as attention_inputs
from tests.ops.test_cuda_conv2d import ONE, wide
from tests.ops.test_cuda_conv2d import inputs as conv_inputs
from tests.ops.test_cuda_linear import inputs as linear_inputs


def needs_kernels(f):
    for mark in needs_simulator:
        f = mark(f)
    return f


def on_hopper():
    return on_device(Simulator(capability=90))


# ----- linear --------------------------------------------------------------------------------------------------------------------


@needs_kernels
@pytest.mark.parametrize("shape", [(1, 2, 8), (128, 160, 64), (129, 162, 264), (300, 320, 72), (3, 130, 1280)])
def test_linear(shape):
    x, w, b = linear_inputs(*shape)
    skip = np.random.RandomState(0).randn(*shape[:2]).astype("float16")
    truth = x.astype("float64") @ w.astype("float64").T
    with on_hopper():
        y, plain = hopper.product_wgmma(x, w, b, skip), hopper.product_wgmma(x, w)
    assert y.dtype == np.float16 and relative_l2(y, truth + b + skip) <= 1e-3 and relative_l2(plain, truth) <= 1e-3


@needs_kernels
@pytest.mark.parametrize("shape, cluster", [((260, 320, 72), 1), ((300, 256, 264), 2), ((260, 160, 136), 2)])
def test_a_block_makes_one_tile_after_another(shape, cluster, monkeypatch):
    monkeypatch.setattr(Simulator, "multiprocessors", cluster)
    monkeypatch.setattr(hopper, "cluster_for", lambda tiles: cluster)
    x, w, b = linear_inputs(*shape)
    with on_hopper():
        y = hopper.product_wgmma(x, w, b)
    assert relative_l2(y, x.astype("float64") @ w.T.astype("float64") + b) <= 1e-3


@needs_kernels
def test_leading_axes_are_rows():
    x, w, b = linear_inputs(6, 8, 16)
    with on_hopper():
        y = hopper.linear_wgmma(x.reshape(2, 3, 16), w, b)
        assert y.shape == (2, 3, 8) and np.array_equal(y.reshape(6, 8), hopper.linear_wgmma(x, w, b))
        assert hopper.linear_wgmma(x[:0], w, b).shape == (0, 8)


# ----- conv2d --------------------------------------------------------------------------------------------------------------------

IMAGES = {  # x, C'
    "one_box": ((1, 8, 16, 64), 160), "two_images_in_a_box": ((2, 8, 8, 40), 160), "overhang": ((1, 5, 19, 136), 32),
    "three_images": ((3, 3, 5, 8), 96), "one_pixel": ((1, 1, 1, 8), 32), "a_row": ((1, 1, 130, 16), 128), "two_widths": ((1, 4, 6, 72), 320),
}  # fmt: skip


@needs_kernels
@pytest.mark.parametrize("name", IMAGES)
def test_conv2d(name):
    size, C_out = IMAGES[name]
    x, w, b = conv_inputs(size, C_out, 3, 3)
    random = np.random.RandomState(0)
    embedding, skip = random.randn(size[0], C_out).astype("float16"), random.randn(*size[:3], C_out).astype("float16")
    truth = reference.conv2d(*wide(x, w, None), stride=1, padding=ONE)
    with on_hopper():
        y, plain = hopper.conv2d_wgmma(x, w, b, embedding, skip), hopper.conv2d_wgmma(x, w)
    assert relative_l2(plain, truth) <= 1e-3
    assert relative_l2(y, truth + b + embedding.astype("float64")[:, None, None] + skip) <= 1e-3


@needs_kernels
@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_parts_of_a_tile_are_added(parts):
    x, w, b = conv_inputs((2, 3, 5, 72), 64, 3, 3)
    random = np.random.RandomState(0)
    embedding, skip = random.randn(2, 64).astype("float16"), random.randn(2, 3, 5, 64).astype("float16")
    truth = reference.conv2d(*wide(x, w, None), stride=1, padding=ONE)
    with on_hopper():
        y, plain = hopper.conv2d_wgmma(x, w, b, embedding, skip, parts=parts), hopper.conv2d_wgmma(x, w, parts=parts)
    assert relative_l2(plain, truth) <= 1e-3
    assert relative_l2(y, truth + b + embedding.astype("float64")[:, None, None] + skip) <= 1e-3


@needs_kernels
@pytest.mark.parametrize("cluster", hopper.CLUSTERS)
@pytest.mark.parametrize("size, C_out", [((1, 8, 16, 72), 160), ((3, 8, 9, 40), 128)])
def test_blocks_that_share_their_weights(size, C_out, cluster, monkeypatch):
    """One box and three: the odd one out has a neighbour without pixels."""
    monkeypatch.setattr(hopper, "cluster_for", lambda boxes: cluster)
    x, w, _ = conv_inputs(size, C_out, 3, 3)
    with on_hopper():
        y = hopper.conv2d_wgmma(x, w, parts=2)
    assert relative_l2(y, reference.conv2d(*wide(x, w, None), stride=1, padding=ONE)) <= 1e-3


def test_clusters_leave_few_blocks_without_work():
    assert [hopper.cluster_for(n) for n in (1, 2, 3, 4, 8, 9, 64)] == [1, 2, 1, 2, 2, 2, 2]


@needs_kernels
@pytest.mark.parametrize("size, C_out, parts", [((1, 5, 9, 24), 96, 1), ((3, 3, 5, 8), 32, 3), ((1, 1, 1, 8), 160, 1), ((1, 8, 16, 72), 32, 2)])
def test_a_doubled_image_is_never_made(size, C_out, parts):
    x, w, b = conv_inputs(size, C_out, 3, 3)
    doubled = (2 * size[1], 2 * size[2])
    skip = np.random.RandomState(0).randn(size[0], *doubled, C_out).astype("float16")
    truth = reference.conv2d(reference.upsample_nearest(x.astype("float64"), size=doubled), *wide(w, b), stride=1, padding=ONE)
    with on_hopper():
        y = hopper.conv2d_wgmma(x, w, b, None, skip, scale=2, parts=parts)
    assert y.shape == truth.shape and relative_l2(y, truth + skip) <= 1e-3


def test_parts_give_every_multiprocessor_a_block():
    """The 3×3 convolutions of the UNet, 64 × 64 latents of both halves of the guidance: 320, 640, 1280, 1280 channels."""
    tiles = [64 * 2, 16 * 4, 4 * 8, 1 * 8]
    with on_hopper():
        assert [hopper.parts_for(n, 9 * C // 64) for n, C in zip(tiles, (320, 640, 1280, 1280))] == [1, 2, 4, 16]
        assert hopper.parts_for(1, 9) == 2 and hopper.parts_for(1000, 100) == 1


@pytest.mark.parametrize(
    "shape, box",
    [((2, 64, 64), (1, 2, 64)), ((2, 32, 32), (1, 4, 32)), ((2, 16, 16), (1, 8, 16)), ((2, 8, 8), (2, 8, 8)), ((2, 96, 96), (1, 4, 32)),
     ((1, 512, 512), (1, 1, 128)), ((1, 1, 1), (1, 1, 128))],
)  # fmt: skip
def test_boxes_of_pixels_fit_the_images_of_stable_diffusion(shape, box):
    B, H, W = shape
    assert hopper.pixel_box(*shape) == box and hopper.boxes_for(box, shape) == -(-B * H * W // 128)


@needs_kernels
def test_weights_are_used_where_they_lie(monkeypatch):
    device = Simulator(capability=90)
    x, w, _ = conv_inputs((1, 4, 4, 8), 32, 3, 3)
    seen = []
    monkeypatch.setattr(device, "run", lambda instance, grid, block, arguments, shared: seen.append(arguments[1].array))
    with on_device(device):
        hopper.conv2d_wgmma(x, w, parts=1)
    assert np.shares_memory(seen[0], w)


# ----- attention -----------------------------------------------------------------------------------------------------------------

SHAPES = {
    **ATTENTION_SHAPES, "many_tiles_40": (1, 1, 130, 700, 40, False, 1), "many_tiles_160": (2, 2, 70, 300, 160, False, 4),
    "causal_tiles_80": (1, 1, 300, 300, 80, True, 1), "causal_ragged_64": (1, 1, 129, 260, 64, True, 9),
}  # fmt: skip


@needs_kernels
@pytest.mark.parametrize("shape", SHAPES)
def test_attention(shape):
    arrays, keywords = attention_inputs(*SHAPES[shape])
    truth = reference.attention(*(a.astype("float64") for a in arrays), **keywords)
    with on_hopper():
        y = hopper.attention_wgmma(*arrays, **keywords)
    assert y.shape == truth.shape and y.dtype == np.float16 and y.transpose(0, 2, 1, 3).flags.c_contiguous
    assert relative_l2(y, truth) <= 1e-3


@needs_kernels
@pytest.mark.parametrize("width", [40, 80, 160])
def test_what_is_beside_a_head_does_not_leak_into_it(width):
    """The boxes of heads of 40, 80 and 160 reach into the next head: zeros must arrive from there, also instead of infinities."""
    arrays, keywords = attention_inputs(1, 2, 16, 20, width, False, 1)
    with on_hopper():
        before = hopper.attention_wgmma(*arrays, **keywords)[:, 0].copy()
        for a in arrays:
            a[:, 1] = np.inf
        assert np.array_equal(hopper.attention_wgmma(*arrays, **keywords)[:, 0], before)


# ----- where they run ------------------------------------------------------------------------------------------------------------


def calls():
    x, w, b = linear_inputs(4, 8, 16)
    yield "linear", hopper.refuses_odd_widths, (x, w, b), {}
    yield "conv2d", hopper.refuses_other_convolutions, conv_inputs((1, 4, 4, 8), 32, 3, 3), dict(stride=1, padding=ONE)
    yield "upsample_conv2d", hopper.refuses_cut_rows, conv_inputs((1, 4, 4, 8), 32, 3, 3), dict(size=(8, 8))
    arrays, keywords = attention_inputs(1, 1, 8, 130, 64, False, 1)
    yield "attention", hopper.refuses_other_attention, arrays, keywords


@pytest.mark.parametrize("op, refuses, args, keywords", list(calls()), ids=lambda a: a if isinstance(a, str) else "")
def test_only_compute_capability_9_0_takes_them(op, refuses, args, keywords):
    for capability in (0, 80, 89, 100, 120):
        with on_device(Simulator(capability=capability)):
            assert "only compute capability 9.0" in refuses(*args, **keywords)
    with on_hopper():
        assert refuses(*args, **keywords) is None


REFUSED = {
    "an even width": lambda: hopper.refuses_odd_widths(*linear_inputs(4, 7, 16)),
    "8 channels": lambda: hopper.refuses_odd_widths(*linear_inputs(4, 8, 15)),
    "float16": lambda: hopper.refuses_odd_widths(*linear_inputs(4, 8, 16, "float32")),
    "stride 1": lambda: hopper.refuses_other_convolutions(*conv_inputs((1, 4, 4, 8), 32, 3, 3), stride=2, padding=ONE),
    "padding 1": lambda: hopper.refuses_other_convolutions(*conv_inputs((1, 4, 4, 8), 32, 3, 3), stride=1, padding=((0, 1), (0, 1))),
    "3×3": lambda: hopper.refuses_other_convolutions(*conv_inputs((1, 4, 4, 8), 32, 1, 1), stride=1, padding=ONE),
    "of 32 out": lambda: hopper.refuses_other_convolutions(*conv_inputs((1, 4, 4, 8), 24, 3, 3), stride=1, padding=ONE),
    "the size cuts a row": lambda: hopper.refuses_cut_rows(*conv_inputs((1, 4, 4, 8), 32, 3, 3), size=(8, 7)),
    "takes float16": lambda: hopper.refuses_other_convolutions(*conv_inputs((1, 4, 4, 8), 32, 3, 3, "float32"), stride=1, padding=ONE),
    "heads of 40, 64, 80, 160": lambda: refused_attention(D=32),
    "a scale above 0": lambda: refused_attention(scale=-1.0),
    "no mask": lambda: refused_attention(mask=np.zeros((1, 1), "float16")),
    "the keys are a single tile": lambda: refused_attention(T=77),
}


def refused_attention(D=64, T=130, **changes):
    arrays, keywords = attention_inputs(1, 1, 8, T, D, False, 1)
    return hopper.refuses_other_attention(*arrays, **(keywords | changes))


@pytest.mark.parametrize("words", REFUSED)
def test_what_they_cannot_take_is_said(words):
    with on_hopper():
        assert words in REFUSED[words]()


disassembler = nvrtc.find("bin/nvdisasm")


@pytest.mark.kernels
@pytest.mark.skipif(not disassembler or not nvrtc.find("lib/libnvrtc.so.1[23]"), reason="nvdisasm is not installed: pip install nvidia-cuda-nvdisasm")
@pytest.mark.parametrize("D", [40, 64, 80, 160])
def test_exponentials_stand_beside_a_product_in_the_machine_code(D):
    """Between the wait for the scores (all groups but one) and the wait for P V: the compiler would rather have them behind both."""
    code = subprocess.run([disassembler, "-c", build(hopper.ATTENTION(D), "sm_90").path], capture_output=True, text=True, check=True).stdout
    seen = re.findall(r"HGMMA|UTMALDG\.4D|MUFU\.EX2|DEPBAR\.LE gsb0, 0x[01]|LDL|STL", code)
    first = seen.index("DEPBAR.LE gsb0, 0x1")
    beside = seen[first + 1 : seen.index("DEPBAR.LE gsb0, 0x0", first)]
    assert beside.count("MUFU.EX2") == hopper.keys_of_a_tile(D) // 2 + 2 and not {"LDL", "STL"} & set(seen) and "UTMALDG.4D" in seen


@needs_kernels
def test_the_facade_chooses_them_on_hopper_and_the_product_only_by_name():
    x, w, b = linear_inputs(4, 8, 16)
    with gpu_ladder(Simulator(capability=90)) as device:
        for op, _, args, keywords in calls():
            if op != "linear":
                getattr(ops, op)(*args, **{k: v for k, v in keywords.items() if v is not None})
        ops.linear(x, w, b)
        with ops.using(linear="wgmma"):
            ops.linear(x, w, b)
    conv = ["conv2d_wgmma<128, 1>", "conv2d_total<float>", "conv2d_wgmma<128, 2>", "conv2d_total<float>"]
    assert device.launches[:5] == [*conv, "attention_wgmma<64>"]
    assert "wgmma" not in device.launches[5] and device.launches[-1] == "gemm_wgmma<128, 1>"


@pytest.mark.parametrize("needed", [hopper.tile_bytes(128), hopper.tile_bytes(160), *map(hopper.attention_bytes, (40, 64, 80, 160))])
def test_tiles_fit_into_hoppers_shared_memory(needed):
    assert 80 << 10 < needed <= SHARED[90]


def test_two_blocks_of_the_narrow_tile_share_a_multiprocessor():
    assert 2 * (hopper.tile_bytes(128) + 1024) <= 228 << 10, "each takes 1 KiB more than it asks for"


def test_the_constants_are_those_of_the_kernels():
    tile, attention = source("gemm/6_wgmma.cu"), source("attention/7_wgmma.cu")
    stages = f"BN == 128 ? {hopper.STAGES[128]} : {hopper.STAGES[160]}"
    assert f"BM = {hopper.BM}, BN = BN_, BK = {hopper.BK}, STAGES = {stages}, CONSUMERS = {hopper.THREADS - 32}" in tile
    assert f"QUERIES = {hopper.QUERIES}, CONSUMERS = {hopper.ATTENTION_THREADS - 128}, STAGES = 2;" in attention
    assert "KEYS = D > 96 ? 64 : 128" in attention and [hopper.keys_of_a_tile(D) for D in (40, 64, 80, 160)] == [128, 128, 128, 64]
