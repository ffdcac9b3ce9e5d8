"""Pipelines from a folder, from one another, and in another dtype. Single files: `checkpoint/test_single_file.py`; GPUs: `test_pipeline_gpu.py`."""

import numpy as np
import pytest

from minisd import DDIMScheduler, Generator, LMSDiscreteScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from minisd.errors import UsageError
from minisd.loading import load_scheduler, load_tokenizer
from tests.numerics import relative_l2
from tests.tiny_folder import write_tiny_sd2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_sd2(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pipe(folder):
    return StableDiffusionPipeline.from_pretrained(folder)


def test_a_folder_says_what_its_parts_are(pipe, folder):
    assert type(pipe.scheduler) is type(load_scheduler(folder)) and pipe.name == str(folder)
    assert pipe.tokenizer("a fox").input_ids.tolist() == load_tokenizer(folder)("a fox").input_ids.tolist()
    assert (pipe.device, pipe.dtype, pipe.host_dtype) == ("cpu", np.float32, np.float32)


def test_another_scheduler_takes_the_place_of_the_models_own(folder):
    own = LMSDiscreteScheduler()
    assert StableDiffusionPipeline.from_pretrained(folder, scheduler=own).scheduler is own


def test_a_pipeline_from_another_one_shares_its_parts(pipe):
    other = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    assert type(other) is StableDiffusionImg2ImgPipeline and other.name == pipe.name
    assert all(getattr(other, name) is part for name, part in pipe.components.items()) and len(pipe.components) == 5


def test_float64_is_the_oracle(pipe):
    noise = Generator(32).randn((1, 4, 8, 12))

    def latents(pipe):
        return pipe("a fox", latents=noise, num_inference_steps=4, height=32, width=48, output_type="latent").images

    truth = latents(pipe.astype("float64"))
    assert truth.dtype == np.float64 and 0.0 < relative_l2(latents(pipe), truth) <= 1e-4


def test_another_dtype_has_a_scheduler_of_its_own(pipe):
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    wide = pipe.astype("float64")
    assert wide.scheduler is not pipe.scheduler and wide.scheduler.config == pipe.scheduler.config and pipe.dtype == np.float32


@pytest.mark.parametrize("options, message", [(dict(device="tpu"), "no device 'tpu'"), (dict(dtype="float16"), "float16 cannot be computed on the CPU"),
                                              (dict(dtype="int8"), "'int8' is not known")])  # fmt: skip
def test_wrong_words_are_refused_before_anything_is_read(options, message, tmp_path):
    for load in (StableDiffusionPipeline.from_pretrained, StableDiffusionPipeline.from_single_file):
        with pytest.raises(UsageError, match=message):
            load(tmp_path / "nothing here", **options)


def test_a_single_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="there is no file"):
        StableDiffusionPipeline.from_single_file(tmp_path / "v1-5.safetensors")
