"""The layers with one weight and one bias, against torch's modules; and the sums that a layer may end in."""

import numpy as np
import pytest

from minisd.layers import attention, basic
from minisd.params import Params
from minisd.tracing import trace
from tests.goldens import check, every_record_of, golden

KINDS = ("Conv2d", "Linear", "GroupNorm", "LayerNorm", "Embedding")


@every_record_of(*KINDS)
def test_computes_what_the_reference_computes(name, path):
    check(golden(name), path)


def params(**shapes):
    draw = np.random.RandomState(0).standard_normal
    return Params.from_state_dict({name.replace("__", "."): draw(shape).astype("float32") for name, shape in shapes.items()}, path="net")


FF = dict(net__0__proj__weight=(48, 6), net__0__proj__bias=(48,), net__2__weight=(6, 24), net__2__bias=(6,))
ATTENTION = {f"{name}__weight": (6, 6) for name in ("to_q", "to_k", "to_v", "to_out__0")}
ENDS_IN_SUMS = {  # layer, parameters, x, keywords
    "linear": (basic.linear, dict(weight=(6, 6), bias=(6,)), (2, 5, 6), {}),
    "conv2d": (basic.conv2d, dict(weight=(6, 6, 3, 3), bias=(6,)), (2, 5, 4, 6), dict(padding=1)),
    "attention": (attention.attention, ATTENTION, (2, 5, 6), dict(heads=2)),
    "feed_forward": (attention.feed_forward, FF, (2, 5, 6), {}),
}


@pytest.mark.parametrize("name", ENDS_IN_SUMS)
def test_a_listener_sees_the_layer_without_what_is_added(name):
    """As a hook in torch does, and nothing of it changes: not what was heard, not the result, not the skip."""
    layer, shapes, x, keywords = ENDS_IN_SUMS[name]
    p = params(**shapes)
    draw = np.random.RandomState(1).standard_normal
    x, sums = draw(x).astype("float32"), dict(skip=draw(x).astype("float32"))
    if name == "conv2d":
        sums["embedding"] = draw((2, 6)).astype("float32")
    before = sums["skip"].copy()
    alone, fused = layer(p, x, **keywords), layer(p, x, **keywords, **sums)
    assert not np.array_equal(alone, fused)
    with trace("net") as seen:
        heard = layer(p, x, **keywords, **sums)
    assert np.array_equal(heard, fused) and np.array_equal(sums["skip"], before)
    event = seen.events["net"]
    assert np.array_equal(event.output, alone) and event.kind == name and "skip" not in event.options
