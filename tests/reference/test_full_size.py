"""Models of official size with random weights, written by diffusers and transformers and read by minisd, against torch in float32.

The exact rungs are within 5e-6 (relative L2), the fast ones, which make pictures, within 1e-5. Takes minutes and, one model at a
time, about 10 GB of memory and 3.5 GB of disk: `pytest -m fullsize`.
"""

import gc
import json
import lzma
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import diffusers  # noqa: E402
import transformers  # noqa: E402

import minisd  # noqa: E402
from minisd import ops, trace  # noqa: E402
from minisd.checkpoint import params_from_state_dict  # noqa: E402
from minisd.config import UNetConfig  # noqa: E402
from tests.models.test_unet import UNET_TABLE  # noqa: E402
from tests.models.test_vae import DECODER_TABLE  # noqa: E402
from tests.numerics import relative_l2  # noqa: E402
from tests.reference.closeness import stream  # noqa: E402

pytestmark = [pytest.mark.reference, pytest.mark.fullsize]

OFFICIAL = json.loads(lzma.decompress((Path(__file__).parents[1] / "golden" / "official_configs.json.xz").read_bytes()))
MODELS = ("stable-diffusion-v1-5", "stable-diffusion-2-1")
TOLERANCE = {"exact": 5e-6, "fast": 1e-5}


@pytest.fixture(autouse=True)
def two_threads_and_no_leftovers(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    shutil.rmtree(tmp_path)  # pytest keeps three runs otherwise: 20 GB
    gc.collect()


def written_by_torch(model, folder: Path, run):
    """What `run(model)` gives in torch; the model is then saved and forgotten, so that only one copy of the weights is in memory."""
    with torch.no_grad():
        results = run(model.eval())
    model.save_pretrained(folder)
    return results


def check(run, theirs, *patterns, truth=None) -> list:
    """Both numerics profiles keep their bounds; the layers that match, as (name, shape).

    truth: the same in float64, asked for where we are farther from torch: on AVX2 torch's own decoder is 6e-6 from it. Then ours keeps its
    bound to the truth, and is as near to it as torch by the project's rule.
    """
    with ops.using(profile="exact"), trace(*patterns) as seen:
        results = {"exact": run()}
    results["fast"] = run()
    for profile, ours in results.items():
        assert ours.dtype == np.float32 and ours.shape == theirs.shape
        if truth is None or relative_l2(ours, theirs) <= TOLERANCE[profile]:
            assert relative_l2(ours, theirs) <= TOLERANCE[profile], profile
        else:
            exact = truth()
            assert relative_l2(ours, exact) <= min(TOLERANCE[profile], 2 * relative_l2(theirs, exact)), profile
    return [(name.partition(".")[2], seen[name].shape) for name in seen]


def draw(*shape) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MODELS)
def test_unet(name, tmp_path):
    config = OFFICIAL[name]["unet"]
    sample, context, t = draw(1, 4, 64, 64), draw(1, 77, config["cross_attention_dim"]), 927.6429
    theirs = written_by_torch(
        diffusers.UNet2DConditionModel.from_config(config), tmp_path, lambda unet: unet(sample, t, context).sample.numpy()
    )
    unet = minisd.UNet2DConditionModel.from_pretrained(tmp_path)
    patterns = ("unet.conv_in", "unet.down_blocks.?", "unet.mid_block", "unet.up_blocks.?", "unet.conv_out")
    shapes = check(lambda: unet(sample.numpy(), t, context.numpy()), theirs, *patterns)
    assert shapes == [(layer, (1, *shape[1:])) for layer, shape in UNET_TABLE]


def test_every_layer_of_the_unet_is_as_near_to_float64_as_torch():
    """r = err(ours) / err(torch), each layer on torch's own inputs: never above 2, and at most 1 in the middle.

    All widths and weights are the official ones, and so are the sums over channels; the latents have half the side of those in docs/numerics.md.
    """
    unet = diffusers.UNet2DConditionModel.from_config(OFFICIAL[MODELS[0]]["unet"]).eval()
    sample, context = draw(1, 4, 32, 32), draw(1, 77, 768)
    params, report = params_from_state_dict({n: w.numpy() for n, w in unet.state_dict().items()}, "unet", UNetConfig.from_dict(dict(unet.config)))
    ours = minisd.UNet2DConditionModel(UNetConfig.from_dict(dict(unet.config)), params, report)
    rows = stream(unet, ours, lambda: unet(sample, 500, context), profiles=("exact",))
    ratios = {row.path: row.ratio["exact"] for row in rows}
    assert len(rows) > 500 and max(ratios.values()) <= 2.0, max(ratios.items(), key=lambda item: item[1])
    assert np.median(list(ratios.values())) <= 1.0


@pytest.mark.timeout(1800)  # float64, where torch rounds more than the bound
def test_vae(tmp_path):
    """SD 1.x and 2.x share the architecture; encode and decode at 512×512."""
    picture, latents = draw(1, 3, 512, 512).clamp(-1, 1), draw(1, 4, 64, 64)

    def run(vae):
        return vae.encode(picture).latent_dist.parameters.numpy(), vae.decode(latents).sample.numpy()

    moments, decoded = written_by_torch(diffusers.AutoencoderKL.from_config(OFFICIAL[MODELS[0]]["vae"]), tmp_path, run)
    vae = minisd.AutoencoderKL.from_pretrained(tmp_path)

    def encode():
        posterior = vae.encode(picture.numpy())
        return np.concatenate([posterior.mean, posterior.logvar], axis=1)

    shapes = check(encode, moments, "vae.encoder.down_blocks.?")
    assert [shape for _, shape in shapes] == [(1, 128, 256, 256), (1, 256, 128, 128), (1, 512, 64, 64), (1, 512, 64, 64)]
    shapes = check(lambda: vae.decode(latents.numpy()), decoded, "vae.decoder.conv_in", "vae.decoder.mid_block", "vae.decoder.up_blocks.?",
                   truth=lambda: vae.astype("float64").decode(latents.numpy().astype("float64")))  # fmt: skip
    assert [shape for _, shape in shapes] == DECODER_TABLE


@pytest.mark.parametrize("name", MODELS)
def test_text_encoder(name, tmp_path):
    config = transformers.CLIPTextConfig.from_dict(OFFICIAL[name]["text_encoder"])
    ids = torch.randint(config.vocab_size, (2, 77), generator=torch.Generator().manual_seed(1))

    def run(clip):
        output = clip(ids, output_hidden_states=True)
        return [x.numpy() for x in (output.last_hidden_state, *output.hidden_states)]

    theirs = written_by_torch(transformers.CLIPTextModel(config), tmp_path, run)
    clip = minisd.CLIPTextModel.from_pretrained(tmp_path)
    states = clip.hidden_states(ids.numpy())
    assert len(states) == len(theirs) - 1 == config.num_hidden_layers + 1
    check(lambda: clip(ids.numpy()), theirs[0], "text_encoder.text_model.final_layer_norm")
    for i, (state, expected) in enumerate(zip(states, theirs[1:])):
        assert relative_l2(state, expected) <= TOLERANCE["exact"], f"hidden state {i}"
