"""Single-file checkpoints beside diffusers: its own conversions of the same file, and the picture of its own `from_single_file`."""

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from diffusers.loaders import single_file_utils as theirs  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from minisd import DDIMScheduler, StableDiffusionPipeline  # noqa: E402
from minisd.checkpoint import load_component, open_single_file  # noqa: E402
from minisd.checkpoint.families import FAMILIES  # noqa: E402
from tests.checkpoint.ldm import LDM, configs, put_tokenizer, write_folder, write_single_file  # noqa: E402
from tests.numerics import relative_l2  # noqa: E402

pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]


def converted(state: dict, file: str) -> dict:
    """{component: state dict} by diffusers' functions."""
    toy = configs(file)
    if file == "ldm_sd1":
        text = theirs.convert_ldm_clip_checkpoint(state)
    else:
        prefix = "cond_stage_model.model." if file == "ldm_sd2" else "conditioner.embedders.0.model."
        text = theirs.convert_open_clip_checkpoint(SimpleNamespace(config=SimpleNamespace(hidden_size=64)), state, prefix)
    unet = theirs.convert_ldm_unet_checkpoint(dict(state), {"class_embed_type": None, "addition_embed_type": None, **toy["unet"]})
    return {"text_encoder": text, "vae": theirs.convert_ldm_vae_checkpoint(dict(state), toy["vae"]), "unet": unet}


@pytest.mark.parametrize("file", LDM)
def test_the_tensors_are_those_of_diffusers_conversion(tmp_path, file):
    path = write_single_file(tmp_path / "x.safetensors", file)
    for component, expected in converted(load_file(path), file).items():
        # What diffusers converts and its models then leave out: position_ids, the projection, and of SD-Turbo the last layer.
        unused = ("position_ids", "text_projection", ".layers.23.")
        expected = {name: x.numpy() for name, x in expected.items() if not any(part in name for part in unused)}
        found = dict(load_component(path, component).params.leaves())
        assert found.keys() == expected.keys()
        for name, x in found.items():
            assert np.array_equal(x, expected[name]), name


@pytest.mark.parametrize(
    "file, in_channels, family", [("ldm_sd1", 4, "v1"), ("ldm_sd1", 9, "inpainting"), ("ldm_sd2", 4, "v2"), ("ldm_sd2", 9, "inpainting_v2")]
)
def test_the_family_is_the_one_that_diffusers_sees(tmp_path, file, in_channels, family):
    """diffusers looks at the official width 1024 of the prompt's vectors, which is put in here."""
    path = write_single_file(tmp_path / "x.safetensors", file, in_channels=in_channels)
    wide = {name: SimpleNamespace(shape=(1, 1024) if file == "ldm_sd2" and name.endswith("attn2.to_k.weight") else tuple(x.shape))
            for name, x in load_file(path).items()}  # fmt: skip
    assert theirs.infer_diffusers_model_type(wide) == family
    ours = open_single_file(path, "v_prediction" if family == "v2" else None).family
    assert ours is FAMILIES[{"v1": "1", "inpainting": "1 inpainting", "v2": "2 v", "inpainting_v2": "2 inpainting"}[family]]
    assert ours.repository.split("/")[1] == theirs.DIFFUSERS_DEFAULT_PIPELINE_PATHS[family]["pretrained_model_name_or_path"].split("/")[1]


@pytest.mark.parametrize("file, prediction", [("ldm_sd1", "epsilon"), ("ldm_sd2", "v_prediction")])
def test_the_picture_of_diffusers_from_single_file(tmp_path, file, prediction):
    """Its configs come from a folder, as they would from the hub; its weights from the file."""
    settings = dict(_class_name="DDIMScheduler", prediction_type="v_prediction") if prediction == "v_prediction" else {}
    folder = write_folder(tmp_path / "model", file, **settings)
    path = write_single_file(put_tokenizer(tmp_path) / "x.safetensors", file)
    reference = diffusers.StableDiffusionPipeline.from_single_file(str(path), config=str(folder), safety_checker=None, torch_dtype=torch.float32)
    reference.set_progress_bar_config(disable=True)
    options = dict(num_inference_steps=4, height=64, width=64, guidance_scale=5.0, output_type="np")
    expected = reference("a red apple", generator=torch.manual_seed(3), **options).images
    ours = StableDiffusionPipeline.from_single_file(path, prediction_type=prediction)
    assert type(ours.scheduler).__name__ == type(reference.scheduler).__name__
    assert relative_l2(ours("a red apple", seed=3, **options).images, expected) <= 1e-5


def test_turbo_with_a_sampler_of_ours(tmp_path):
    folder = write_folder(tmp_path / "model", "ldm_sd_turbo", _class_name="DDIMScheduler", timestep_spacing="trailing")
    path = write_single_file(put_tokenizer(tmp_path) / "x.safetensors", "ldm_sd_turbo")
    ours = StableDiffusionPipeline.from_single_file(path, scheduler=DDIMScheduler.from_pretrained(path))
    whole = StableDiffusionPipeline.from_pretrained(folder)
    options = dict(num_inference_steps=2, height=64, width=64, guidance_scale=0.0, output_type="np", seed=1)
    np.testing.assert_array_equal(ours("a", **options).images, whole("a", **options).images)
