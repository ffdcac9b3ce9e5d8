"""torch's own sample inputs for our ops: the OpInfo data base that PyTorch tests itself with (`torch.testing._internal`).

Odd shapes, empty arrays, groups and dilations, by the project's rule against torch in float64; and inputs that torch refuses, which
must meet our errors. Samples of dropout, of options for training and of sizes that no op of ours has are counted as left out.
"""

import warnings
from collections import Counter

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("expecttest", reason="torch's OpInfo data base imports it: pip install expecttest")
import torch.nn.functional as F  # noqa: E402

from minisd import ops  # noqa: E402
from minisd.errors import ContractError  # noqa: E402
from tests.numerics import assert_close_f64, assert_faithful  # noqa: E402
from minisd.onnx_suite import adapters  # noqa: E402

pytestmark = pytest.mark.reference
SETS = {"the fastest rungs": {}, "reference": {op: "reference" for op in ops.RUNGS}}


class LeftOut(Exception):
    """The sample asks for what no op of minisd does."""


@pytest.fixture(scope="module")
def data_base():
    """{name: OpInfo}; importing it takes seconds, so it is not done at collection."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
    return {(op.name, op.variant_test_name): op for op in op_db}


# ----- a sample of torch as a call of ours -----------------------------------------------------------------------------------


def pair(value):
    return [value, value] if isinstance(value, int) else list(value) if len(value) == 2 else list(value) * 2


def conv2d(x, w, b=None, stride=1, padding=0, dilation=1, groups=1):
    unbatched = x.ndim == 3
    if isinstance(padding, str):
        pads, auto_pad = None, {"valid": "VALID", "same": "SAME_UPPER"}[padding]
    else:
        pads, auto_pad = pair(padding) * 2, "NOTSET"
    y = adapters.conv(x[None] if unbatched else x, w, b, auto_pad=auto_pad, dilations=pair(dilation), group=groups, kernel_shape=None,
                      pads=pads, strides=pair(stride))  # fmt: skip
    return y[0] if unbatched else y


def group_norm(x, groups, weight=None, bias=None, eps=1e-5):
    C = x.shape[1]
    w = np.ones(C, dtype=x.dtype) if weight is None else weight
    b = np.zeros(C, dtype=x.dtype) if bias is None else bias
    return adapters.channels_first(ops.group_norm(adapters.channels_last(x), w, b, groups=groups, eps=eps))


def layer_norm(x, shape, weight=None, bias=None, eps=1e-5):
    w = np.ones(shape, dtype=x.dtype) if weight is None else weight
    return adapters.layer_normalization(x, w, bias, axis=-len(shape), epsilon=eps, stash_type=1)[0]


def attention(q, k, v, attn_mask=None, is_causal=False, dropout_p=0.0):
    if dropout_p:
        raise LeftOut("dropout")
    lead = np.broadcast_shapes(q.shape[:-2], k.shape[:-2])
    heads = [np.broadcast_to(a, lead + a.shape[-2:]).reshape((-1, lead[-1]) + a.shape[-2:]) for a in (q, k, v)]
    y = adapters.attention(*heads, attn_mask, is_causal=is_causal, kv_num_heads=None, q_num_heads=None, qk_matmul_output_mode=0, scale=None,
                           softcap=0.0, softmax_precision=None)[0]  # fmt: skip
    return y.reshape(lead + y.shape[-2:])


def softmax(x, dim, dtype=None):
    if x.ndim == 0 or x.shape[dim] == 0:
        raise LeftOut("nothing to sum over")
    return adapters.softmax(x if dtype is None else x.astype("float64"), axis=dim)


def gelu(x, approximate="none"):
    return adapters.gelu(x, approximate=approximate)


def embedding(table, ids, max_norm=None, padding_idx=None, **training):
    if max_norm is not None:
        raise LeftOut("max_norm changes the table")
    return ops.embedding(ids, table)


CALLS = {
    ("nn.functional.conv2d", ""): (conv2d, {"passed": 30}),
    ("nn.functional.linear", ""): (ops.linear, {"passed": 18}),
    ("nn.functional.group_norm", ""): (group_norm, {"passed": 21}),
    ("nn.functional.layer_norm", ""): (layer_norm, {"passed": 6}),
    ("nn.functional.scaled_dot_product_attention", ""): (attention, {"passed": 13, "left out: dropout": 12}),
    ("softmax", ""): (softmax, {"passed": 5, "left out: nothing to sum over": 2}),
    ("softmax", "with_dtype"): (softmax, {"passed": 5, "left out: nothing to sum over": 2}),
    ("nn.functional.gelu", ""): (gelu, {"passed": 8}),
    ("nn.functional.silu", ""): (ops.silu, {"passed": 3}),
    ("nn.functional.embedding", ""): (embedding, {"passed": 7, "left out: max_norm changes the table": 3}),
}


# Samples lie in ±9, scores in ±200: one rounding of a score is 1e-5 of a weight, and the worst of a few dozen numbers is luck.
FACTORS = {("nn.functional.scaled_dot_product_attention", ""): 8.0}


def convert(value, tensor):
    """A sample with `tensor` applied to every tensor in it."""
    if isinstance(value, torch.Tensor):
        return tensor(value.detach())
    if isinstance(value, (tuple, list)):
        return type(value)(convert(v, tensor) for v in value) if type(value) in (tuple, list) else value
    return {k: convert(v, tensor) for k, v in value.items()} if isinstance(value, dict) else value


def arguments(sample, tensor):
    return [convert(sample.input, tensor), *convert(list(sample.args), tensor)], convert(dict(sample.kwargs), tensor)


def as_numpy(t):
    return t.resolve_conj().contiguous().numpy().copy()


def in_double(t):
    return t.double() if t.is_floating_point() else t


def by_torch(op, args, kwargs):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using padding='same' with even kernel")
        return op(*args, **kwargs)


@pytest.mark.parametrize("rungs", SETS)
@pytest.mark.parametrize("name", CALLS, ids=lambda name: "-".join(filter(None, name)))
def test_sample_inputs(name, rungs, data_base):
    call, expected = CALLS[name]
    torch.manual_seed(32)
    counts = Counter()
    for i, sample in enumerate(data_base[name].sample_inputs("cpu", torch.float32, requires_grad=False)):
        plain, truth = (by_torch(data_base[name].op, *arguments(sample, tensor)) for tensor in (torch.clone, in_double))
        args, kwargs = arguments(sample, as_numpy)
        assert torch.isfinite(truth).all()
        try:
            with ops.using(**SETS[rungs]):
                y = call(*args, **kwargs)
        except LeftOut as reason:
            counts[f"left out: {reason}"] += 1
            continue
        where = f"{name} sample {i}, {rungs}"
        if plain.dtype == torch.float64:  # torch is then its own truth, and ours another float64 computation: three roundings apart at most
            assert_close_f64(y, as_numpy(truth), name=where, tolerance=3 * 2.0**-52)
        else:
            assert_faithful(y, as_numpy(truth), as_numpy(plain), name=where, factor=FACTORS.get(name, 2.0))
        counts["passed"] += 1
    print(name, dict(counts))
    assert counts == expected


EMPTY = {
    "group_norm": lambda x: ops.group_norm(x, np.ones(2, x.dtype), np.zeros(2, x.dtype), groups=1, eps=1e-5),
    "layer_norm": lambda x: ops.layer_norm(x, np.ones(2, x.dtype), np.zeros(2, x.dtype), eps=1e-5),
    "softmax": ops.softmax,
    "linear": lambda x: ops.linear(x, np.eye(2, dtype=x.dtype)),
    "gelu": ops.gelu,
    "silu": ops.silu,
}


@pytest.mark.parametrize("rungs", SETS)
@pytest.mark.parametrize("op", EMPTY)
def test_empty_arrays(op, rungs):
    """A batch of no images: torch's answer is as empty as its input."""
    x = np.zeros((0, 3, 2), dtype="float32")
    with ops.using(**SETS[rungs]):
        y = EMPTY[op](x)
    assert y.shape == x.shape and y.dtype == x.dtype


@pytest.mark.parametrize("variant", ["nearest", "nearest-exact"])
def test_images_of_the_samples_of_interpolate(variant, data_base):
    """None of torch's sizes is a doubling: each is refused. The sample's images at the sizes that SD uses equal torch's."""
    counts = Counter()
    for sample in data_base["nn.functional.interpolate", variant].sample_inputs("cpu", torch.float32, requires_grad=False):
        x = sample.input.detach()
        if x.ndim != 4:
            counts["no image"] += 1
            continue
        ours = as_numpy(x).transpose(0, 2, 3, 1)
        size = tuple(F.interpolate(x, *sample.args, **sample.kwargs).shape[2:])
        with pytest.raises(ContractError, match="only 2n or 2n − 1"):
            ops.upsample_nearest(ours, size=size)
        H, W = x.shape[2:]
        for size in ((2 * H, 2 * W), (2 * H - 1, 2 * W), (2 * H - 1, 2 * W - 1)):
            y = ops.upsample_nearest(ours, size=size).transpose(0, 3, 1, 2)
            assert np.array_equal(y, as_numpy(F.interpolate(x, size, mode="nearest")))
            counts["equal"] += 1
    assert counts == {"no image": 15, "equal": 24}


# ----- inputs that torch refuses ---------------------------------------------------------------------------------------------


def refused_conv2d(x, w, b=None, stride=1, padding=0, dilation=1, groups=1):
    if groups != 1 or dilation != 1:
        raise LeftOut("groups and dilation are no arguments of ours")
    x = x[None] if x.ndim == 3 else x
    padding = padding[0] if isinstance(padding, tuple) else 0 if padding == "same" else padding
    return ops.conv2d(adapters.channels_last(x), w, b, stride=stride[0] if isinstance(stride, tuple) else stride, padding=padding)


def refused_group_norm(x, groups):
    C = x.shape[min(1, x.ndim - 1)]
    x = x if x.ndim == 1 else adapters.channels_last(x)
    return ops.group_norm(x, np.ones(C, dtype=x.dtype), np.zeros(C, dtype=x.dtype), groups=groups, eps=1e-5)


REFUSED = {
    "nn.functional.conv2d": (refused_conv2d, {"refused": 5, "left out: groups and dilation are no arguments of ours": 5}),
    "nn.functional.group_norm": (refused_group_norm, {"refused": 2}),
    "nn.functional.embedding": (embedding, {"refused": 2}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_error_inputs(name, data_base):
    """What torch refuses we refuse, too: as ContractError, which names the op, the problem and a way out."""
    call, expected = REFUSED[name]
    counts = Counter()
    for error in data_base[name, ""].error_inputs("cpu"):
        args, kwargs = arguments(error.sample_input, as_numpy)
        try:
            call(*args, **kwargs)
        except ContractError as refusal:
            assert refusal.what.startswith(f"ops.{name.rpartition('.')[2]}: ") and refusal.fix
            counts["refused"] += 1
        except LeftOut as reason:
            counts[f"left out: {reason}"] += 1
        else:
            raise AssertionError(f"torch says {error.error_regex!r}, ours took {[getattr(a, 'shape', a) for a in args]} {kwargs}")
    assert counts == expected
