"""Loading components out of folders that are right, odd, broken or hostile."""

import json
import logging
import shutil

import numpy as np
import pytest

from minisd.checkpoint import load_component, read_component_config, read_json, read_model_index
from minisd.config import CLIPTextConfig, UNetConfig, VAEConfig
from minisd.errors import ModelFileError
from tests.checkpoint.synthetic import (
    CONFIGS, MODEL_INDEX, make_weights, official, old_vae_names, safetensors_bytes, to_hub_cache, write_component, write_pipeline,
)  # fmt: skip

COMPONENTS = ("unet", "vae", "text_encoder")


def same(component, name: str) -> bool:
    loaded, weights = dict(component.params.items()), make_weights(name)
    return loaded.keys() == weights.keys() and all(np.array_equal(loaded[key], w) for key, w in weights.items())


def refused(function, *args, **options) -> ModelFileError:
    with pytest.raises(ModelFileError) as caught:
        function(*args, **options)
    error = caught.value
    assert type(error) is ModelFileError and error.what and error.why and error.fix
    return error


# ----- loading -------------------------------------------------------------------------------------------------------------


def test_a_folder_like_sd_1_4(tmp_path, caplog):
    folder = write_pipeline(tmp_path)
    assert read_model_index(folder)["scheduler"] == "PNDMScheduler"
    with caplog.at_level(logging.INFO, logger="minisd"):
        loaded = {name: load_component(folder, name) for name in COMPONENTS}
    assert all(same(component, name) for name, component in loaded.items())
    assert [type(component.config) for component in loaded.values()] == [UNetConfig, VAEConfig, CLIPTextConfig]
    assert [component.params.path for component in loaded.values()] == list(COMPONENTS)
    assert loaded["vae"].report.files == ["diffusion_pytorch_model.safetensors"] and loaded[
        "text_encoder"
    ].report.files == ["model.safetensors"]
    assert [len(names) for names in loaded["vae"].report.renamed.values()] == [16]
    assert [record.message.split(":")[0] for record in caplog.records] == list(COMPONENTS)  # one line each: which file


@pytest.mark.parametrize("component", COMPONENTS)
def test_the_pipelines_folder_the_components_own_or_a_subfolder(tmp_path, component):
    folder = write_pipeline(tmp_path)
    for where, options in (
        (folder, {}),
        (str(folder), {}),
        (folder / component, {}),
        (folder, {"subfolder": component}),
    ):
        assert same(load_component(where, component, **options), component)
        assert read_component_config(where, component, **options) == load_component(where, component).config
    shutil.move(folder / component, folder / "other_name")
    assert same(load_component(folder, component, subfolder="other_name"), component)


def test_float64(tmp_path):
    loaded = load_component(write_pipeline(tmp_path), "unet", dtype="float64")
    assert {w.dtype for _, w in loaded.params.items()} == {np.dtype("float64")} and same(loaded, "unet")


def test_no_such_component(tmp_path):
    error = refused(load_component, tmp_path, "unet")
    assert error.what == f"{tmp_path} holds no unet"
    assert (
        f"there is no {tmp_path / 'unet' / 'config.json'} nor {tmp_path / 'config.json'}" in error.why
        and "holds nothing" in error.why
    )
    write_pipeline(tmp_path)
    error = refused(load_component, tmp_path, "unet", subfolder="unett")
    assert "unett" in error.why and "model_index.json" in error.why


def test_the_folder_of_another_component(tmp_path):
    folder = write_pipeline(tmp_path)
    error = refused(load_component, folder / "vae", "unet")
    assert "describes no unet" in error.what and "AutoencoderKL" in error.why
    assert '["CLIPTextModel"]' in refused(load_component, folder / "text_encoder", "vae").why
    write_component(folder / "text_encoder", "text_encoder", architectures=["CLIPTextModelWithProjection"])
    assert same(load_component(folder, "text_encoder"), "text_encoder")
    write_component(folder / "vae", "vae", _class_name=7)
    assert "the config of [7]" in refused(load_component, folder, "vae").why
    config = {key: value for key, value in CONFIGS["vae"].items() if key != "_class_name"}
    (folder / "vae" / "config.json").write_text(json.dumps(config))
    assert same(load_component(folder, "vae"), "vae")  # a config that does not say what it is of


def test_config_and_weights_that_contradict_each_other(tmp_path):
    write_component(tmp_path, "unet", in_channels=9)
    error = refused(load_component, tmp_path, "unet")
    assert (
        error.why == "config.json says in_channels = 9, the weights say 4"
        and str(tmp_path / "diffusion_pytorch_model.safetensors") in error.what
    )
    write_component(tmp_path, "unet", attention_head_dim=3)
    assert "8 channels cannot be cut into 3 heads" in refused(load_component, tmp_path, "unet").what


# ----- variants ------------------------------------------------------------------------------------------------------------


def half(component: str) -> bytes:
    return safetensors_bytes(make_weights(component), "F16")


def test_variants(tmp_path, caplog):
    folder = write_pipeline(tmp_path)
    for component in ("unet", "vae"):
        write_component(
            folder / component, component, half(component), variant=".fp16"
        )  # the VAE with new names beside one with old
    for component in ("unet", "vae"):
        assert load_component(folder, component).report.source_dtypes.keys() == {"F32"}
        loaded = load_component(folder, component, variant="fp16")
        assert loaded.report.source_dtypes.keys() == {"F16"} and loaded.report.files == [
            "diffusion_pytorch_model.fp16.safetensors"
        ]
    assert not loaded.report.renamed and not caplog.records
    loaded = load_component(folder, "text_encoder", variant="fp16")  # the others have it
    assert loaded.report.files == ["model.safetensors"]
    assert [record.levelname for record in caplog.records] == [
        "WARNING"
    ] and "model.safetensors beside fp16 files" in caplog.text
    assert "no variant 'fp16'" in refused(load_component, folder / "text_encoder", "text_encoder", variant="fp16").what
    assert "no variant 'bf16'" in refused(load_component, folder, "unet", variant="bf16").what


def test_fp16_alone_is_read_with_one_line(tmp_path, caplog):
    write_component(tmp_path, "unet", half("unet"), variant=".fp16")
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"PK\x03\x04")
    assert load_component(tmp_path, "unet").report.cast == {"F16": len(make_weights("unet"))}
    assert [record.message for record in caplog.records] == [
        "unet: there is no full-precision file; reading the variant fp16"
    ]


def test_only_a_pickle(tmp_path):
    path = write_component(tmp_path, "text_encoder")
    path.rename(tmp_path / "pytorch_model.bin")
    error = refused(load_component, tmp_path, "text_encoder")
    assert (
        "only as a pickle: pytorch_model.bin" in error.what
        and 'save_file({name: w.contiguous() for name, w in weights.items()}, "model.sa' in error.fix
    )


# ----- shards --------------------------------------------------------------------------------------------------------------


def write_shards(folder, *, twice: bool = False) -> list:
    path = write_component(folder, "vae")
    weights = list(old_vae_names(make_weights("vae")).items())
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name, part in zip(names, (weights[:50], weights[49 if twice else 50 :])):
        (folder / name).write_bytes(safetensors_bytes(dict(part), residue=5))
    index = {"metadata": {"total_size": 1}, "weight_map": {key: names[i >= 50] for i, (key, _) in enumerate(weights)}}
    path.with_name(path.name + ".index.json").write_text(json.dumps(index))
    path.unlink()
    return names


def test_shards(tmp_path):
    names = write_shards(tmp_path)
    loaded = load_component(tmp_path, "vae")
    assert same(loaded, "vae") and loaded.report.files == names
    (tmp_path / names[1]).unlink()
    assert f"{names[1]} cannot be read" in refused(load_component, tmp_path, "vae").what


def test_a_tensor_in_two_shards(tmp_path):
    names = write_shards(tmp_path, twice=True)
    error = refused(load_component, tmp_path, "vae")
    assert "two tensors for" in error.what and names[0] in error.why and names[1] in error.why


@pytest.mark.parametrize(
    "weight_map", [None, {}, [], {"a": 3}, {"a": "../x.safetensors"}, {"a": "/etc/passwd"}, {"a": "pytorch_model.bin"}]
)
def test_a_broken_index(tmp_path, weight_map):
    write_shards(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert "weight_map" in refused(load_component, tmp_path, "vae").why


# ----- links ---------------------------------------------------------------------------------------------------------------


def test_links_may_not_lead_out_of_the_folder(tmp_path):
    outside = write_component(tmp_path / "elsewhere", "unet")
    folder = write_pipeline(tmp_path / "model")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.symlink_to(outside)
    assert "leads out of the model's folder" in refused(load_component, folder, "unet").what
    assert "leads out" in refused(read_model_index, folder).what

    shutil.rmtree(folder / "unet")
    (folder / "unet").symlink_to(tmp_path / "elsewhere")
    error = refused(load_component, folder, "unet")
    assert str(tmp_path / "elsewhere") in error.why and "copy" in error.fix
    assert "leads out" in refused(load_component, folder, "vae", subfolder="../elsewhere").what
    (folder / "vae" / "config.json").unlink()
    (folder / "vae" / "config.json").symlink_to("/etc/hostname")
    assert "leads out" in refused(load_component, folder, "vae").what


def test_blobs_are_allowed_in_the_hubs_cache_only(tmp_path):
    folder = write_pipeline(tmp_path / "models" / "mine")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    (tmp_path / "blobs").mkdir()
    weights.rename(tmp_path / "blobs" / "0")
    weights.symlink_to(tmp_path / "blobs" / "0")
    assert "leads out" in refused(load_component, folder, "unet").what


def test_links_inside_the_folder_and_a_linked_folder_are_fine(tmp_path):
    folder = write_pipeline(tmp_path / "model")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(folder / "unet.bytes")
    weights.symlink_to("../unet.bytes")
    (tmp_path / "link").symlink_to(folder)
    assert same(load_component(tmp_path / "link", "unet"), "unet") and read_model_index(tmp_path / "link")


def test_links_to_the_blobs_of_the_same_model_in_the_hubs_cache(tmp_path):
    folder = write_pipeline(tmp_path / "model")
    snapshot = to_hub_cache(folder, tmp_path / "hub")
    other = to_hub_cache(folder, tmp_path / "hub", repo="other--model")
    assert (
        read_model_index(snapshot)
        and same(load_component(snapshot, "unet"), "unet")
        and same(load_component(snapshot / "vae", "vae"), "vae")
    )
    weights = snapshot / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.symlink_to((other / "unet" / "diffusion_pytorch_model.safetensors").resolve())
    assert "leads out" in refused(load_component, snapshot, "unet").what


# ----- JSON ----------------------------------------------------------------------------------------------------------------

BROKEN_JSON = {
    "": "no JSON",
    "{": "no JSON",
    "<!DOCTYPE html>": "no JSON",
    "version https://git-lfs.github.com/spec/v1": "no JSON",
    '{"a": "\ud83d"}': "no JSON",
    "[1, 2]": "holds a list",
    "null": "holds a NoneType",
    "[" * 100_000: "nested too deeply",
    '{"a": ' + "9" * 5000 + "}": "no JSON",
    '{"a": "' + "x" * 1_000_001 + '"}': "more than 1,000,000 bytes",
}


@pytest.mark.parametrize("text", BROKEN_JSON, ids=range(len(BROKEN_JSON)))
def test_broken_json(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    error = refused(read_json, path)
    assert str(path) in error.what and BROKEN_JSON[text] in error.why
    assert len(str(error)) < 1000


def test_json_that_is_fine(tmp_path):
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"a": [1, null]}\n')
    assert read_json(tmp_path / "x.json") == {"a": [1, None]}
    assert "No such file" in refused(read_json, tmp_path / "y.json").why
    assert "cannot be read" in refused(read_json, tmp_path).what


# ----- model_index.json ----------------------------------------------------------------------------------------------------


def index(tmp_path, **changes) -> dict:
    (tmp_path / "model_index.json").write_text(json.dumps({**MODEL_INDEX, **changes}))
    return read_model_index(tmp_path)


def test_official_model_indexes(tmp_path):
    indexes = official("model_indexes")
    assert len(indexes) == 9
    for entry in indexes:
        (tmp_path / "model_index.json").write_text(json.dumps(entry))
        parts = read_model_index(tmp_path)
        assert parts["unet"] == "UNet2DConditionModel" and parts["_class_name"] == entry["_class_name"]
        assert parts.keys() == {"_class_name", "unet", "vae", "text_encoder", "tokenizer", "scheduler"}


HOSTILE = {
    "code": {"unet": ["os", "system"]},
    "code in a part that is ignored": {"safety_checker": ["os", "system"]},
    "a module of the folder": {"unet": ["my_unet", "UNet2DConditionModel"]},
    "a path as library": {"vae": ["../../evil", "AutoencoderKL"]},
    "a path as class": {"scheduler": ["diffusers", "../../evil"]},
    "a dotted class": {"scheduler": ["diffusers", "os.system"]},
    "an object": {"vae": {"__reduce__": 1}},
    "three entries": {"vae": ["diffusers", "AutoencoderKL", "x"]},
    "a nested list": {"vae": [["diffusers"], "AutoencoderKL"]},
    "another class": {"unet": ["diffusers", "UNet3DConditionModel"]},
    "a path as name": {"../x": ["diffusers", "AutoencoderKL"]},
    "an absolute path as name": {"/etc/passwd": ["diffusers", "AutoencoderKL"]},
    "a control character as name": {"vae\x00": ["diffusers", "AutoencoderKL"]},
    "an unknown part": {"controlnet": ["diffusers", "ControlNetModel"]},
    "a missing part": {"tokenizer": [None, None]},
    "a custom pipeline": {"_class_name": ["my_pipeline", "MyPipeline"]},
    "another pipeline": {"_class_name": "StableDiffusionXLPipeline"},
    "no pipeline": {"_class_name": None},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_model_indexes(tmp_path, case):
    error = refused(index, tmp_path, **HOSTILE[case])
    assert str(tmp_path / "model_index.json") in error.what and "\x00" not in str(error)


def test_harmless_additions_to_the_model_index(tmp_path):
    parts = index(
        tmp_path,
        requires_safety_checker=True,
        image_encoder=[None, None],
        controlnet=[None, None],
        _name_or_path="/home/x",
        note="a",
    )
    assert parts["vae"] == "AutoencoderKL" and "image_encoder" not in parts


def test_a_folder_that_is_no_pipeline(tmp_path):
    assert "holds nothing" in refused(read_model_index, tmp_path).why
    write_component(tmp_path, "unet")
    assert "single component" in refused(read_model_index, tmp_path).why
    assert "holds nothing" in refused(read_model_index, tmp_path / "absent").why
