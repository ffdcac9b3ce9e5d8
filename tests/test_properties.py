"""Laws that hold for every input, on inputs that hypothesis chooses: by every CPU rung, in float64 unless rounding is the question.

Draws are derandomized: a run tries the same examples everywhere. The samplers have theirs in tests/schedulers/test_base.py.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from minisd import image, ops
from minisd.checkpoint.safetensors_file import read_header
from minisd.errors import ModelFileError, UsageError
from minisd.ops import cpu
from tests.checkpoint.synthetic import with_length
from tests.numerics import assert_close_f64, relative_l2

some = settings(derandomize=True, deadline=None, max_examples=25, database=None)
seeds = st.integers(0, 2**32 - 1)


def rungs(op):
    return [r for r in ops.RUNGS[op] if r.owner in ("any", "numpy")]


def every_rung(op):
    return pytest.mark.parametrize("rung", rungs(op), ids=lambda r: r.name)


def by(rung, *args, **kwargs):
    """The op by this rung, or by the one below it that takes the input if this one refuses."""
    try:
        with ops.using(**{rung.op: rung.name}):
            return getattr(ops, rung.op)(*args, **kwargs)
    except UsageError:
        with ops.using(profile="exact"):
            return getattr(ops, rung.op)(*args, **kwargs)


def normal(seed, *shape, dtype="float64"):
    return np.random.RandomState(seed).randn(*shape).astype(dtype)


# ----- convolution -----------------------------------------------------------------------------------------------------------


@st.composite
def convolutions(draw, kernels=(1, 2, 3, 5)):
    """x, w, b and the keywords; the image is never smaller than the kernel."""
    number = lambda low, high: draw(st.integers(low, high))  # noqa: E731
    B, H, W, C, C_out = number(1, 2), number(5, 12), number(5, 12), number(1, 9), number(1, 5)
    KH, KW = draw(st.sampled_from(kernels)), draw(st.sampled_from(kernels))
    sides = tuple((number(0, 2), number(0, 2)) for _ in range(2))
    seed = draw(seeds)
    x, w, b = normal(seed, B, H, W, C), normal(seed + 1 & 0xFFFFFFFF, C_out, C, KH, KW), normal(seed + 2 & 0xFFFFFFFF, C_out)
    return x, w, b, {"stride": number(1, 3), "padding": sides}


@every_rung("conv2d")
@some
@given(st.one_of(convolutions(), convolutions(kernels=(3,)), convolutions(kernels=(1,))), st.booleans())
def test_conv_rungs_agree(rung, call, plain):
    """Exact rungs to the last digits of float64; fast ones, which are for float32, within 1e-5, also on images too small for them."""
    x, w, b, keywords = call
    if plain:
        keywords = {"stride": 1, "padding": 0 if w.shape[2:] == (1, 1) else keywords["padding"]}
    dtype = "float32" if rung.numerics == "fast" else "float64"
    with pytest.MonkeyPatch.context() as patch:
        for module in vars(cpu).values():
            for name in [name for name in getattr(module, "__dict__", ()) if name.startswith("MIN_")]:
                patch.setattr(module, name, 1)
        y = by(rung, *(a.astype(dtype) for a in (x, w, b)), **keywords)
    with ops.using(conv2d="reference"):
        truth = ops.conv2d(*(a.astype(dtype).astype("float64") for a in (x, w, b)), **keywords)
    if rung.numerics == "fast":
        assert y.dtype == np.float32 and relative_l2(y, truth) <= 1e-5
    else:
        assert_close_f64(y, truth, name=f"conv2d by {rung.name}", tolerance=1e-12)


@every_rung("conv2d")
@some
@given(convolutions(), st.floats(-3, 3), seeds)
def test_convolution_is_linear_in_the_image_and_in_the_kernel(rung, call, factor, seed):
    x, w, _, keywords = call
    other_x, other_w = normal(seed, *x.shape), normal(seed, *w.shape)
    y = by(rung, x, w, None, **keywords)
    sum_x = by(rung, x + factor * other_x, w, None, **keywords)
    sum_w = by(rung, x, w + factor * other_w, None, **keywords)
    assert_close_f64(sum_x, y + factor * by(rung, other_x, w, None, **keywords), name="image", tolerance=1e-12)
    assert_close_f64(sum_w, y + factor * by(rung, x, other_w, None, **keywords), name="kernel", tolerance=1e-12)


@every_rung("conv2d")
@some
@given(convolutions(), st.integers(0, 3), st.integers(0, 3))
def test_a_shifted_image_gives_a_shifted_result(rung, call, down, right):
    """By whole strides; the image lies in a margin of zeros that it never leaves."""
    x, w, b, keywords = call
    s, (H, W) = keywords["stride"], x.shape[1:3]
    frame = np.zeros((len(x), H + 4 * s + 5, W + 4 * s + 5, x.shape[3]), dtype="float64")
    shifted = frame.copy()
    frame[:, 5 : 5 + H, 5 : 5 + W] = x
    shifted[:, 5 + down * s : 5 + down * s + H, 5 + right * s : 5 + right * s + W] = x
    y, moved = by(rung, frame, w, b, **keywords), by(rung, shifted, w, b, **keywords)
    inside = moved[:, down:, right:]
    assert_close_f64(inside, y[:, : inside.shape[1], : inside.shape[2]], name="shift", tolerance=1e-12)


# ----- norms -----------------------------------------------------------------------------------------------------------------


@st.composite
def grouped_images(draw):
    B, S, G, size = draw(st.integers(1, 3)), draw(st.integers(2, 12)), draw(st.integers(1, 5)), draw(st.integers(1, 4))
    return normal(draw(seeds), B, S, G * size), G


@every_rung("group_norm")
@some
@given(grouped_images(), st.floats(0.1, 10), st.booleans(), st.floats(-5, 5), st.sampled_from((1e-6, 1e-5, 0.1)), seeds)
def test_group_norm_forgets_scale_and_shift(rung, call, scale, negative, shift, eps, seed):
    """GN(a x + c; a² ε) = sign(a) GN(x; ε), with a constant c for each group of each image; ε is in the units of x²."""
    x, G = call
    B, S, C = x.shape
    a = -scale if negative else scale
    c = shift * normal(seed, B, 1, G).repeat(C // G, axis=-1)
    ones, zeros = np.ones(C, dtype="float64"), np.zeros(C, dtype="float64")
    y = by(rung, x, ones, zeros, groups=G, eps=eps)
    moved = by(rung, a * x + c, ones, zeros, groups=G, eps=a * a * eps)
    assert_close_f64(moved, math.copysign(1.0, a) * y, name="scale and shift", tolerance=1e-10)


@every_rung("group_norm")
@some
@given(grouped_images(), seeds)
def test_group_norm_does_not_know_where_a_pixel_is(rung, call, seed):
    x, G = call
    order = np.random.RandomState(seed).permutation(x.shape[1])
    w, b = normal(seed, x.shape[2]), normal(seed, x.shape[2])
    y = by(rung, x, w, b, groups=G, eps=1e-5, act="silu")
    assert_close_f64(by(rung, x[:, order], w, b, groups=G, eps=1e-5, act="silu"), y[:, order], name="order", tolerance=1e-12)


# ----- softmax and attention -------------------------------------------------------------------------------------------------


@every_rung("softmax")
@some
@given(st.lists(st.lists(st.floats(-1e4, 1e4), min_size=5, max_size=5), min_size=1, max_size=4), st.floats(-1e3, 1e3))
def test_softmax_rows_are_distributions_that_forget_a_shift(rung, rows, shift):
    x = np.array(rows, dtype="float64")
    p = by(rung, x)
    assert (p >= 0).all() and np.abs(p.sum(axis=-1) - 1).max() <= 1e-14
    assert np.abs(by(rung, x + shift) - p).max() <= 1e-11  # x + shift is rounded to 2e-12
    assert (np.take_along_axis(p, np.argmax(x, axis=-1)[:, None], axis=-1)[:, 0] == p.max(axis=-1)).all()


@st.composite
def attentions(draw):
    number = lambda low, high: draw(st.integers(low, high))  # noqa: E731
    B, N, S, T, D, D_out = number(1, 2), number(1, 3), number(1, 9), number(1, 9), number(1, 6), number(1, 6)
    seed = draw(seeds)
    q, k, v = (normal(seed + i & 0xFFFFFFFF, B, N, *shape) for i, shape in enumerate(((S, D), (T, D), (T, D_out))))
    mask = None if draw(st.booleans()) else normal(seed, 1, 1, S, T)
    return draw(st.sampled_from((1.0, 30.0))) * q, k, v, mask


@every_rung("attention")
@some
@given(attentions(), seeds)
def test_attention_does_not_know_the_order_of_keys_or_queries(rung, call, seed):
    q, k, v, mask = call
    keys, queries = (np.random.RandomState(seed).permutation(n) for n in (k.shape[2], q.shape[2]))
    y = by(rung, q, k, v, scale=0.5, mask=mask)
    reordered = by(rung, q, k[:, :, keys], v[:, :, keys], scale=0.5, mask=None if mask is None else mask[..., keys])
    assert_close_f64(reordered, y, name="keys", tolerance=1e-12)
    reordered = by(rung, q[:, :, queries], k, v, scale=0.5, mask=None if mask is None else mask[:, :, queries])
    assert_close_f64(reordered, y[:, :, queries], name="queries", tolerance=1e-12)


@every_rung("attention")
@some
@given(attentions())
def test_causal_attention_is_attention_to_what_came_before(rung, call):
    q, _, v, _ = call
    k = normal(1, *q.shape)
    v = normal(2, *q.shape[:3], v.shape[3])
    whole = by(rung, q, k, v, scale=0.5, causal=True)
    for s in range(q.shape[2]):
        y = by(rung, q[:, :, s : s + 1], k[:, :, : s + 1], v[:, :, : s + 1], scale=0.5)
        assert_close_f64(whole[:, :, s : s + 1], y, name=f"query {s}", tolerance=1e-12)


@every_rung("attention")
@some
@given(attentions(), st.one_of(st.integers(1, 4), st.integers(5, 200)))
def test_attention_in_blocks_equals_the_whole(rung, call, size):
    """Every block size of the file, in rows or bytes, becomes `size`; the reference holds the whole score matrix."""
    q, k, v, mask = call
    constants = [name for name, value in vars(cpu.attention).items() if name.isupper() and isinstance(value, int)]
    assert constants
    with pytest.MonkeyPatch.context() as patch:
        for name in constants:
            patch.setattr(cpu.attention, name, size)
        y = by(rung, q, k, v, scale=0.5, mask=mask)
    with ops.using(attention="reference"):
        assert_close_f64(y, ops.attention(q, k, v, scale=0.5, mask=mask), name=f"blocks of {size}", tolerance=1e-12)


# ----- files -----------------------------------------------------------------------------------------------------------------


@some
@given(st.text(max_size=200), st.text(max_size=50), st.integers(0, 2**64 - 1), st.floats(allow_nan=False, allow_infinity=False))
def test_a_recipe_comes_back_out_of_a_png(tmp_path_factory, prompt, negative, seed, guidance):
    recipe = {
        "prompt": prompt, "negative_prompt": negative, "model": "tiny", "seed": seed, "steps": 25, "cfg_scale": guidance,
        "scheduler": "DDIMScheduler", "width": 8, "height": 8, "rng": "torch-cpu", "minisd": "0.1.0",
    }  # fmt: skip
    path = tmp_path_factory.mktemp("recipe") / "a.png"
    image.save_image(Image.new("RGB", (8, 8)), path, recipe)
    assert image.read_recipe(path) == recipe


@settings(some, max_examples=200)
@given(st.one_of(st.binary(max_size=300), st.binary(max_size=300).map(with_length), st.text(alphabet='{}[]":,01aF32.-', max_size=60)))
def test_random_bytes_are_a_file_or_our_error(tmp_path_factory, data):
    """Bytes, bytes under a right header length, and the letters of JSON under one."""
    path = tmp_path_factory.mktemp("random") / "a.safetensors"
    path.write_bytes(with_length(data.encode()) if isinstance(data, str) else data)
    try:
        tensors = read_header(path)
    except ModelFileError as error:
        assert str(path) in error.what and error.why and error.fix
    else:
        assert tensors
