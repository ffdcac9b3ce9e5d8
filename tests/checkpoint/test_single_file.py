"""Single-file checkpoints with the official names: recognised, configured, loaded, drawn; and what is none, refused by name."""

import hashlib
import json
import shutil

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import load_file

from minisd import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionPipeline
from minisd.checkpoint import load_component, open_single_file, read_component_config, read_model_index, read_scheduler_config
from minisd.checkpoint.single_file import file_sha256
from minisd.errors import FetchError, ModelFileError, NumericError, UsageError
from minisd.models import AutoencoderKL, UNet2DConditionModel
from minisd.schedulers import DDIMScheduler
from tests.checkpoint.ldm import LDM, put_tokenizer, tensors, weights, write_folder, write_single_file
from tests.checkpoint.synthetic import write_pipeline
from tests.checkpoint.torch_bytes import write_legacy, write_zip
from tests.tiny_folder import EMBEDDED

SMALL = dict(num_inference_steps=2, seed=1, width=64, height=64, output_type="np")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An SD 1.x checkpoint with a vocabulary beside it."""
    folder = put_tokenizer(tmp_path_factory.mktemp("single"))
    write_single_file(folder / "sd1.safetensors")
    return folder


@pytest.fixture
def offline(monkeypatch):
    """No hub; returns what was asked for."""
    asked = []

    def nothing(repo, **options):
        asked.append((repo, options["local_files_only"], options["allow_patterns"][0]))
        raise ConnectionError("no network in tests")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", nothing)
    return asked


def arrays(file: str) -> dict:
    """What a .ckpt of the same model holds."""
    return {name: np.ascontiguousarray(x[1] if isinstance(x, tuple) else x) for name, x in tensors(file).items()}


def refused(path, error=ModelFileError, **options):
    with pytest.raises(error) as caught:
        read_model_index(path) if not options else StableDiffusionPipeline.from_single_file(path, **options)
    return caught.value


# ----- what it predicts ---------------------------------------------------------------------------------------------------


def test_a_step_of_875000_is_2_base_as_in_diffusers(tmp_path):
    values = {name: x for name, x in tensors("ldm_sd2", spread=0.2).items() if not name.startswith(("first_stage", "cond_stage"))}
    for step, prediction in ((875000, "epsilon"), (110000, "v_prediction")):
        path = write_zip(tmp_path / "x.ckpt", {"global_step": step, "state_dict": values})
        assert read_scheduler_config(path)["prediction_type"] == prediction


@pytest.mark.parametrize("spread, prediction", [(0.05, "epsilon"), (0.13, "v_prediction")])
def test_epsilon_and_v_are_told_apart_by_the_weights(tmp_path, caplog, spread, prediction):
    path = write_single_file(tmp_path / "x.safetensors", "ldm_sd2", spread=spread)
    single = open_single_file(path)
    assert single.scheduler["prediction_type"] == prediction and f"σ = {spread:.3f}" in single.note
    assert not caplog.records
    single.load("unet")
    assert "prediction_type=" in caplog.text and "x.yaml" in caplog.text  # a guess is never silent
    other = {"epsilon": "v_prediction", "v_prediction": "epsilon"}[prediction]
    assert open_single_file(path, other).scheduler["prediction_type"] == other and open_single_file(path, other).note == ""
    for text, said in (('model:\n  params:\n    parameterization: "v"\n', "v_prediction"), ("model:\n  params:\n    timesteps: 1000\n", "epsilon"),
                       ("    parameterization: eps", "epsilon"), ("# parameterization: v", "epsilon")):  # fmt: skip
        path.with_suffix(".yaml").write_text(text)
        assert open_single_file(path).scheduler["prediction_type"] == said
        assert read_component_config(path, "unet").sample_size == (96 if said == "v_prediction" else 64)


# ----- loaded --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, file", [*((kind, file) for file in LDM for kind in ("safetensors", "ckpt")), ("legacy.ckpt", "ldm_sd1")])
def test_the_weights_are_those_of_the_folder(tmp_path, file, kind):
    path = tmp_path / f"x.{kind}"
    if kind == "safetensors":
        write_single_file(path, file)
    else:
        state = arrays(file)
        write_zip(path, {"state_dict": state, "epoch": 3}) if kind == "ckpt" else write_legacy(path, state)
    for component, expected in weights(file).items():
        loaded = load_component(path, component)
        found = dict(loaded.params.leaves())
        assert found.keys() == expected.keys()
        for name, x in found.items():
            assert x.dtype == np.float32 and np.array_equal(x, expected[name]), name


def test_the_report_lists_every_rename(folder):
    path = folder / "sd1.safetensors"
    unet = load_component(path, "unet").report
    assert unet.files == ["sd1.safetensors"] and unet.tensors == 686 and len(unet.renamed["LDM's names"]) == 686
    assert unet.renamed["LDM's names"]["model.diffusion_model.out.2.bias"] == "conv_out.bias"
    assert len(unet.dropped["the training's schedule"]) == 12
    text = load_component(path, "text_encoder").report
    assert text.dropped == {"position_ids, a constant": ["cond_stage_model.transformer.text_model.embeddings.position_ids"]}


def test_openclip_is_cut_where_it_lies(tmp_path):
    path = write_single_file(tmp_path / "x.safetensors", "ldm_sd2")
    report = load_component(path, "text_encoder").report
    fused = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"
    assert report.renamed["LDM's names"][fused] == ", ".join(f"text_model.encoder.layers.0.self_attn.{x}_proj.weight" for x in "qkv")
    assert len(report.dropped["OpenCLIP's last layer and projection"]) == 14
    assert set(load_component(path, "unet").report.dropped["training averages"]) == {"model_ema.decay", "model_ema.num_updates"}


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F64"])
def test_other_dtypes(tmp_path, dtype):
    def mixed(values):
        first = next(name for name in values if name.startswith("model.diffusion_model."))
        return {**values, first: ("F32", values[first])}

    path = write_single_file(tmp_path / "x.safetensors", "ldm_sd2", dtype, change=mixed)
    for component in ("unet", "vae", "text_encoder"):
        loaded = load_component(path, component)
        for name, x in loaded.params.leaves():
            np.testing.assert_allclose(x, weights("ldm_sd2")[component][name], rtol=2**-8, atol=2**-14)
        assert loaded.report.source_dtypes.keys() == ({"F32", dtype} if component == "unet" else {dtype})


def test_float16_stays_in_half_the_memory(tmp_path):
    path = write_single_file(tmp_path / "x.safetensors", "ldm_sd2", "F16")
    kept, plain = (load_component(path, "text_encoder", resident=r) for r in ("float16", None))
    assert kept.report.bytes < 0.6 * plain.report.bytes


# ----- drawn ---------------------------------------------------------------------------------------------------------------


def test_a_picture_equals_that_of_the_folder(folder, tmp_path):
    single = StableDiffusionPipeline.from_single_file(folder / "sd1.safetensors")
    whole = StableDiffusionPipeline.from_pretrained(write_folder(tmp_path / "model"))
    assert single.unet.config == whole.unet.config and single.text_encoder.config == whole.text_encoder.config
    assert type(single.scheduler) is type(whole.scheduler) and single.name == str(folder / "sd1.safetensors")
    picture = single("a red apple", **SMALL).images
    assert np.isfinite(picture).all() and picture.std() > 0
    np.testing.assert_array_equal(picture, whole("a red apple", **SMALL).images)
    np.testing.assert_array_equal(picture, StableDiffusionPipeline.from_pretrained(folder / "sd1.safetensors")("a red apple", **SMALL).images)


def test_a_v_prediction_picture_equals_that_of_the_folder(tmp_path):
    put_tokenizer(tmp_path)
    single = StableDiffusionPipeline.from_single_file(write_single_file(tmp_path / "x.safetensors", "ldm_sd2"), prediction_type="v_prediction")
    settings = dict(_class_name="DDIMScheduler", prediction_type="v_prediction")
    whole = StableDiffusionPipeline.from_pretrained(write_folder(tmp_path / "model", "ldm_sd2", **settings))
    np.testing.assert_array_equal(single("a red apple", **SMALL).images, whole("a red apple", **SMALL).images)


def test_the_other_pipelines(folder, tmp_path):
    image = np.zeros((64, 64, 3), "uint8")
    pipe = StableDiffusionImg2ImgPipeline.from_single_file(folder / "sd1.safetensors")
    assert pipe("a", image=image, strength=0.5, num_inference_steps=2, seed=1, output_type="np").images.shape == (1, 64, 64, 3)
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    path = write_single_file(tmp_path / "x.safetensors", in_channels=9)
    pipe = StableDiffusionInpaintPipeline.from_single_file(path)
    mask = np.zeros((64, 64), "uint8")
    mask[16:48, 16:48] = 255
    assert pipe("a", image=image, mask_image=mask, **SMALL).images.shape == (1, 64, 64, 3)


def test_given_parts_replace_those_of_the_file(folder, tmp_path):
    """A pruned file without a VAE, and a sampler of one's own."""
    path = write_single_file(tmp_path / "x.safetensors", change=lambda values: {n: x for n, x in values.items() if not n.startswith("first_stage")})
    error = refused(path)
    assert error.what == f"{path} holds no VAE" and "the UNet and text encoder only" in error.why
    assert "vae = AutoencoderKL.from_pretrained('stable-diffusion-v1-5/stable-diffusion-v1-5')" in error.fix and "vae=vae" in error.fix
    vae, scheduler = AutoencoderKL.from_pretrained(folder / "sd1.safetensors"), DDIMScheduler()
    pipe = StableDiffusionPipeline.from_single_file(path, vae=vae, scheduler=scheduler, tokenizer=folder / "tokenizer")
    assert pipe.vae is vae and pipe.scheduler is scheduler
    tokenizer = pipe.tokenizer
    assert StableDiffusionPipeline.from_single_file(path, vae=vae, tokenizer=tokenizer).tokenizer is tokenizer
    assert read_component_config(path, "unet").cross_attention_dim == 64


def test_turbo_needs_a_sampler_that_minisd_has(tmp_path):
    path = write_single_file(put_tokenizer(tmp_path) / "x.safetensors", "ldm_sd_turbo")
    assert "EulerDiscreteScheduler" in refused(path, UsageError, dtype="float32").what
    pipe = StableDiffusionPipeline.from_single_file(path, scheduler=DDIMScheduler.from_pretrained(path))
    assert pipe.scheduler.config.prediction_type == "epsilon" and pipe.scheduler.config.timestep_spacing == "trailing"
    assert StableDiffusionPipeline.from_pretrained(path, scheduler=pipe.scheduler).scheduler is pipe.scheduler  # as --scheduler ddim does


# ----- the vocabulary ------------------------------------------------------------------------------------------------------


def test_the_vocabulary_beside_the_file_alone(tmp_path, offline):
    """Bare vocab.json and merges.txt do not say what pads: SD 1.x has <|endoftext|>, SD 2.x "!"."""
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(EMBEDDED / "tokenizer" / name, tmp_path)
    for file, pad in (("ldm_sd1", "<|endoftext|>"), ("ldm_sd2", "!")):
        path = write_single_file(tmp_path / f"{file}.safetensors", file)
        assert StableDiffusionPipeline.from_single_file(path, prediction_type="epsilon").tokenizer.pad_token == pad
    assert offline == []


@pytest.mark.parametrize("cached", [0, 1])
def test_the_vocabulary_comes_from_the_hub(tmp_path, monkeypatch, cached):
    """The cache first, of either place; then diffusers' place."""
    path, asked = write_single_file(tmp_path / "x.safetensors"), []

    def hub(repo, allow_patterns, local_files_only, library_name):
        asked.append((repo, local_files_only))
        if cached == local_files_only and (not cached or repo == "stable-diffusion-v1-5/stable-diffusion-v1-5"):
            return EMBEDDED if cached else EMBEDDED / "tokenizer"
        raise ConnectionError("no")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    assert StableDiffusionPipeline.from_single_file(path).tokenizer.pad_token == "<|endoftext|>"
    places = ["openai/clip-vit-large-patch14", "stable-diffusion-v1-5/stable-diffusion-v1-5"]
    assert asked == [(places[0], True), (places[1], True), *([] if cached else [(places[0], False)])]


@pytest.mark.parametrize(
    "file, repo, first",
    [("ldm_sd1", "openai/clip-vit-large-patch14", "vocab.json"), ("ldm_sd2", "stabilityai/stable-diffusion-2", "tokenizer/vocab.json")],
)
def test_no_vocabulary_anywhere(tmp_path, offline, file, repo, first):
    path = write_single_file(tmp_path / "x.safetensors", file)
    error = refused(path, FetchError, prediction_type="epsilon")
    assert "CLIP's vocabulary" in error.what and "no network in tests" in error.why
    assert f"hf download {repo} {first} " in error.fix and error.fix.endswith(f"--local-dir {tmp_path}")
    assert offline[0] == (repo, True, first) and {local for _, local, _ in offline} == {True, False}


# ----- refused -------------------------------------------------------------------------------------------------------------


def test_a_part_of_a_folder(tmp_path):
    folder = write_pipeline(tmp_path / "model")
    for name in ("model_index.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json", "text_encoder/model.safetensors"):
        assert refused(folder / name).fix == f"give the folder {folder}"
    write_single_file(folder / "whole.safetensors")  # as in the official repositories
    assert read_model_index(folder / "whole.safetensors")["unet"] == "UNet2DConditionModel"


def test_broken_files(tmp_path, folder):
    data, path = (folder / "sd1.safetensors").read_bytes(), tmp_path / "x.safetensors"
    for cut in (5, 5000, len(data) - 100):
        path.write_bytes(data[:cut])
        assert "x.safetensors" in refused(path).what
    path.write_bytes(b"<!DOCTYPE html>" + b" " * 100)
    assert "web page" in refused(path).what
    zipped = write_zip(tmp_path / "z.safetensors", {"x": np.zeros(2, "float32")})
    assert "zip archive" in refused(zipped).what
    assert refused(tmp_path / "y.safetensors", UsageError, dtype="float32").what.startswith("there is no file")


def test_wrong_shapes_and_missing_tensors_name_the_official_tensor(tmp_path):
    norm = "model.diffusion_model.out.0.bias"
    path = write_single_file(tmp_path / "x.safetensors", change=lambda values: {**values, norm: np.zeros(33, "float32")})
    with pytest.raises(ModelFileError, match=r"conv_norm_out.bias is \[33\], the config of SD 1.x describes \[32\]"):
        load_component(path, "unet")
    write_single_file(path, change=lambda values: {name: x for name, x in values.items() if name != norm})
    with pytest.raises(ModelFileError, match="1 of 686 tensors are missing: conv_norm_out.bias"):
        load_component(path, "unet")
    fused = "cond_stage_model.model.transformer.resblocks.3.attn.in_proj_bias"
    write_single_file(path, "ldm_sd2", change=lambda values: {**values, fused: np.zeros(191, "float32")})
    with pytest.raises(ModelFileError, match=r"layers.3.self_attn.q_proj.bias is \[191\]"):
        load_component(path, "text_encoder")


def test_nan_is_refused_with_its_name(tmp_path):
    def broken(values):
        values["first_stage_model.decoder.conv_out.bias"] = np.array([0, np.nan, 0], "float32")
        return values

    path = write_single_file(tmp_path / "x.safetensors", change=broken)
    with pytest.raises(NumericError, match="decoder.conv_out.bias holds NaN"):
        AutoencoderKL.from_pretrained(path)
    assert load_component(path, "vae", allow_nonfinite=True).report.nonfinite == {"decoder.conv_out.bias": 1}
    assert UNet2DConditionModel.from_pretrained(path).num_parameters() > 0


def test_two_names_for_one_tensor(tmp_path):
    long, short = (f"cond_stage_model.transformer.{x}final_layer_norm.bias" for x in ("text_model.", ""))
    path = write_single_file(tmp_path / "x.safetensors", change=lambda values: {**values, short: values[long]})
    with pytest.raises(ModelFileError, match="two tensors for text_model.final_layer_norm.bias"):
        load_component(path, "text_encoder")


def test_hostile_pickles_run_nothing(tmp_path):
    path = tmp_path / "x.ckpt"
    write_zip(path, code=b"\x80\x02cos\nsystem\nX\x08\x00\x00\x00touch xx\x85R.")
    error = refused(path)
    assert "os.system" in error.what and "has run nothing" in error.why and not (tmp_path / "xx").exists()
    lightning = b"\x80\x02}X\x09\x00\x00\x00callbacks}cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\nNss."
    assert "pytorch_lightning" in refused(write_zip(path, code=lightning)).what
    assert "neither a state_dict" in refused(write_zip(path, {"epoch": 1})).why
    path.write_bytes(b"nonsense" * 10)
    assert "no file of torch" in refused(path).what


def test_what_from_single_file_does_not_take(folder):
    assert refused("tiny", UsageError, dtype="float32").what == "there is no file tiny"
    path = folder / "sd1.safetensors"
    assert "prediction_type is 'x'" in refused(path, UsageError, prediction_type="x").what
    assert "float16 cannot be computed" in refused(path, UsageError, dtype="float16").what


def test_the_hash_is_that_of_the_file(folder):
    path = folder / "sd1.safetensors"
    assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


# ----- the command line ----------------------------------------------------------------------------------------------------


def test_every_command_takes_a_single_file(folder, tmp_path, capsys, monkeypatch):
    from tests.test_cli import run

    monkeypatch.chdir(tmp_path)
    path = str(folder / "sd1.safetensors")
    code, out, err = run(capsys, "a red apple", "-m", path, "--steps", "2", "-W", "64", "-H", "64", "-s", "1", "--json")
    assert code == 0, err
    recipe = json.loads(out)
    assert recipe["model"] == path and recipe["model_sha256"] == file_sha256(path)
    code, out, _ = run(capsys, "inspect", recipe["path"])
    assert code == 0 and f"--model {path}" in out and "model_sha256" in out
    code, out, _ = run(capsys, "inspect", path)
    lines = out.splitlines()
    assert code == 0 and "a whole model, SD 1.x, epsilon" in lines[0]
    assert "  model.diffusion_model.out.2.bias  F32  4  → unet.conv_out.bias" in lines
    assert "  betas  F32  1000  → not used" in lines
    write_zip(tmp_path / "x.ckpt", arrays("ldm_sd1"))
    assert "a whole model, SD 1.x" in run(capsys, "inspect", "x.ckpt")[1].splitlines()[0]
    size = ["--steps", "1", "-W", "64", "-H", "64", "--scheduler", "ddim"]
    code, out, err = run(capsys, "trace", "a", "-m", path, *size, "--at", "unet.conv_in", "-o", "t.safetensors")
    assert code == 0 and "unet.conv_in" in load_file("t.safetensors"), err
    code, out, _ = run(capsys, "tokens", "a cat", "-m", path)
    assert code == 0 and out
    assert run(capsys, "plot", "schedule", "-m", path, "--steps", "3")[0] == 0
    code, _, err = run(capsys, "a red apple", "-m", path, "--variant", "fp16")
    assert code == 2 and "has no variant" in err
