"""`minisd trace`: a run of the embedded model, with files, tables and refusals."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from minisd import StableDiffusionPipeline, ops, trace
from minisd.tracefile import TraceFile

PROMPT = "a cat"
FAST = ("--steps", "1", "-W", "32", "-H", "32")


def test_a_pattern_writes_these_layers_of_every_step(minisd):
    code, out, _ = minisd("trace", PROMPT, "--at", "unet.*attn2", "--steps", "2", "-s", "3", "-W", "32", "-H", "32", "-o", "run.safetensors")
    assert (code, out) == (0, "run.safetensors\n") and os.listdir(".") == ["run.safetensors"]
    file = TraceFile("run.safetensors")
    names = {row["name"] for row in file.rows}
    assert len(names) > 5 and all(name.startswith("unet.") and name.endswith("attn2") for name in names)
    assert [row["call"] for row in file.rows] == [0] * len(names) + [1] * len(names)
    assert (file.recipe["prompt"], file.recipe["seed"], file.recipe["scheduler"]) == (PROMPT, 3, "DDIMScheduler")

    pipe = StableDiffusionPipeline.from_pretrained("tiny")
    assert file.recipe["profile"] == "exact", "what numerics are judged by is not the rungs that paint"
    with ops.using(profile="exact"), trace(pipe, "unet.*attn2") as seen:
        pipe(PROMPT, seed=3, num_inference_steps=2, width=32, height=32, output_type="np")
    for name, y in seen.items():
        np.testing.assert_array_equal(file[f"{name}@1"], y)


def test_everything_is_the_default(minisd):
    code, out, _ = minisd("trace", PROMPT, *FAST)
    assert (code, out) == (0, "trace.safetensors\n")
    names = [row["name"] for row in TraceFile("trace.safetensors").rows]
    assert {name.partition(".")[0] for name in names} == {"text_encoder", "unet", "vae"}
    assert names[0].endswith("token_embedding") and names[-1] == "vae.decoder"
    code, out, _ = minisd("trace", PROMPT, *FAST)
    assert out == "trace-1.safetensors\n", "nothing is overwritten"


def test_the_table_shows_the_ladder_of_the_decoder(minisd):
    code, out, _ = minisd("trace", PROMPT, "--table", "--at", "vae.decoder.up_blocks.?", *FAST)
    assert code == 0 and [line.split()[3] for line in out.splitlines()[1:]] == ["1×64×16×16", "1×64×32×32", "1×32×32×32"]
    assert os.listdir(".") == []
    code, out, _ = minisd("trace", PROMPT, "--table", "--at", "unet.*_block*[0-9k]", "--at", "unet.conv_in", *FAST)
    blocks = [(line.split()[0], line.split()[3]) for line in out.splitlines()[1:] if line.split()[0].count(".") <= 2]
    sizes = [int(shape.split("×")[2]) for name, shape in blocks if name.rpartition(".")[2] in "012mid_blockconv_in"]
    assert sizes == sorted(sizes[: len(sizes) // 2 + 1], reverse=True) + sorted(sizes[len(sizes) // 2 + 1 :]), "the UNet is a U"


def test_statistics_into_a_file_and_as_json(minisd):
    code, out, _ = minisd("trace", PROMPT, "--stats", "-o", "run.json", "--at", "unet.conv_*", *FAST)
    assert (code, out) == (0, "run.json\n")
    manifest = json.loads(Path("run.json").read_text())
    assert [row["name"] for row in manifest["rows"]] == ["unet.conv_in", "unet.conv_norm_out", "unet.conv_out"]
    code, out, _ = minisd("trace", PROMPT, "--stats", "--json", "--at", "unet.conv_*", *FAST)
    rows = json.loads(out)["rows"]
    assert [(r["name"], r["mean"], r["std"]) for r in rows] == [(r["name"], r["mean"], r["std"]) for r in manifest["rows"]]


def test_float64_begins_with_the_same_noise(minisd):
    for dtype in ("float32", "float64"):
        minisd("trace", PROMPT, "--at", "unet.conv_in", "--dtype", dtype, "-o", f"{dtype}.safetensors", *FAST)
    ours, truth = (TraceFile(f"{dtype}.safetensors")["unet.conv_in"] for dtype in ("float32", "float64"))
    assert truth.dtype == np.float64 and np.abs(ours - truth).max() <= 1e-5


def test_a_wrong_weight_is_named_at_once(minisd, monkeypatch):
    from minisd import ops

    right = ops.geglu
    monkeypatch.setattr(ops, "geglu", lambda x: right(x) * np.float32(np.inf) * 0)
    with np.errstate(invalid="ignore"):
        code, _, err = minisd("trace", PROMPT, "--check", "ops", *FAST)
    assert code == 5 and "ff.net.0 (geglu)" in err and os.listdir(".") == []
    with np.errstate(invalid="ignore"):
        code, _, err = minisd("generate", PROMPT, "--check", "ops", *FAST)
    assert code == 5 and "ff.net.0 (geglu)" in err and os.listdir(".") == []


@pytest.mark.parametrize(
    "args, what",
    [
        (("--at", "unett.*"), "no layer is called unett.*"),
        (("-o", "run.npz"), "is a .safetensors file"),
        (("--stats", "-o", "run.safetensors"), "is a .json file"),
        (("--stats", "--inputs"), "--inputs without arrays"),
        (("--steps", "0"), "num_inference_steps is 0"),
        (("-s", "-2"), "seed is -2"),
        (("-W", "30"), "width is 30"),
        (("--scheduler", "euler9"), "there is no scheduler"),
    ],
)
def test_refusals_leave_nothing_behind(minisd, args, what):
    code, _, err = minisd("trace", PROMPT, *FAST, *args)
    assert code == 2 and what in err and os.listdir(".") == []
