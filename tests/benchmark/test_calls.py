"""The formulas of work, counted: products as the reference really makes them, bytes as the arrays really have them."""

import numpy as np
import pytest

from minisd import ops
from minisd.benchmark.calls import FORMS, Call
from minisd.errors import UsageError

SMALL = {
    "linear": [(3, 7, 5)], "conv2d": [(2, 5, 3, 4), (1, 6, 2, 3, 3, 2), (1, 5, 3, 2, 1)], "upsample_nearest": [(2, 3, 4)],
    "upsample_conv2d": [(2, 3, 4, 5)], "attention": [(2, 3, 5, 7, 4), (1, 2, 5, 5, 4, 1)], "feed_forward": [(5, 6)], "group_norm": [(2, 3, 8, 4)],
    "layer_norm": [(3, 5)], "softmax": [(3, 5)], "silu": [(3, 5)], "gelu": [(3, 5)], "quick_gelu": [(3, 5)], "geglu": [(3, 5)],
}  # fmt: skip
SMALL_CALLS = [Call.of(op, numbers) for op, shapes in SMALL.items() for numbers in shapes]
WITHOUT = {"embedding", "timestep_embedding"}  # a lookup, and a table of some hundred numbers


class Counting(np.ndarray):
    """Counts the multiplications and additions of every matrix product that one of them takes part in."""

    flop = 0

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        plain = [x.view(np.ndarray) if isinstance(x, Counting) else x for x in inputs]
        if "out" in kwargs:
            kwargs["out"] = tuple(x.view(np.ndarray) if isinstance(x, Counting) else x for x in kwargs["out"])
        y = getattr(ufunc, method)(*plain, **kwargs)
        if ufunc is np.matmul:
            Counting.flop += 2 * y.size * plain[0].shape[-1]
        return y.view(Counting) if isinstance(y, np.ndarray) else y


def test_every_op_has_shapes():
    assert set(FORMS) == set(SMALL) == set(ops.RUNGS) - WITHOUT


@pytest.mark.parametrize("call", SMALL_CALLS, ids=lambda c: f"{c.op}-{'x'.join(map(str, c.numbers))}")
def test_work_is_what_the_reference_does(call):
    args, kwargs = call.build("float64")
    Counting.flop = 0
    with ops.using(profile="exact", **{op: "reference" for op in {call.op, "linear", "conv2d", "geglu", "gelu"}}):
        y = getattr(ops, call.op)(*(a.view(Counting) for a in args), **kwargs)
    assert call.flop == Counting.flop
    for itemsize in (2, 8):
        assert call.nbytes(itemsize) == itemsize * (sum(a.size for a in args) + y.size)


@pytest.mark.parametrize("op", FORMS)
def test_every_name_is_a_shape(op):
    for name in FORMS[op].presets:
        call = Call.of(op, name)
        assert len(call.numbers) == len(FORMS[op].names) and call.nbytes(2) > 0, name
        assert (call.flop > 0) == (op in ("linear", "conv2d", "upsample_conv2d", "attention", "feed_forward"))


def test_the_numbers_of_a_shape_by_text():
    assert Call.of("conv2d", "2,64,320,640") == Call.of("conv2d", (2, 64, 320, 640, 3, 1))
    assert str(Call.of("group_norm", "1,2,64")) == "images 1, side 2, C 64, groups 32"
    assert Call.of("attention", "1,2,3,4,5").numbers[-1] == 0  # not causal


@pytest.mark.parametrize("op, shape, message", [
    ("convolution", "unet-64", "no shapes are known of an op"), ("conv2d", "unet-65", "conv2d has no shape 'unet-65'"),
    ("conv2d", "1,2", "1,2 is no shape of conv2d"), ("conv2d", "1,2,3,4,5,6,7", "is no shape"), ("linear", "0,2,3", "0,2,3 is no shape"),
    ("linear", "", "linear has no shape ''"),
])  # fmt: skip
def test_what_is_no_shape(op, shape, message):
    with pytest.raises(UsageError, match=message) as caught:
        Call.of(op, shape)
    assert caught.value.fix


def test_inputs_are_drawn_once_and_lie_as_in_the_model():
    """The same numbers each time; convolution weights channels-last, heads inside tokens."""
    conv, attention = Call.of("conv2d", (1, 3, 4, 5)), Call.of("attention", (1, 2, 3, 4, 8))
    (x, w, _), _ = conv.build("float32")
    assert np.array_equal(x, conv.build("float32")[0][0]) and x.dtype == np.float32
    assert w.transpose(2, 3, 1, 0).flags.c_contiguous and not w.flags.c_contiguous
    (q, *_), kwargs = attention.build("float16")
    assert q.transpose(0, 2, 1, 3).flags.c_contiguous and kwargs == dict(scale=8**-0.5, causal=False)
    assert 0.5 < float(np.std(ops.conv2d(x, w, padding=1))) < 1.5
