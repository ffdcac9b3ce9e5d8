"""The façade: what every op refuses, and what it leaves to no default."""

import inspect
import math

import numpy as np
import pytest

from minisd import ops
from minisd.errors import ContractError
from minisd.ops.dispatch import RUNGS

OPS = sorted(RUNGS)
NO_DEFAULT = {"eps", "groups", "scale", "padding", "size", "dim", "flip_sin_to_cos", "freq_shift", "dtype"}


def f32(*shape):
    return np.ones(shape, dtype="float32")


def f64(*shape):
    return np.ones(shape, dtype="float64")


def test_all_is_sorted_and_has_every_op():
    assert ops.__all__ == sorted(ops.__all__)
    assert set(OPS) | {"RUNGS", "explain", "using"} == set(ops.__all__)


@pytest.mark.parametrize("op", OPS)
def test_what_decides_the_numbers_has_no_default(op):
    for name, parameter in inspect.signature(getattr(ops, op)).parameters.items():
        if name in NO_DEFAULT:
            assert parameter.default is parameter.empty and parameter.kind is parameter.KEYWORD_ONLY, name


@pytest.mark.parametrize(
    "call",
    [
        lambda: ops.group_norm(f32(1, 2, 2, 4), f32(4), f32(4), groups=2),
        lambda: ops.group_norm(f32(1, 2, 2, 4), f32(4), f32(4), eps=1e-5),
        lambda: ops.layer_norm(f32(2, 4), f32(4), f32(4)),
        lambda: ops.attention(*[f32(1, 1, 2, 2)] * 3),
        lambda: ops.conv2d(f32(1, 4, 4, 2), f32(3, 2, 3, 3)),
    ],
)
def test_leaving_one_out_is_a_type_error(call):
    with pytest.raises(TypeError, match="required keyword-only argument"):
        call()


@pytest.mark.parametrize("op", OPS)
def test_every_rung_has_the_parameters_of_the_facade(op):
    def shape(f):
        return [(p.name, p.kind) for p in inspect.signature(f).parameters.values()]

    for r in RUNGS[op]:
        assert shape(r.run) == shape(getattr(ops, op)), f"{op}/{r.name}"


@pytest.mark.parametrize("op", OPS)
def test_every_op_states_its_contract(op):
    """A formula and the shapes: [B, H, W, C] -> …, or "of any shape"."""
    doc = getattr(ops, op).__doc__
    assert "->" in doc or "any shape" in doc
    assert "=" in doc or "softmax(" in doc or "ωᵢ" in doc or "Doubles" in doc


# call, and words its error has to contain
VIOLATIONS = {
    "linear_width": (lambda: ops.linear(f32(2, 3), f32(4, 5)), r"ops.linear: x \(2, 3\) does not fit w \(4, 5\)"),
    "linear_w_ndim": (lambda: ops.linear(f32(2, 3), f32(4, 3, 1)), "does not fit w"),
    "linear_bias": (lambda: ops.linear(f32(2, 3), f32(4, 3), f32(3)), r"b \(3,\) does not fit w \(4, 3\)"),
    "linear_skip": (lambda: ops.linear(f32(2, 3), f32(4, 3), skip=f32(4)), r"skip \(4,\) is not as the result, \(2, 4\)"),
    "linear_skip_dtype": (lambda: ops.linear(f32(2, 3), f32(4, 3), skip=f64(2, 4)), "skip is float64"),
    "linear_mixed_dtypes": (lambda: ops.linear(f32(2, 3), f64(4, 3)), "w is float64, the first argument float32"),
    "linear_bias_dtype": (lambda: ops.linear(f32(2, 3), f32(4, 3), f64(4)), "b is float64"),
    "linear_integers": (lambda: ops.linear(np.ones((2, 3), "int64"), f32(4, 3)), "expected float16, float32 or float64, got int64"),
    "linear_complex": (lambda: ops.linear(np.ones((2, 3), "complex64"), np.ones((4, 3), "complex64")), "got complex64"),
    "silu_bool": (lambda: ops.silu(np.ones(3, "bool")), "got bool"),
    "silu_longdouble": (lambda: ops.silu(np.ones(3, "longdouble")), "expected float16, float32 or float64"),
    "silu_list": (lambda: ops.silu([1.0, 2.0]), "list"),
    "conv2d_channels": (lambda: ops.conv2d(f32(1, 4, 4, 2), f32(3, 5, 3, 3), padding=1), "does not fit w"),
    "conv2d_x_ndim": (lambda: ops.conv2d(f32(4, 4, 2), f32(3, 2, 3, 3), padding=1), "does not fit w"),
    "conv2d_bias": (lambda: ops.conv2d(f32(1, 4, 4, 2), f32(3, 2, 3, 3), f32(2), padding=1), r"b \(2,\) does not fit"),
    "conv2d_embedding": (lambda: ops.conv2d(f32(2, 4, 4, 2), f32(3, 2, 3, 3), padding=1, embedding=f32(1, 3)), r"\(1, 3\) is not .* \(2, 3\)"),
    "conv2d_skip": (lambda: ops.conv2d(f32(1, 4, 4, 2), f32(3, 2, 3, 3), padding=0, skip=f32(1, 4, 4, 3)), r"not as the result, \(1, 2, 2, 3\)"),
    "conv2d_mixed_dtypes": (lambda: ops.conv2d(f32(1, 4, 4, 2), f64(3, 2, 3, 3), padding=1), "w is float64"),
    "conv2d_stride_0": (lambda: ops.conv2d(f32(1, 4, 4, 2), f32(3, 2, 3, 3), stride=0, padding=1), "stride 0"),
    "conv2d_negative_padding": (lambda: ops.conv2d(f32(1, 4, 4, 2), f32(3, 2, 3, 3), padding=-1), "padding"),
    "conv2d_torch_padding": (lambda: ops.conv2d(f32(1, 4, 4, 2), f32(3, 2, 3, 3), padding=(1, 1)), "padding"),
    "conv2d_small_image": (lambda: ops.conv2d(f32(1, 2, 9, 2), f32(3, 2, 3, 3), padding=0), "kernel .* larger than the padded image"),
    "upsample_size": (lambda: ops.upsample_nearest(f32(1, 4, 4, 2), size=(9, 8)), r"\(4, 4\) cannot become \(9, 8\)"),
    "upsample_too_small": (lambda: ops.upsample_nearest(f32(1, 4, 4, 2), size=(8, 6)), "only 2n or 2n − 1"),
    "upsample_one_size": (lambda: ops.upsample_nearest(f32(1, 4, 4, 2), size=(8,)), r"\(8,\)"),
    "upsample_ndim": (lambda: ops.upsample_nearest(f32(4, 4, 2), size=(8, 8)), r"is not \[B, H, W, C\]"),
    "group_norm_groups": (lambda: ops.group_norm(f32(1, 2, 2, 6), f32(6), f32(6), groups=4, eps=1e-5), "6 channels cannot be cut into 4 groups"),
    "group_norm_0_groups": (lambda: ops.group_norm(f32(1, 2, 2, 6), f32(6), f32(6), groups=0, eps=1e-5), "into 0 groups"),
    "group_norm_weight": (lambda: ops.group_norm(f32(1, 2, 2, 6), f32(5), f32(6), groups=2, eps=1e-5), "does not fit w"),
    "group_norm_no_batch": (lambda: ops.group_norm(f32(6), f32(6), f32(6), groups=2, eps=1e-5), r"\(6,\)"),
    "group_norm_act": (lambda: ops.group_norm(f32(1, 2, 2, 6), f32(6), f32(6), groups=2, eps=1e-5, act="gelu"), "act='gelu'"),
    "group_norm_mixed_dtypes": (lambda: ops.group_norm(f32(1, 2, 2, 6), f64(6), f64(6), groups=2, eps=1e-5), "w is float64"),
    "layer_norm_weight": (lambda: ops.layer_norm(f32(2, 4), f32(5), f32(5), eps=1e-5), "does not fit w"),
    "layer_norm_bias": (lambda: ops.layer_norm(f32(2, 4), f32(4), f32(1), eps=1e-5), "does not fit w"),
    "attention_ndim": (lambda: ops.attention(f32(2, 3, 4), f32(2, 3, 4), f32(2, 3, 4), scale=1.0), r"are not \[B, N, S, D\]"),
    "attention_heads": (lambda: ops.attention(f32(1, 2, 3, 4), f32(1, 3, 3, 4), f32(1, 2, 3, 4), scale=1.0), "do not fit"),
    "attention_widths": (lambda: ops.attention(f32(1, 2, 3, 4), f32(1, 2, 3, 5), f32(1, 2, 3, 4), scale=1.0), "do not fit"),
    "attention_keys": (lambda: ops.attention(f32(1, 2, 3, 4), f32(1, 2, 5, 4), f32(1, 2, 6, 4), scale=1.0), "do not fit"),
    "attention_no_keys": (lambda: ops.attention(f32(1, 2, 3, 4), f32(1, 2, 0, 4), f32(1, 2, 0, 4), scale=1.0), r"\(1, 2, 0, 4\)"),
    "attention_causal": (lambda: ops.attention(f32(1, 1, 5, 4), *[f32(1, 1, 3, 4)] * 2, scale=1.0, causal=True), "5 queries but 3 keys"),
    "attention_mask_dtype": (lambda: ops.attention(*[f32(1, 1, 3, 4)] * 3, scale=1.0, mask=f64(3, 3)), "mask is float64"),
    "attention_bool_mask": (lambda: ops.attention(*[f32(1, 1, 3, 4)] * 3, scale=1.0, mask=np.ones((3, 3), bool)), "mask is bool"),
    "attention_mask_shape": (lambda: ops.attention(*[f32(1, 1, 3, 4)] * 3, scale=1.0, mask=f32(3, 2)), r"mask \(3, 2\)"),
    "attention_mask_batch": (lambda: ops.attention(*[f32(1, 1, 3, 4)] * 3, scale=1.0, mask=f32(2, 1, 3, 3)), r"mask \(2, 1, 3, 3\)"),
    "feed_forward_skip": (lambda: ops.feed_forward(f32(2, 3), f32(8, 3), f32(8), f32(3, 4), f32(3), skip=f32(3)), r"skip \(3,\)"),
    "geglu_odd": (lambda: ops.geglu(f32(2, 5)), "has no two halves"),
    "embedding_float_ids": (lambda: ops.embedding(f32(2), f32(5, 3)), "ids are float32, not integers"),
    "embedding_high": (lambda: ops.embedding(np.array([0, 5]), f32(5, 3)), "ids 0 … 5 lie outside the table of 5 rows"),
    "embedding_negative": (lambda: ops.embedding(np.array([-1]), f32(5, 3)), "outside the table"),
    "timestep_ndim": (lambda: ops.timestep_embedding(f32(), dim=4, flip_sin_to_cos=True, freq_shift=0, dtype="float32"), r"is not \[B\]"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(VIOLATIONS))
def test_a_violated_contract_names_the_op_and_the_problem(name):
    call, words = VIOLATIONS[name]
    with pytest.raises(ContractError, match=words) as caught:
        call()
    assert caught.value.what.startswith("ops.") and caught.value.fix


@pytest.mark.parametrize("rung", [r.name for r in RUNGS["attention"] if r.owner in ("any", "numpy")])
def test_a_query_that_sees_no_key_is_refused(rung):
    """softmax over nothing has no value (torch answers 0, older torch NaN): better an error than a silent NaN."""
    mask = np.zeros((3, 3), dtype="float32")
    mask[1] = -math.inf
    with ops.using(attention=rung), pytest.raises(ContractError, match="sees no key"):
        ops.attention(*[f32(1, 1, 3, 4)] * 3, scale=1.0, mask=mask)


@pytest.mark.parametrize("dtype", ["float32", "float64", np.float32, np.float64, np.dtype("float64")])
def test_timestep_embedding_takes_a_dtype_in_any_spelling(dtype):
    t = np.array([999.0])
    y = ops.timestep_embedding(t, dim=8, flip_sin_to_cos=True, freq_shift=0.0, dtype=dtype)
    assert y.dtype == np.dtype(dtype)
    same = ops.timestep_embedding(t, dim=8, flip_sin_to_cos=True, freq_shift=0.0, dtype=np.dtype(dtype))
    assert np.array_equal(y, same), "float64 must be computed in float64, however it is spelled"


@pytest.mark.parametrize("constant", [np.float64(0.5), np.float64(1e-5)])
@pytest.mark.parametrize("rung", ["reference", None])
def test_a_float64_scalar_does_not_leak(constant, rung):
    """NumPy 2 promotes float32 · np.float64 to float64: the op has to give back the dtype it was given."""
    names = {"attention": rung, "group_norm": rung, "layer_norm": rung} if rung else {}
    with ops.using(**names):
        assert ops.attention(*[f32(1, 1, 3, 4)] * 3, scale=constant).dtype == np.float32
        assert ops.group_norm(f32(1, 2, 2, 4), f32(4), f32(4), groups=2, eps=constant).dtype == np.float32
        assert ops.layer_norm(f32(2, 4), f32(4), f32(4), eps=constant).dtype == np.float32
