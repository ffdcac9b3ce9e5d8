"""minisd lora: the table of effects; refusals before weights are read."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from minisd import StableDiffusionPipeline

Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q"


@pytest.fixture
def lora(tmp_path):
    """A LoRA of rank 1 for one weight of the embedded model, and ‖ΔW‖ / ‖W‖."""
    w = dict(StableDiffusionPipeline.from_pretrained("tiny").unet.params.items())[f"{Q}.weight"]
    a, b = np.full((1, w.shape[1]), 0.01, "float32"), np.full((w.shape[0], 1), 0.5, "float32")
    save_file({f"unet.{Q}.lora_A.weight": a, f"unet.{Q}.lora_B.weight": b}, tmp_path / "a.safetensors")
    return "a.safetensors", 0.005 * w.size**0.5 / np.linalg.norm(w.astype("float64"))


def test_the_effect_is_printed(minisd, lora):
    file, ratio = lora
    code, out, _ = minisd("lora", f"{file}:0.5", "--json")
    (row,) = json.loads(out)["weights"]
    assert code == 0 and (row["weight"], row["rank"], row["scale"], row["adapter"]) == (f"unet.{Q}.weight", 1, 0.5, "a.safetensors:0.5")
    np.testing.assert_allclose(row["ratio"], 0.5 * ratio, rtol=1e-6)
    assert f"{0.5 * ratio:.2e}" in minisd("lora", f"{file}:0.5")[1]


def test_refusals(minisd, tmp_path, monkeypatch):
    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", lambda *a, **k: pytest.fail("weights were read"))
    save_file({"unet.x.lora_A.weight": np.zeros((1, 1), "float32")}, tmp_path / "b.safetensors")
    code, _, err = minisd("lora", "b.safetensors")
    assert code == 3 and "belong to no weight" in err
    assert minisd("lora", "none.safetensors")[0] == 2 and minisd("lora")[0] == 2
