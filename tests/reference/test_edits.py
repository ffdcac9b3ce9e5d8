"""Image to image and inpainting, live: the embedded model against diffusers, and the reading of pictures against `VaeImageProcessor`."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from diffusers.image_processor import VaeImageProcessor  # noqa: E402
from PIL import Image  # noqa: E402

from minisd import StableDiffusionPipeline, ops  # noqa: E402
from minisd import schedulers as our_schedulers  # noqa: E402
from minisd.image_input import preprocess_image, preprocess_mask, read_masks, read_pictures, shrink_mask  # noqa: E402
from minisd.img2img import StableDiffusionImg2ImgPipeline  # noqa: E402
from tests.conftest import GOLDEN  # noqa: E402
from tests.edit_cases import CASES, PROMPT, SCHEDULERS, case, mask, model_folder, paint, picture  # noqa: E402
from tests.numerics import assert_faithful  # noqa: E402
from tests.test_pipeline import assert_same_picture, pixels  # noqa: E402
from tools.make_golden_edits import load, paint as paint_with_diffusers  # noqa: E402

pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module", params=["embedded", 4, 9])
def model(request, tmp_path_factory):
    """(name, ours, {task: diffusers'}) of one model."""
    folder = model_folder(request.param, tmp_path_factory.mktemp("model"))
    tasks = ("inpaint",) if request.param == 9 else ("img2img", "inpaint")
    return request.param, StableDiffusionPipeline.from_pretrained(folder), {task: load(task, folder) for task in tasks}


# The embedded model's config, written by DDIM, leaves out what official ones say: PNDM without Runge–Kutta steps.
EMBEDDED = {f"{task}-{s}": case(task, s, 10, strength=0.6) for task in ("img2img", "inpaint") for s in SCHEDULERS}


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_embedded_model(model, name):
    which, ours, theirs = model
    if which != "embedded":
        pytest.skip("for the embedded model")
    scheduler = getattr(diffusers, EMBEDDED[name]["scheduler"])
    skip = {"skip_prk_steps": True} if "PNDM" in name else {}
    pipe = theirs[EMBEDDED[name]["task"]]
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **skip)
    ours.scheduler = getattr(our_schedulers, EMBEDDED[name]["scheduler"]).from_config(ours.scheduler.config, **skip)
    assert_same_picture(paint(ours, EMBEDDED[name]), paint_with_diffusers(pipe, EMBEDDED[name]))


@pytest.mark.parametrize("name", ["img2img-DDIM", "inpaint-LMSDiscrete", "inpaint9-PNDM"])
def test_golden_pictures_are_what_diffusers_paints_today(model, name):
    if CASES[name]["channels"] != model[0]:
        pytest.skip("another model")
    with np.load(GOLDEN / "edits.npz") as golden:
        assert_same_picture(paint_with_diffusers(model[2][CASES[name]["task"]], CASES[name]), golden[name])


VARIED = {
    "strengths": [case("img2img", "LMSDiscreteScheduler", 10, strength=s) for s in (0.1, 0.35, 1.0)],
    "pndm at the doubled timestep": [case("img2img", "PNDMScheduler", 10, strength=s) for s in (0.9, 0.8)],
    "latents": [case("img2img", "DDIMScheduler", 4, strength=0.5)],
    "two pictures, two masks, eta": [case("inpaint", "DDIMScheduler", 4, strength=0.8, eta=1.0, pictures=2, prompt=[PROMPT, "an apple"], seed=(3, 4))],
}


@pytest.mark.parametrize("name", VARIED)
def test_what_is_not_recorded(model, name):
    ours, reference = [], []
    for one in VARIED[name]:
        if one["task"] not in model[2]:
            pytest.skip("no image to image with nine channels")
        if model[0] == "embedded" and "PNDM" in one["scheduler"]:
            pytest.skip("diffusers runs Runge–Kutta steps from the middle, minisd refuses them")
        theirs = one
        if name == "latents":
            z = np.random.default_rng(0).standard_normal((1, 4, 16, 16)).astype("float32")
            one, theirs = ({**one, "options": {**one["options"], "image": x}} for x in (z, torch.from_numpy(z)))
        ours.append(paint(model[1], one))
        reference.append(paint_with_diffusers(model[2][one["task"]], theirs))
    assert_same_picture(pixels(ours), pixels(reference))


def test_latents_after_a_run_are_as_near_to_the_truth_as_torch(model):
    name, ours, theirs = model
    if "img2img" not in theirs:
        pytest.skip("no image to image with nine channels")
    ours = StableDiffusionImg2ImgPipeline.from_pipe(ours)
    ours.scheduler = our_schedulers.DDIMScheduler.from_config(ours.scheduler.config)
    theirs["img2img"].scheduler = diffusers.DDIMScheduler.from_config(theirs["img2img"].scheduler.config)
    z, n = np.random.default_rng(0).standard_normal((2, 1, 4, 16, 16)).astype("float32")
    options = dict(num_inference_steps=8, strength=0.5, output_type="latent")

    def run(pipe, dtype):
        pipe.draw_noise = lambda *args: n.astype(dtype)
        return pipe(PROMPT, image=z.astype(dtype), **options).images

    truth = run(ours.astype("float64"), "float64")
    with ops.using(profile="exact"):
        mine = run(ours, "float32")
    draw = diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img
    randn, draw.randn_tensor = draw.randn_tensor, lambda *a, **k: torch.from_numpy(n)
    try:
        plain = theirs["img2img"](PROMPT, image=torch.from_numpy(z), **options).images.numpy()
    finally:
        draw.randn_tensor = randn
    assert_faithful(mine, truth, plain, name=str(name))


# ----- pictures and masks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(None, None), (64, 96), (40, 40), (128, 136)])
@pytest.mark.parametrize("kind", ["pil", "array", "batch"])
def test_pictures_are_read_as_diffusers_reads_them(size, kind):
    image = {"pil": picture(), "array": np.asarray(picture()) / 255.0, "batch": np.stack([np.asarray(picture(seed=i)) / 255.0 for i in (0, 1)])}[kind]
    height, width = size if size[0] else (64, 72)
    theirs = VaeImageProcessor(vae_scale_factor=8).preprocess(image, *size).numpy()
    ours = preprocess_image(read_pictures(image), height, width)
    assert ours.shape == theirs.shape
    if kind == "pil":
        np.testing.assert_array_equal(ours, theirs)
    else:
        np.testing.assert_allclose(ours, theirs, atol=2.5e-7)


@pytest.mark.parametrize("size", [(64, 96), (40, 40), (128, 136)])
@pytest.mark.parametrize("mode", ["L", "RGB", "1", "P", "array", "stack"])
def test_masks_are_read_as_diffusers_reads_them(size, mode):
    image = {"array": np.asarray(mask()) / 255.0, "stack": np.stack([np.asarray(mask()) / 255.0] * 2)}.get(mode)
    image = mask(mode=mode) if image is None else image
    processor = VaeImageProcessor(vae_scale_factor=8, do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    theirs = processor.preprocess(image, *size)
    ours = preprocess_mask(read_masks(image), *size)
    np.testing.assert_array_equal(ours, theirs.numpy())
    small = torch.nn.functional.interpolate(theirs, size=(size[0] // 8, size[1] // 8))
    np.testing.assert_array_equal(shrink_mask(ours, size[0] // 8, size[1] // 8), small.numpy())


def test_nearest_is_torchs_for_every_size():
    from minisd.image_input import nearest

    for old in range(1, 70):
        x = torch.arange(old, dtype=torch.float32)[None, None]
        for new in range(1, 70):
            theirs = torch.nn.functional.interpolate(x, size=new)[0, 0].numpy()
            np.testing.assert_array_equal(nearest(np.arange(old, dtype=np.float32), new, 0), theirs)


def test_where_diffusers_goes_wrong_we_do_not():
    """Transparent pictures are taken for latents there, and 16 bits are cut off; here both are read for what they are."""
    clear = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    assert VaeImageProcessor().preprocess(clear).shape[1] == 4
    assert (preprocess_image(read_pictures(clear), 64, 64) == 1.0).all()
