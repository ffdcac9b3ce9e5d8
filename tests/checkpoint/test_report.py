"""What a load says of itself, for people and for --json."""

import json

from minisd.checkpoint import LoadReport
from minisd.checkpoint.report import in_bytes, shorten, some


def report() -> LoadReport:
    return LoadReport(
        component="vae", dtype="float32", files=["diffusion_pytorch_model.safetensors"], tensors=248, bytes=334_615_452,
        source_dtypes={"F16": 240, "F32": 8}, renamed={"old VAE attention names": {"a.query": "a.to_q", "a.key": "a.to_k"}},
        dropped={"training averages": ["model_ema.decay"]}, unexpected=["x", "y"], nonfinite={"conv_in.weight": 3},
    )  # fmt: skip


def test_for_people():
    assert str(report()).splitlines() == [
        "vae: 248 tensors, 334.62 MB from diffusion_pytorch_model.safetensors (F16, F32 → float32)",
        "  renamed 2 (old VAE attention names)",
        "  left out 1 (training averages)",
        "  unexpected, left out: x, y",
        "  NaN or Inf in: conv_in.weight (3)",
    ]
    assert str(LoadReport("unet", "float64", ["u.safetensors"], 686, 3_438_083_856, {"F32": 686})) == (
        "unet: 686 tensors, 3.44 GB from u.safetensors (F32 → float64)"
    )


def test_for_json():
    data = json.loads(json.dumps(report().to_dict()))
    assert data["cast"] == {"F16": 240} and data["renamed"]["old VAE attention names"]["a.key"] == "a.to_k"
    assert {
        "component",
        "files",
        "dtype",
        "tensors",
        "bytes",
        "source_dtypes",
        "dropped",
        "missing",
        "unexpected",
        "nonfinite",
    } <= data.keys()


def test_words():
    assert [in_bytes(n) for n in (7, 1999, 2_500_000, 3_438_167_534)] == ["7 bytes", "2.00 kB", "2.50 MB", "3.44 GB"]
    assert some(list("abcdefg")) == "a, b, c, d, e and 2 more" and some(list("ab")) == "a, b" and some([]) == ""
    assert (
        shorten("a.b") == "a.b"
        and shorten("a\x1b\n\u202e") == r"a\x1b\n\u202e"
        and shorten("x" * 200) == "x" * 100 + "… (200 characters)"
    )
