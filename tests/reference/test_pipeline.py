"""Same seed, same picture, live: the golden cases again on this machine's torch, and combinations that are not recorded."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from minisd import Generator, StableDiffusionPipeline, ops, schedulers  # noqa: E402
from tests.conftest import GOLDEN  # noqa: E402
from tests.numerics import assert_faithful, relative_l2  # noqa: E402
from tests.picture_cases import CASES, PROMPT, model_folder  # noqa: E402
from tests.test_pipeline import assert_same_picture, paint, pixels  # noqa: E402
from tools.make_golden_pictures import paint as paint_with_diffusers  # noqa: E402

pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module", params=["embedded", "tiny_sd2"])
def pair(request, tmp_path_factory):
    """(name, ours, diffusers') of one model."""
    folder = model_folder(request.param, tmp_path_factory.mktemp("model"))
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    return request.param, StableDiffusionPipeline.from_pretrained(folder), theirs


def use(pair, scheduler: str, **changes):
    _, ours, theirs = pair
    ours.scheduler = getattr(schedulers, scheduler).from_config(ours.scheduler.config, **changes)
    theirs.scheduler = getattr(diffusers, scheduler).from_config(theirs.scheduler.config, **changes)


def test_golden_pictures_are_what_diffusers_paints_today(pair):
    name, _, theirs = pair
    with np.load(GOLDEN / "pictures.npz") as golden:
        cases = [f"{name}-{scheduler}-10" for scheduler in ("DDIM", "PNDM")]
        assert_same_picture(pixels(paint_with_diffusers(theirs, CASES[case]) for case in cases), pixels(golden[case] for case in cases))


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "LMSDiscreteScheduler", "PNDMScheduler"])
def test_every_spacing(pair, scheduler):
    ours, theirs = [], []
    for spacing in ("leading", "trailing", "linspace"):
        use(pair, scheduler, timestep_spacing=spacing)
        case = dict(scheduler=scheduler, prompt=PROMPT, steps=6, seed=5, options={"guidance_scale": 2.0})
        ours.append(paint(pair[1], case))
        theirs.append(paint_with_diffusers(pair[2], case))
    assert_same_picture(pixels(ours), pixels(theirs))


def test_generators_of_a_batch(pair):
    use(pair, "DDIMScheduler")
    options = dict(num_inference_steps=5, eta=0.6, output_type="latent")
    theirs = pair[2]([PROMPT] * 2, generator=[torch.Generator().manual_seed(s) for s in (1, 2)], **options).images.numpy()
    ours = pair[1]([PROMPT] * 2, generator=[Generator(1), Generator(2)], **options).images
    assert relative_l2(ours, theirs) <= 1e-5


def test_callbacks_see_and_change_the_same(pair):
    use(pair, "LMSDiscreteScheduler")
    seen = {"ours": [], "theirs": []}

    def halve(who):
        def callback(pipe, index, t, tensors):
            seen[who].append((index, float(t)))
            return {"latents": tensors["latents"] * 0.5} if index == 2 else {}

        return callback

    options = dict(num_inference_steps=5, output_type="latent")
    theirs = pair[2](PROMPT, generator=torch.manual_seed(3), callback_on_step_end=halve("theirs"), **options).images.numpy()
    ours = pair[1](PROMPT, seed=3, callback_on_step_end=halve("ours"), **options).images
    assert relative_l2(ours, theirs) <= 1e-5
    np.testing.assert_allclose(seen["ours"], seen["theirs"], rtol=1e-6)


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "LMSDiscreteScheduler", "PNDMScheduler"])
def test_latents_after_a_run_are_as_near_to_the_truth_as_torch(pair, scheduler):
    use(pair, scheduler)
    noise = torch.randn((1, 4, 16, 16), generator=torch.manual_seed(32))
    options = dict(num_inference_steps=8, output_type="latent")
    truth = pair[1].astype("float64")(PROMPT, latents=noise.numpy(), **options).images
    plain = pair[2](PROMPT, latents=noise, **options).images.numpy()
    with ops.using(profile="exact"):
        ours = pair[1](PROMPT, latents=noise.numpy(), **options).images
    assert_faithful(ours, truth, plain, name=scheduler)
