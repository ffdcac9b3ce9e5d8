"""What the three models share: dtype, size, their word for themselves."""

import numpy as np
import pytest

from minisd.errors import UsageError
from minisd.models.model import check_dtype
from tests.goldens import golden
from tests.tiny_models import CONFIGS, make_weights


@pytest.mark.parametrize("name", CONFIGS)
def test_float64_has_the_same_weights_in_the_same_layout(name):
    model = golden(name).model("float32")
    wide = model.astype("float64")
    assert (model.dtype, wide.dtype) == (np.float32, np.float64) and wide.config == model.config
    tensors = dict(model.params.items())
    assert len(tensors) == len(golden(name).shapes)
    for key, w in wide.params.items():
        assert w.dtype == np.float64 and np.array_equal(w, tensors[key])
        assert w.ndim != 4 or w.transpose(2, 3, 1, 0).flags.c_contiguous, key


def test_the_weights_are_those_of_the_reference():
    weights = make_weights(golden("unet_sd1").shapes)
    params = dict(golden("unet_sd1").model("float32").params.items())
    assert params.keys() == weights.keys() and all(np.array_equal(params[key], weights[key]) for key in weights)


def test_its_size():
    model = golden("vae").model("float32")
    count = sum(int(np.prod(shape)) for shape in golden("vae").shapes.values())
    assert model.num_parameters() == count
    assert repr(model) == f"AutoencoderKL({count:,} parameters, float32)"


def test_dtypes_the_cpu_computes_in():
    assert [check_dtype(d) for d in ("float32", np.float64, np.dtype("float32"))] == ["float32", "float64", "float32"]
    for dtype in ("float16", np.float16):
        with pytest.raises(UsageError, match="float16 cannot be computed on the CPU"):
            check_dtype(dtype)
    for dtype in ("bfloat16", "int32", "fp32"):
        with pytest.raises(UsageError, match="is not known"):
            check_dtype(dtype)
