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
    monkeypatch.setattr(ops, "feed_forward", lambda x, w, b, v, c, *, skip: ops.linear(wrong(ops.linear(x, w, b)), v, c, skip=skip))
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


def test_the_cases_of_the_onnx_standard(minisd, monkeypatch):
    """Three cases stand for all, which tests/onnx_suite runs; as many are asked for as the suite holds."""
    cases = pytest.importorskip("minisd.onnx_suite.cases")
    chosen = {name: cases.collect()[name] for name in ("test_gelu_default_1", "test_softmax_example", "test_attention_4d_softcap")}
    monkeypatch.setattr(cases, "collect", lambda: chosen)
    monkeypatch.setattr(cases, "EXPECTED", {"passed": 2, "Attention with softcap": 1})
    code, out, _ = minisd("verify", "--suite", "onnx")
    lines = out.splitlines()
    assert code == 0 and [line.split(", ")[1].split()[0] for line in lines[:-1]] == ["fast", "exact", "reference"]
    assert all("2 do, 1 ask for what no op of ours is" in line for line in lines[:-1])

    right = ops.gelu
    monkeypatch.setattr(ops, "gelu", lambda x: right(x) * 1.01)
    code, out, _ = minisd("verify", "--suite", "onnx")
    assert code == 1 and "WRONG  ONNX cases, exact rungs" in out and "WRONG  test_gelu_default_1, exact rungs" in out


@pytest.mark.parametrize("found", [None, "1.23.2"])
def test_without_the_right_onnx_the_command_to_install_it_is_given(minisd, monkeypatch, found):
    import importlib.metadata

    def version(name):
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)
    code, _, err = minisd("verify", "--suite", "onnx")
    assert code == 2 and "pip install onnx==1.22.0" in err and (found or "no onnx") in err


def test_a_record_of_another_version_is_refused():
    from minisd.errors import UsageError

    with pytest.raises(UsageError, match="another version"):
        verify.compared({"a": [1.0]}, {"b": [1.0]}, 1e-4)
    (nan,) = verify.compared({"a": [float("nan")]}, {"a": [1.0]}, 1e-4)
    assert nan["ok"] is False
