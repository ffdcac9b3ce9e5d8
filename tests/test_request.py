"""What is refused before any weights are read. The pipeline's own refusals are in test_pipeline.py."""

import dataclasses
import logging
import re

import numpy as np
import pytest

from minisd import request
from minisd.config import UNetConfig, VAEConfig
from minisd.errors import ResourceError, UsageError
from minisd.request import Request, first_index

SD1_UNET = UNetConfig(cross_attention_dim=768)
SD1_VAE = VAEConfig(
    block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2
)


def check(**options) -> Request:
    return Request.check(SD1_UNET, SD1_VAE, **{"prompt": "a fox", **options})


def test_the_default_size_is_the_model_s():
    assert (check().height, check().width) == (512, 512)
    wide = UNetConfig(cross_attention_dim=768, sample_size=(64, 96))
    r = Request.check(wide, SD1_VAE, prompt="a fox")
    assert (r.height, r.width) == (512, 768)


def test_numpy_integers_are_integers():
    assert check(num_inference_steps=np.int64(5), height=np.int32(64)).num_inference_steps == 5


def test_one_negative_prompt_serves_all():
    assert check(prompt=["a", "b"], negative_prompt="x").negative_prompts == ["x", "x"]
    assert check(prompt=["a", "b"]).negative_prompts == ["", ""]


@pytest.mark.parametrize("size, near", [(60, "use 56 or 64"), (513, "use 512 or 520"), (4, "use 8")])
def test_sizes_name_their_neighbours(size, near):
    with pytest.raises(UsageError, match=near):
        check(width=size)


@pytest.mark.parametrize("scale, guided", [(7.5, True), (1.0, False), (0.0, False), (1.01, True), (-1.0, True)])
def test_guidance_above_one_guides(scale, guided):
    assert check(guidance_scale=scale).guided is guided


def test_guidance_up_to_one_is_said(caplog):
    with caplog.at_level(logging.INFO, "minisd"):
        check(guidance_scale=0.5)
    assert "without classifier-free guidance" in caplog.text


@pytest.mark.parametrize("scale", ["7.5", None, True, float("nan")])
def test_guidance_must_be_a_number(scale):
    with pytest.raises(UsageError, match="guidance_scale"):
        check(guidance_scale=scale)


@pytest.mark.parametrize("seed", [0, 2**32, 2**64 - 1])
def test_seeds_of_torch(seed):
    assert request.check_seed(seed) == seed


def test_memory_estimate_grows_with_the_picture():
    small, large = (request.activation_bytes(check(height=n, width=n), SD1_VAE, SD1_UNET) for n in (512, 1024))
    assert large == 4 * small
    assert 1.3e9 <= small <= 1.6e9  # measured: 1.30 GB above the weights


def test_two_passes_hold_half_of_the_unet():
    shallow = dataclasses.replace(SD1_VAE, block_out_channels=(1, 1, 1, 1))  # so that the UNet is the widest place
    twice, once = (request.activation_bytes(check(), shallow, SD1_UNET, two_passes=two_passes) for two_passes in (False, True))
    assert twice == 2 * once


def test_what_fits_on_a_gpu_is_said_of_the_gpu():
    with pytest.raises(ResourceError, match=r"of memory on cuda:1, 1\.0 GB are free") as caught:
        request.check_memory(3 * 10**9, check(), device="cuda:1", available=10**9)
    assert "other programs on the GPU" in caught.value.fix


def test_a_run_that_cannot_fit_says_what_would(monkeypatch):
    monkeypatch.setattr(request, "available_bytes", lambda: 3 * 10**9)
    with pytest.raises(ResourceError, match=r"needs about 21\.\d GB of memory, 3\.0 GB are free") as caught:
        request.check_memory(request.activation_bytes(check(height=2048, width=2048), SD1_VAE, SD1_UNET), check(height=2048, width=2048))
    assert "a size of about" in str(caught.value)


def test_unknown_memory_refuses_nothing(monkeypatch):
    monkeypatch.setattr(request, "available_bytes", lambda: None)
    request.check_memory(10**15, check())


@pytest.mark.parametrize(
    "steps, strength, first",
    [(50, 0.8, 10), (50, 1.0, 0), (50, 0.02, 49), (50, 0.58, 22), (25, 0.6, 10), (1, 1, 0), (30, 0.5, 15), (3, np.float32(0.5), 2)],
)
def test_strength_runs_the_last_steps(steps, strength, first):
    """N − int(N·s); 0.58 · 50 is 28.999… in floats, so 28 steps are run, as in diffusers."""
    assert first_index(steps, steps, strength) == first


def test_start_step_is_an_index():
    assert first_index(50, 51, start_step=50) == 50 and first_index(50, 50, start_step=0) == 0


@pytest.mark.parametrize(
    "options, message",
    [(dict(strength=0.5, start_step=1), "either"), (dict(), "strength is None"), (dict(strength=True), "strength is True"), (dict(strength=-0.1), "-0.1"),
     (dict(strength=0.01), "at least 0.02"), (dict(start_step=50), "0 … 49"), (dict(start_step=1.5), "start_step is 1.5")],
)  # fmt: skip
def test_beginnings_that_cannot_be_meant(options, message):
    with pytest.raises(UsageError, match=message):
        first_index(50, 50, **options)


def test_the_least_strength_that_is_named_is_a_step():
    for steps in range(1, 1001):
        with pytest.raises(UsageError) as caught:
            first_index(steps, steps, 0.0)
        assert first_index(steps, steps, float(re.search(r"least ([\d.]+)", caught.value.fix)[1])) < steps


def test_nine_channels_are_for_inpainting():
    nine = UNetConfig(cross_attention_dim=768, in_channels=9)
    assert Request.check(nine, SD1_VAE, prompt="a fox", inpaint=True).height == 512
    with pytest.raises(UsageError, match="-i and --mask"):
        Request.check(nine, SD1_VAE, prompt="a fox")
    for inpaint in (False, True):
        with pytest.raises(UsageError, match="8 a pix2pix model"):
            Request.check(UNetConfig(cross_attention_dim=768, in_channels=8), SD1_VAE, prompt="a fox", inpaint=inpaint)


def test_pictures_need_memory_for_the_encoder():
    r = check()
    without, one, eight = (request.activation_bytes(r, SD1_VAE, SD1_UNET, freed=10**10, pictures=n) for n in (0, 1, 8))
    assert without <= one < eight
