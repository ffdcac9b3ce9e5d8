"""float16 weights widened to float32: every bit pattern, every layout, and a model that computes the same numbers with them."""

import numpy as np
import pytest

from minisd import StableDiffusionPipeline
from minisd.checkpoint import params_from_state_dict
from minisd.checkpoint.weights import ArrayTensor, assemble, lay_out
from minisd.errors import NumericError, UsageError
from minisd.resident import HalfWeight, read
from tests.checkpoint.synthetic import config, make_weights

FINITE = np.arange(1 << 16, dtype="uint32").astype("uint16").view("float16")
FINITE = FINITE[np.isfinite(FINITE)]


def bits(x):
    return x.view("uint32")


def test_every_finite_float16_is_widened_exactly():
    """Normal, subnormal and both zeros: the same bits as NumPy's own cast."""
    assert FINITE.size == 2 * 31 * 1024
    wide = HalfWeight(FINITE).read()
    assert wide.dtype == np.float32 and np.array_equal(bits(wide), bits(FINITE.astype("float32")))


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (7, 13), (5, 3, 3, 3), (2, 4, 1, 1), (300, 500)], ids=str)
def test_the_layout_in_memory_is_that_of_float32(shape):
    random = np.random.RandomState(0)
    raw = random.standard_normal(shape).astype("float16")
    weight, wide = HalfWeight(lay_out(raw, "float16")), lay_out(raw, "float32")
    assert (weight.shape, weight.size, weight.nbytes) == (raw.shape, raw.size, raw.nbytes)
    assert np.array_equal(weight.read(), wide) and weight.read().strides == wide.strides


def test_a_read_is_a_new_array():
    weight = HalfWeight(FINITE)
    weight.read()[...] = 0
    assert np.array_equal(weight.read(), FINITE) and read(FINITE) is FINITE


def test_a_model_computes_the_same_numbers():
    kept = StableDiffusionPipeline.from_pretrained("tiny", resident="float16")
    plain = StableDiffusionPipeline.from_pretrained("tiny")
    random = np.random.RandomState(0)
    for name in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(kept, name), getattr(plain, name)
        assert ours.num_parameters() == theirs.num_parameters() and ours.dtype == theirs.dtype == np.float32
        assert ours.report.bytes < 0.55 * theirs.report.bytes
        assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(ours.params.items(), theirs.params.items(), strict=True))
        assert ours.astype("float64").dtype == np.float64
    z = random.randn(1, plain.vae.config.latent_channels, 8, 8).astype("float32")
    assert np.array_equal(kept.vae.decode(z), plain.vae.decode(z))


def load(weights, **options):
    stored = [ArrayTensor(name, w) for name, w in weights.items()]
    return assemble(stored, "unet", config("unet"), resident="float16", **options)


def test_weights_that_are_float16_numbers_are_kept_whatever_they_are_stored_as():
    weights = {name: w.astype("float16").astype("float32") for name, w in make_weights("unet").items()}
    params, report = load(weights)
    assert "kept as float16" in report.headline
    leaves = dict(params.leaves())
    assert all(isinstance(leaves[name], HalfWeight) == (w.ndim > 1) for name, w in weights.items())
    plain, _ = params_from_state_dict(weights, "unet", config("unet"))
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(params.items(), plain.items(), strict=True))


@pytest.mark.parametrize("value", [1.0 + 2.0**-12, 1e6, 2.0**-26], ids=["digits", "overflow", "underflow"])
def test_nothing_is_rounded_to_fit(value):
    weights = {name: w.astype("float16").astype("float32") for name, w in make_weights("unet").items()}
    weights["conv_in.weight"].flat[3] = value
    with pytest.raises(UsageError, match="conv_in.weight has values that float16 does not have"):
        load(weights)


def test_nan_is_refused_as_ever():
    weights = {name: w.astype("float16") for name, w in make_weights("unet").items()}
    weights["conv_in.weight"].flat[3] = np.nan
    with pytest.raises(NumericError, match="NaN"):
        load(weights)


@pytest.mark.parametrize("options", [dict(dtype="float64"), dict(allow_nonfinite=True)], ids=str)
def test_what_it_does_not_go_with(options):
    with pytest.raises(UsageError, match="do not go with"):
        load({}, **options)


def test_other_forms_are_refused():
    with pytest.raises(UsageError, match="cannot be kept as 'int8'"):
        StableDiffusionPipeline.from_pretrained("tiny", resident="int8")
