"""What is refused before any weights are read. The pipeline's own refusals are in test_pipeline.py."""

import logging

import numpy as np
import pytest

from minisd import request
from minisd.config import UNetConfig, VAEConfig
from minisd.errors import ResourceError, UsageError
from minisd.request import Request

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


def test_a_run_that_cannot_fit_says_what_would(monkeypatch):
    monkeypatch.setattr(request, "available_bytes", lambda: 3 * 10**9)
    with pytest.raises(ResourceError, match=r"needs about 21\.\d GB of memory, 3\.0 GB are free") as caught:
        request.check_memory(request.activation_bytes(check(height=2048, width=2048), SD1_VAE, SD1_UNET), check(height=2048, width=2048))
    assert "a size of about" in str(caught.value)


def test_unknown_memory_refuses_nothing(monkeypatch):
    monkeypatch.setattr(request, "available_bytes", lambda: None)
    request.check_memory(10**15, check())
