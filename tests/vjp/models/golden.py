"""One comparison for the three models: minisd's gradients of the inputs with the recorded ones."""

import numpy as np

from minisd import ops
from tests.goldens import allowed, golden
from tests.numerics import assert_close_f64, assert_faithful
from tests.vjp.models.cases import FILE, gradients, make_case, model_name


def check(case: str):
    """In float32 at most twice torch's own error away from the float64 truth, in float64 equal to it to ten digits."""
    with np.load(FILE, allow_pickle=False) as recorded:
        known = {key: (recorded[f"{case}/{key}/truth"], recorded[f"{case}/{key}/torch"]) for key in keys(recorded, case)}
    for dtype in ("float32", "float64"):
        with ops.using(profile="exact"):
            ours = gradients(case, golden(model_name(case)).model(dtype), make_case(case))
        assert ours.keys() == known.keys()
        for key, (truth, plain) in known.items():
            if dtype == "float32":
                assert_faithful(ours[key], truth, plain, name=f"{case}: d{key}", factor=allowed(truth.size))
            else:
                assert_close_f64(ours[key], truth, name=f"{case}: d{key}")


def keys(recorded, case: str) -> list:
    return sorted({name.split("/")[1] for name in recorded.files if name.startswith(f"{case}/")})
