"""`minisd verify` passes here, and notices what it is there to notice."""

import json

import pytest

from minisd import ops
from minisd.commands import verify
from minisd.models import vae
from minisd.schedulers import SCHEDULERS

from ..tiny_folder import write_tiny_sd2


def test_the_embedded_model_is_right(minisd):
    code, out, _ = minisd("verify", "--suite", "golden")
    lines = out.splitlines()
    assert code == 0 and all(line.startswith("ok") for line in lines[:-1]) and lines[-1] == f"{len(lines) - 1} of {len(lines) - 1} checks passed"
    assert all(any(f"{name}, step 3: latents" in line for line in lines) for name in SCHEDULERS)


def test_the_samplers_are_right(minisd):
    code, out, _ = minisd("verify", "--suite", "schedulers", "--json")
    found = json.loads(out)
    assert code == 0 and found["ok"] and len(found["checks"]) == len(SCHEDULERS)


def test_a_tanh_gelu_is_noticed(monkeypatch):
    import numpy as np

    def wrong(x):
        h, g = np.split(x, 2, axis=-1)
        return h * (0.5 * g * (1.0 + np.tanh(0.7978845608 * (g + 0.044715 * g**3))))

    monkeypatch.setattr(ops, "geglu", wrong)
    monkeypatch.setattr(ops, "feed_forward", lambda x, w, b, w_out, b_out: ops.linear(wrong(ops.linear(x, w, b)), w_out, b_out))
    wrong_ones = [check["name"] for check in verify.golden() if not check["ok"]]
    assert "ddim, step 3: noise" in wrong_ones and "prompt vectors" not in wrong_ones


def test_a_wrong_eps_in_the_vae_is_noticed(monkeypatch):
    monkeypatch.setattr(vae, "VAE_NORM_EPS", 1e-3)
    assert [check["name"] for check in verify.golden() if not check["ok"]] == ["picture"]


def test_a_wrong_sampler_is_noticed(monkeypatch, minisd):
    ddim = SCHEDULERS["ddim"]
    right = ddim.step
    monkeypatch.setattr(ddim, "step", lambda self, noise, t, x, **options: right(self, noise, t, x * 1.00001, **options))
    code, out, _ = minisd("verify", "--suite", "schedulers")
    assert code == 1 and "WRONG  ddim, ten steps" in out and "2 of 3 checks passed" in out


def test_another_model_is_measured_against_itself_in_float64(minisd, tmp_path, monkeypatch):
    folder = str(write_tiny_sd2(tmp_path / "model"))
    code, out, _ = minisd("verify", "-m", folder, "--suite", "golden")
    assert code == 0 and [line.split()[1] for line in out.splitlines()[:-1]] == ["text_encoder", "unet", "vae"], out

    right = ops.layer_norm
    monkeypatch.setattr(ops, "layer_norm", lambda x, w, b, *, eps: right(x, w, b, eps=eps if x.dtype == "float64" else 2 * eps))
    code, out, _ = minisd("verify", "-m", folder, "--suite", "golden")
    assert code == 1 and "first divergence: text_encoder.text_model.encoder.layers.0.layer_norm1" in out


def test_a_record_of_another_version_is_refused():
    from minisd.errors import UsageError

    with pytest.raises(UsageError, match="another version"):
        verify.compared({"a": [1.0]}, {"b": [1.0]}, 1e-4)
    (nan,) = verify.compared({"a": [float("nan")]}, {"a": [1.0]}, 1e-4)
    assert nan["ok"] is False
