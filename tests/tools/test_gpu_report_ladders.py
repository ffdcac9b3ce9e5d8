"""The ladder parts of `tools/gpu_report.py` on the CPU, the census of a step's convolutions, and the launchers' variants in the simulator."""

import json

import numpy as np
import pytest
from gpu_report_parts import census, ladders

from minisd.benchmark.calls import Call
from minisd.benchmark.machine import Cpu, Roof
from minisd.config import UNetConfig
from minisd.ops.cuda.device import on_device
from tests.cudasim.simulator import FORWARD, Simulator, needs_simulator
from tests.tools.test_gpu_report_kernels import Record


@pytest.fixture(autouse=True)
def cpu(monkeypatch):
    machine = Cpu()
    monkeypatch.setattr(machine, "roof", lambda dtype: Roof(1e9, 1e9))
    monkeypatch.setattr(ladders, "machine", lambda: machine)
    return machine


def test_the_census_is_that_of_the_published_model():
    """52 convolutions of 3 × 3, 400.3 GMAC for both halves of guidance: half of a step's 803.3."""
    counted = census.convolutions()
    assert sum(counted.values()) == 52
    gmac = sum(times * Call.of("conv2d", numbers).flop for numbers, times in counted.items()) / 2e9
    assert gmac == pytest.approx(400.3, abs=0.1)
    assert counted[2, 64, 4, 320, 3, 1] == 1 and counted[2, 64, 320, 320, 3, 2] == 1 and counted[2, 64, 640, 640, 3, 1] == 1


def test_the_sides_are_those_of_a_forward_pass(monkeypatch):
    """A UNet of the real depth, 4 channels wide, on 64 × 64 latents: its convolutions are listened to."""
    from minisd import ops
    from minisd.checkpoint import component_shapes
    from minisd.models import UNet2DConditionModel
    from minisd.params import Params

    config = UNetConfig(block_out_channels=(4, 8, 16, 16), norm_num_groups=4, cross_attention_dim=8, attention_head_dim=2)
    tensors = {name: np.full(shape, 0.01, "float32") for name, shape in component_shapes(config).items()}
    seen = []

    def listen(x, w, *args, stride=1, **kwargs):
        if w.shape[2] == 3:
            seen.append((x.shape[1], stride))
        return conv2d(x, w, *args, stride=stride, **kwargs)

    def listen_upsampled(x, w, *args, size):
        seen.append((size[0], 1))
        return upsampled(x, w, *args, size=size)

    conv2d, upsampled = ops.conv2d, ops.upsample_conv2d
    monkeypatch.setattr(ops, "conv2d", listen)
    monkeypatch.setattr(ops, "upsample_conv2d", listen_upsampled)
    model = UNet2DConditionModel(config, Params.from_state_dict(tensors, "unet"))
    model(np.ones((1, 4, 64, 64), "float32"), 1, np.ones((1, 3, 8), "float32"))
    counted = census.convolutions()
    expected = sorted((numbers[1], numbers[5]) for numbers, times in counted.items() for _ in range(times))
    assert sorted(seen) == expected


@pytest.mark.parametrize("part, key", [
    (ladders.conv2d, "conv2d 1,5,3,4"), (ladders.attention, "attention 1,1,3,3,4"), (ladders.gemm, "linear 3,4,5"),
    (ladders.group_norm, "group_norm 1,2,32"), (ladders.others, "silu 3,4"),
])  # fmt: skip
def test_a_ladder_part(part, key, monkeypatch):
    small = {"conv2d": ("1,5,3,4",), "upsample_conv2d": ("1,3,2,2",), "attention": ("1,1,3,3,4",), "linear": ("3,4,5",), "feed_forward": ("2,4",),
             "group_norm": ("1,2,32",), **dict.fromkeys(ladders.OTHERS, ("3,4",))}  # fmt: skip
    monkeypatch.setattr(ladders, "QUICK", small)
    record = Record()
    part(record)
    entry = record.result[key]
    assert entry["dtype"] == "float16" and entry["runs"] and any(row["ms"] for row in entry["rows"])
    json.dumps(record.result, allow_nan=False)


def test_a_shape_that_breaks_does_not_end_the_part(monkeypatch):
    monkeypatch.setattr(ladders, "QUICK", {"linear": ("3,4,5", "3,4,6"), "feed_forward": ("2,4",)})
    real = ladders.measure

    def once(call, **options):
        if call.numbers[-1] == 5:
            raise MemoryError("out of memory")
        return real(call, **options)

    monkeypatch.setattr(ladders, "measure", once)
    record = Record()
    ladders.gemm(record)
    assert record.result["linear 3,4,5"] == {"failed": "MemoryError: out of memory"} and record.result["linear 3,4,6"]["rows"]


def test_the_convolutions_of_a_step(monkeypatch):
    monkeypatch.setattr(ladders, "convolutions", lambda: {(1, 4, 3, 4, 3, 1): 2, (1, 4, 3, 4, 3, 2): 1})
    record = Record()
    ladders.unet_convolutions(record)
    assert record.result["1,4,3,4,3,1"]["times"] == 2 and record.result["1,4,3,4,3,1"]["ms"] > 0 and record.result["1,4,3,4,3,2"]["rung"]


@pytest.mark.kernels
@needs_simulator[1]
def test_the_variants_that_launchers_can_be_told(monkeypatch):
    monkeypatch.setattr(ladders, "VARIANTS", {"conv2d": (ladders.conv_variants, ("1,2,8,32",)), "linear": (ladders.linear_variants, ("9,32,32",))})
    record = Record()
    with on_device(Simulator(ways=[FORWARD])):
        ladders.variants(record)
    for key, count in (("conv2d 1,2,8,32", 4), ("linear 9,32,32", 4)):
        found = record.result[key]
        assert len(found) >= count and all(isinstance(t, float) or "Hopper" in t or "9.0" in t for t in found.values()), found
        assert found["what the façade takes"] > 0
