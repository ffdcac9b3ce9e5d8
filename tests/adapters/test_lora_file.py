"""LoRA files of every dialect mean the same ΔW; alpha from the file, the header and PEFT's config; everything that does not fit is named."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from minisd.adapters.lora_file import METADATA, check_lora
from minisd.adapters.lora_names import ldm_name
from minisd.checkpoint import component_shapes
from minisd.config import CLIPTextConfig, UNetConfig
from minisd.errors import ModelFileError, NumericError, UsageError
from tests.checkpoint.torch_bytes import encode, write_zip
from tests.tiny_folder import CONFIGS

from .lora_bytes import diffusers_0_16, diffusers_0_20, kohya, matrices, peft, peft_alone

UNET = UNetConfig.from_dict(CONFIGS["unet"])
SHAPES = {"unet": component_shapes(UNET), "text_encoder": component_shapes(CLIPTextConfig.from_dict(CONFIGS["text_encoder"]))}
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
LAYER = "text_model.encoder.layers.1"
MODULES = {
    "unet": [f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn2.to_k", f"{BLOCK}.attn2.to_out.0", f"{BLOCK}.ff.net.0.proj", "down_blocks.0.attentions.0.proj_in",
             "down_blocks.0.resnets.0.conv1", "up_blocks.1.resnets.0.conv_shortcut", "mid_block.resnets.0.time_emb_proj", "up_blocks.0.upsamplers.0.conv"],
    "text_encoder": [f"{LAYER}.self_attn.q_proj", f"{LAYER}.self_attn.out_proj", f"{LAYER}.mlp.fc1"],
}  # fmt: skip
PAIRS = matrices(SHAPES, MODULES)
ATTENDED = {name.partition(".attentions.")[0] for name in SHAPES["unet"] if ".attentions." in name}


def ldm(component, module):
    return ldm_name(module, UNET.layers_per_block, ATTENDED) if component == "unet" else module


def check(path):
    return check_lora(path, SHAPES, UNET.layers_per_block)


def save(path, tensors, **metadata):
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, path, metadata=metadata or None)
    return path


DIALECTS = {
    "PEFT": (peft(PAIRS), MODULES),
    "diffusers 0.20": (diffusers_0_20(PAIRS), MODULES),
    "diffusers 0.16": (diffusers_0_16(PAIRS), {"unet": MODULES["unet"]}),
    "kohya": (kohya(PAIRS), MODULES),
    "kohya, names of LDM": (kohya(PAIRS, rename=ldm), MODULES),
    "without text_model.": ({name.replace("text_model.", ""): x for name, x in peft(PAIRS).items()}, MODULES),
    "adapter's name inside": ({name.replace(".weight", ".ink.weight"): x for name, x in peft(PAIRS).items()}, MODULES),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_means_the_same(tmp_path, dialect):
    """ΔW = B A for each weight, computed here element by element."""
    tensors, modules = DIALECTS[dialect]
    file = check(save(tmp_path / "lora.safetensors", tensors)).read()
    assert {part: set(layers) for part, layers in file.layers.items()} == {part: {f"{m}.weight" for m in names} for part, names in modules.items()}
    for part, layers in file.layers.items():
        for name, layer in layers.items():
            a, b = (x.astype("float64") for x in PAIRS[part, name.removesuffix(".weight")])
            expected = np.einsum("or...,ri...->oi...", b, a)  # the kernel of B is 1×1
            assert layer.rank == 2 and layer.scale == 1.0 and layer.delta(SHAPES[part][name], "float32").dtype == np.float32
            np.testing.assert_allclose(layer.delta(SHAPES[part][name], "float64"), expected, rtol=1e-12)


def test_files_of_torch_too(tmp_path):
    file = check(write_zip(tmp_path / "pytorch_lora_weights.bin", peft(PAIRS))).read()
    assert len(file.layers["unet"]) == 9
    assert check(tmp_path).path == tmp_path / "pytorch_lora_weights.bin"


def test_a_matrix_may_be_stored_as_a_1x1_convolution_and_back(tmp_path):
    """Trainers differ on proj_in; the numbers are the same."""
    module = f"{BLOCK}.attn1.to_q"
    a, b = PAIRS["unet", module]
    layer = check(save(tmp_path / "l.safetensors", peft({("unet", module): (a[:, :, None, None], b[:, :, None, None])}))).read().layers["unet"][f"{module}.weight"]
    np.testing.assert_allclose(layer.delta(SHAPES["unet"][f"{module}.weight"], "float64"), b.astype("float64") @ a, rtol=1e-6)
    module = "up_blocks.1.resnets.0.conv_shortcut"
    a, b = PAIRS["unet", module]
    assert check(save(tmp_path / "m.safetensors", peft({("unet", module): (a[:, :, 0, 0], b[:, :, 0, 0])})))


# ----- alpha ---------------------------------------------------------------------------------------------------------------


def scales(path) -> dict:
    return {name.removesuffix(".weight"): layer.scale for layers in check(path).layers.values() for name, layer in layers.items()}


def test_alpha_of_kohya(tmp_path):
    assert set(scales(save(tmp_path / "l.safetensors", kohya(PAIRS, alpha=6.0))).values()) == {3.0}


def header(**options):
    return {METADATA: json.dumps({f"{part}.{name}": value for part in ("unet", "text_encoder") for name, value in options.items()})}


def test_alpha_of_peft_in_the_header(tmp_path):
    found = scales(save(tmp_path / "l.safetensors", peft(PAIRS), **header(r=2, lora_alpha=8, alpha_pattern={"to_k": 3, "self_attn.q_proj": 1, "^conv1": 7})))
    assert found[f"{BLOCK}.attn2.to_k"] == 1.5 and found[f"{LAYER}.self_attn.q_proj"] == 0.5
    assert found[f"{BLOCK}.attn1.to_q"] == found[f"{LAYER}.mlp.fc1"] == found["down_blocks.0.resnets.0.conv1"] == 4.0  # ^ is the whole name


def test_rank_stabilised(tmp_path):
    assert set(scales(save(tmp_path / "l.safetensors", peft(PAIRS), **header(lora_alpha=8, use_rslora=True))).values()) == {8 / 2**0.5}


def test_alpha_of_peft_alone_stands_beside_the_file(tmp_path):
    pairs = {key: ab for key, ab in PAIRS.items() if key[0] == "unet"}
    save(tmp_path / "adapter_model.safetensors", peft_alone(pairs))
    with pytest.raises(ModelFileError, match="adapter_config.json cannot be read"):
        check(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 5}))
    assert set(scales(tmp_path).values()) == {2.5}


# ----- what is refused -----------------------------------------------------------------------------------------------------

Q = f"unet.{BLOCK}.attn1.to_q"
GOOD = peft({("unet", f"{BLOCK}.attn1.to_q"): PAIRS["unet", f"{BLOCK}.attn1.to_q"]})
A, B = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"
REFUSED = {
    "another architecture": ({**GOOD, "unet.down_blocks.7.x.lora_A.weight": GOOD[A]}, {}, r"1 of 3 tensors belong to no weight of this model: unet.down_blocks.7"),
    "a checkpoint": ({"model.diffusion_model.input_blocks.0.0.weight": GOOD[A]}, {}, "belong to no weight"),
    "SDXL": ({**GOOD, "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": GOOD[A]}, {}, "a LoRA for SDXL"),
    "LoHa": ({"lora_unet_conv_in.hada_w1_a": GOOD[A]}, {}, "l.safetensors: this file is LoHa"),
    "no up": ({A: GOOD[A]}, {}, "has no up\n.*only down"),
    "no down": ({B: GOOD[B]}, {}, "has no down\n.*only up"),
    "alpha alone": ({f"lora_unet_{Q[5:].replace('.', '_')}.alpha": np.array(1.0)}, {}, "has no down"),
    "a width of another model": ({A: np.zeros((2, 320), "float32"), B: GOOD[B]}, {}, r"does not fit\n.*W is \[18, 18\], A \[2, 320\]"),
    "another rank": ({A: GOOD[A], B: GOOD[B][:, :1]}, {}, r"B \[18, 1\]"),
    "rank 0": ({A: GOOD[A][:0], B: GOOD[B][:, :0]}, {}, "does not fit"),
    "a vector": ({A: GOOD[A][0], B: GOOD[B]}, {}, "does not fit"),
    "a kernel in B": ({"unet.conv_in.lora_A.weight": np.zeros((2, 4, 1, 1), "float32"), "unet.conv_in.lora_B.weight": np.zeros((18, 2, 3, 3), "float32")}, {}, "does not fit"),
    "integers": ({A: GOOD[A].astype("int32"), B: GOOD[B]}, {}, "stored as I32"),
    "two dialects": ({**GOOD, f"{Q}.lora.down.weight": GOOD[A]}, {}, "two tensors for down"),
    "alpha of two": ({**GOOD, f"{Q}.alpha": np.ones(2, "float32")}, {}, "alpha of .* is no finite number"),
    "alpha NaN": ({**GOOD, f"{Q}.alpha": np.array(np.nan)}, {}, "no finite number"),
    "alpha a text": (GOOD, header(lora_alpha="8"), "no finite number"),
    "an expression": (GOOD, header(alpha_pattern={r"(a+)+$": 3}), r"alpha_pattern \(a\+\)\+\$ is not supported"),
    "a pattern that is a list": (GOOD, header(alpha_pattern=[1]), "is no table"),
    "DoRA by config": (GOOD, header(use_dora=True), "its config says use_dora"),
    "a broken header": (GOOD, {METADATA: "{"}, "in its header is broken"),
    "a header that is a list": (GOOD, {METADATA: "[]"}, "in its header is broken"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_by_name(tmp_path, name):
    tensors, metadata, message = REFUSED[name]
    with pytest.raises(ModelFileError, match=message):
        check(save(tmp_path / "l.safetensors", tensors, **metadata))


def test_nan_is_found_when_the_matrices_are_read(tmp_path):
    file = check(save(tmp_path / "l.safetensors", {A: GOOD[A] * np.nan, B: GOOD[B]}))
    with pytest.raises(NumericError, match="NaN or Inf"):
        file.read()


@pytest.mark.parametrize("value", [[1, 2], {}, {"a": "b"}, {5: GOOD[A]}])
def test_files_of_torch_that_hold_no_tensors(tmp_path, value):
    with pytest.raises(ModelFileError, match="is no LoRA"):
        check(write_zip(tmp_path / "l.bin", value))


def test_a_hostile_file_and_a_missing_one(tmp_path):
    with pytest.raises(ModelFileError, match="the name os.system"):
        check(write_zip(tmp_path / "l.bin", code=b"\x80\x02cos\nsystem\n(" + encode("x", {}) + b"tR."))
    with pytest.raises(UsageError, match="there is no file"):
        check(tmp_path / "none.safetensors")
