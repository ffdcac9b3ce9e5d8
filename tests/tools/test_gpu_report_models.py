"""The network parts of `tools/gpu_report.py` at toy size, on a stand-in for CuPy; torch's side is in tests/reference/test_gpu_report.py."""

import sys

import numpy as np
import pytest
from gpu_report_parts import baselines, models
from gpu_report_parts.record import Skip

from minisd.checkpoint import component_shapes
from tests.benchmark.cupy_clock import Clock
from tests.tools.test_gpu_report_kernels import Record

TOY = {
    "unet": dict(sample_size=8, cross_attention_dim=8, attention_head_dim=2, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
                 down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")),
    "vae": dict(block_out_channels=(8, 8), layers_per_block=1, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                latent_channels=4, sample_size=16, norm_num_groups=4),
    "text_encoder": dict(vocab_size=50, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, hidden_act="quick_gelu"),
}  # fmt: skip
SMALL = {"sample": (2, 4, 8, 8), "context": (2, 7, 8), "latents": (1, 4, 8, 8)}


@pytest.fixture
def toy(monkeypatch):
    random = np.random.RandomState(0)
    monkeypatch.setattr(models, "CONFIGS", TOY)
    monkeypatch.setattr(baselines, "CONFIGS", TOY)
    given = {name: random.randn(*shape).astype("float16") for name, shape in SMALL.items()}
    for module in (models, baselines):
        monkeypatch.setattr(module, "inputs", lambda: given)
    monkeypatch.setitem(sys.modules, "cupy", Clock())


@pytest.mark.parametrize("component", models.CONFIGS)
def test_weights_are_drawn_as_torch_draws_them(component, toy):
    w, again = models.weights(component), models.weights(component)
    assert {name: a.shape for name, a in w.items()} == component_shapes(models.config_of(component))
    assert all(a.dtype == np.float16 and np.array_equal(a, again[name]) for name, a in w.items())
    norm = next(name for name in w if "norm" in name and name.endswith(".weight"))
    assert (w[norm] == 1).all() and (w[norm.replace(".weight", ".bias")] == 0).all()
    matrix = next(name for name, a in w.items() if a.ndim > 1 and "embedding" not in name)
    bound = np.prod(w[matrix].shape[1:]) ** -0.5
    assert 0.8 * bound < np.abs(w[matrix]).max() <= bound * 1.001


def test_a_unet_step(toy):
    record = Record(quick=False)
    models.unet(record)
    assert record.result["eager"]["times"] == 20 and record.result["relative_l2_to_float32"] < 1e-2
    assert record.result["graph"]["relative_l2_to_eager"] < 1e-2 and not record.result["graph"]["recorded"]  # not a GPU


def test_a_decode(toy):
    record = Record()
    models.vae(record)
    assert record.result["decode"]["wall_ms"] > 0


# ----- torch ---------------------------------------------------------------------------------------------------------------------


def test_torch_that_is_not_there_is_a_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for part in (baselines.ops, baselines.eager, baselines.compiled):
        with pytest.raises(Skip, match="torch is not installed"):
            part(Record())
