"""The whole run: same seed, same picture as diffusers; and everything a caller can change or get wrong."""

import logging

import numpy as np
import pytest
from safetensors.numpy import save_file

from minisd import DDIMScheduler, Generator, StableDiffusionPipeline, schedulers
from minisd.errors import NumericError, ResourceError, UsageError
from minisd.loading import load_scheduler
from minisd.pipeline import classifier_free_guidance

from .conftest import GOLDEN
from .numerics import relative_l2
from .picture_cases import CASES, MODELS, PROMPT, model_folder


@pytest.fixture(scope="module")
def pipes(tmp_path_factory) -> dict:
    return {model: StableDiffusionPipeline.from_pretrained(model_folder(model, tmp_path_factory.mktemp(model))) for model in MODELS}


@pytest.fixture
def pipe(pipes):
    pipes["embedded"].scheduler = load_scheduler(model_folder("embedded", None))
    return pipes["embedded"]


def paint(pipe, case: dict) -> np.ndarray:
    pipe.scheduler = getattr(schedulers, case["scheduler"]).from_config(pipe.scheduler.config)
    images = pipe(case["prompt"], num_inference_steps=case["steps"], seed=case["seed"], **case["options"]).images
    return np.stack([np.asarray(image) for image in images])


def assert_same_picture(ours: np.ndarray, reference: np.ndarray):
    """uint8 pictures differ by at most 1, and in at most one pixel of a thousand."""
    assert ours.shape == reference.shape and ours.dtype == reference.dtype == np.uint8
    difference = np.abs(ours.astype(int) - reference.astype(int))
    assert difference.max() <= 1
    assert difference.any(axis=-1).mean() <= 1e-3


def pixels(pictures) -> np.ndarray:
    """All pixels of several pictures in one, for `assert_same_picture`: 64 × 64 allow for four, and torch's own rounding changes as many."""
    return np.concatenate([picture.reshape(1, 1, -1, 3) for picture in pictures], axis=2)


@pytest.mark.parametrize("name", CASES)
def test_same_seed_same_picture(pipes, name):
    with np.load(GOLDEN / "pictures.npz") as golden:
        assert_same_picture(paint(pipes[CASES[name]["model"]], CASES[name]), golden[name])


def test_another_seed_or_prompt_is_another_picture(pipe):
    with np.load(GOLDEN / "pictures.npz") as golden:
        case = CASES["embedded-DDIM-10"]
        for change in ({"seed": 33}, {"prompt": "a cat on a red background"}):
            with pytest.raises(AssertionError):
                assert_same_picture(paint(pipe, {**case, **change}), golden["embedded-DDIM-10"])


# ----- what a caller can change --------------------------------------------------------------------------------------------


def latents(pipe, prompt=PROMPT, **options):
    return pipe(prompt, output_type="latent", **{"num_inference_steps": 4, "seed": 32, **options}).images


def test_two_passes_equal_the_doubled_batch(pipe):
    assert relative_l2(latents(pipe, two_passes=True), latents(pipe)) <= 1e-5


def test_a_batch_with_its_own_seeds_equals_single_runs(pipe):
    batch = latents(pipe, [PROMPT, PROMPT], seed=[32, 33], eta=0.5)
    for row, seed in zip(batch, (32, 33)):
        assert relative_l2(row[None], latents(pipe, seed=seed, eta=0.5)) <= 1e-5


def test_generators_instead_of_seeds(pipe):
    np.testing.assert_array_equal(latents(pipe, seed=None, generator=Generator(32)), latents(pipe))
    batch = latents(pipe, [PROMPT, PROMPT], seed=None, generator=[Generator(32), Generator(33)])
    assert relative_l2(batch[1:], latents(pipe, seed=33)) <= 1e-5


def test_no_seed_is_fresh_noise(pipe):
    assert relative_l2(latents(pipe, seed=None), latents(pipe, seed=None)) > 0.1


def test_given_latents_and_embeddings_equal_the_run_they_come_from(pipe):
    noise = Generator(32).randn((1, 4, 16, 16))
    np.testing.assert_array_equal(latents(pipe, seed=None, latents=noise), latents(pipe))
    cond, uncond = pipe.encode_prompt([PROMPT]), pipe.encode_prompt([""])
    np.testing.assert_array_equal(latents(pipe, None, prompt_embeds=cond, negative_prompt_embeds=uncond), latents(pipe))
    np.testing.assert_array_equal(latents(pipe, None, prompt_embeds=cond), latents(pipe))  # the negative prompt is still ""


def test_output_types_are_the_same_picture(pipe):
    x = latents(pipe)
    unit = pipe.to_images(x, "np")
    assert x.shape == (1, 4, 16, 16) and unit.shape == (1, 64, 64, 3) and 0.0 <= unit.min() and unit.max() <= 1.0
    np.testing.assert_array_equal(np.asarray(pipe.to_images(x)[0]), np.rint(unit[0] * 255).astype("uint8"))


def test_steps_yield_every_step_and_can_be_edited(pipe):
    seen = list(pipe.steps(PROMPT, num_inference_steps=4, seed=32))
    assert [step.index for step in seen] == [0, 1, 2, 3] and [step.t for step in seen] == [751, 501, 251, 1]
    np.testing.assert_array_equal(seen[-1].latents, latents(pipe))
    for step in seen:
        assert step.latents.shape == step.noise_pred.shape == step.pred_original_sample.shape == (1, 4, 16, 16)

    edited = None
    for step in pipe.steps(PROMPT, num_inference_steps=4, seed=32):
        if step.index == 1:
            step.latents = np.zeros_like(step.latents)
        edited = step.latents
    assert relative_l2(edited, latents(pipe)) > 1e-2


@pytest.mark.parametrize("name", schedulers.SCHEDULERS)
def test_every_scheduler_says_what_the_unet_has_in_mind(pipe, name):
    pipe.scheduler = schedulers.SCHEDULERS[name].from_config(pipe.scheduler.config)
    steps = list(pipe.steps(PROMPT, num_inference_steps=8, seed=32))
    assert len(steps) == len(pipe.scheduler.timesteps)
    first, last = (relative_l2(steps[i].pred_original_sample, steps[-1].latents) for i in (0, -2))
    assert last < first  # the picture settles


def test_callback_changes_the_run(pipe):
    seen = []

    def to_zero(pipeline, index, t, tensors):
        seen.append((index, int(t), sorted(tensors)))
        return {"latents": tensors["latents"] * 0} if index == 3 else None

    assert not latents(pipe, callback_on_step_end=to_zero).any()
    assert seen == [(i, t, ["latents", "prompt_embeds"]) for i, t in enumerate((751, 501, 251, 1))]


def by_hand(pipe, change=lambda i, x, context: (x, context), **options):
    """The loop with nothing remembered from one step to the next."""
    scheduler = pipe.scheduler
    scheduler.set_timesteps(4)
    x, context = Generator(32).randn((1, 4, 16, 16)) * scheduler.init_noise_sigma, pipe.encode_prompt(["", PROMPT])
    for i, t in enumerate(scheduler.timesteps):
        noise = pipe.predict_noise(scheduler.scale_model_input(x, t), t, context, 7.5, **options)
        x, context = change(i, scheduler.step(noise, t, x).prev_sample, context)
    return x


@pytest.mark.parametrize("name", schedulers.SCHEDULERS)
@pytest.mark.parametrize("options", [{}, {"two_passes": True}], ids=["one pass", "two passes"])
def test_a_run_remembers_and_gives_the_bits_of_one_that_does_not(pipe, name, options):
    pipe.scheduler = schedulers.SCHEDULERS[name].from_config(pipe.scheduler.config)
    np.testing.assert_array_equal(latents(pipe, **options), by_hand(pipe, **options))


@pytest.mark.parametrize("in_place", [False, True])
def test_a_callback_that_edits_the_prompt_is_heard(pipe, in_place):
    other = pipe.encode_prompt(["", "a cat"])

    def edit(pipeline, index, t, tensors):
        if index != 1:
            return None
        if in_place:
            tensors["prompt_embeds"][...] = other
            return None
        return {"prompt_embeds": other}

    expected = by_hand(pipe, lambda i, x, context: (x, other if i == 1 else context))
    np.testing.assert_array_equal(latents(pipe, callback_on_step_end=edit), expected)
    assert relative_l2(expected, latents(pipe)) > 1e-2


def test_a_lora_that_is_set_between_two_steps_is_used(pipe, tmp_path):
    """On the weights whose products a run remembers; `set_adapters` puts other arrays in their places."""
    draw, pairs = np.random.RandomState(0).standard_normal, {}
    for name, w in pipe.unet.params.items():
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight", "time_emb_proj.weight")):
            module = name.removesuffix(".weight")
            for matrix, shape in (("lora_A", (1, w.shape[1])), ("lora_B", (len(w), 1))):
                pairs[f"unet.{module}.{matrix}.weight"] = (0.5 * draw(shape)).astype("float32")
    save_file(pairs, tmp_path / "lora.safetensors")

    def change(i, *state):
        pipe.set_adapters("lora", (0.0, 1.0, -0.5, 0.3)[i])
        return state

    pipe.load_lora_weights(tmp_path / "lora.safetensors", adapter_name="lora")
    try:
        change(3)
        unchanged = latents(pipe)
        changed = latents(pipe, callback_on_step_end=lambda pipeline, i, t, tensors: change(i) or None)
        np.testing.assert_array_equal(changed, by_hand(pipe, change))  # begins, as the run did, with what step 3 left
        assert relative_l2(changed, unchanged) > 1e-2
    finally:
        pipe.unload_lora_weights()


def test_guidance_is_its_equation():
    uncond, cond = np.random.RandomState(0).standard_normal((2, 3, 4, 5, 6))
    np.testing.assert_allclose(classifier_free_guidance(uncond, cond, 7.5), uncond + 7.5 * (cond - uncond), rtol=1e-12)
    np.testing.assert_array_equal(classifier_free_guidance(uncond, cond, 0.0), uncond)
    rescaled = classifier_free_guidance(uncond, cond, 7.5, rescale=1.0)
    np.testing.assert_allclose(rescaled.std(axis=(1, 2, 3)), cond.std(axis=(1, 2, 3)), rtol=1e-12)


def test_negative_guidance_warns_and_pushes_away(pipe, caplog):
    with caplog.at_level(logging.WARNING, "minisd"):
        pushed = latents(pipe, guidance_scale=-2.0)
    assert "negative" in caplog.text
    assert relative_l2(pushed, latents(pipe, guidance_scale=1.0)) > 1e-2


# ----- what a caller can get wrong -----------------------------------------------------------------------------------------

WRONG = {
    "no prompt": (dict(prompt=None), "either a prompt or prompt_embeds"),
    "both": (dict(prompt_embeds=np.zeros((1, 77, 128), "float32")), "either a prompt or prompt_embeds"),
    "empty list": (dict(prompt=[]), "at least one"),
    "number": (dict(prompt=3), "a prompt is a text"),
    "surrogate": (dict(prompt="a cat \udce9"), "Unicode at position 6"),
    "negative count": (dict(prompt=["a", "b", "c"], negative_prompt=["x", "y"]), "2 negative prompts for 3"),
    "no steps": (dict(num_inference_steps=0), "num_inference_steps is 0"),
    "minus steps": (dict(num_inference_steps=-1), "num_inference_steps is -1"),
    "half a step": (dict(num_inference_steps=2.5), "num_inference_steps is 2.5"),
    "true steps": (dict(num_inference_steps=True), "num_inference_steps is True"),
    "too many steps": (dict(num_inference_steps=1001), "1 … 1000"),
    "nan guidance": (dict(guidance_scale=float("nan")), "guidance_scale is nan"),
    "inf guidance": (dict(guidance_scale=float("inf")), "guidance_scale is inf"),
    "odd size": (dict(height=66), "use 64 or 68"),
    "no size": (dict(width=0), "width is 0"),
    "minus size": (dict(width=-64), "width is -64"),
    "big seed": (dict(seed=2**64), "seed is 18446744073709551616"),
    "minus seed": (dict(seed=-1), "seed is -1"),
    "seeds": (dict(seed=[1, 2]), "2 seeds for 1 picture"),
    "seed and generator": (dict(generator=Generator(1)), "either a seed or a generator"),
    "no pictures": (dict(num_images_per_prompt=0), "num_images_per_prompt is 0"),
    "latents": (dict(latents=np.zeros((1, 4, 8, 8), "float32")), "latents has the shape"),
    "embeds": (dict(prompt=None, prompt_embeds=np.zeros((1, 77, 99), "float32")), "prompt_embeds has the shape"),
    "output": (dict(output_type="jpeg"), "output_type"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused_before_anything_runs(pipe, name, monkeypatch):
    arguments, message = WRONG[name]
    monkeypatch.setattr(type(pipe.unet), "__call__", lambda *a, **k: pytest.fail("the UNet ran"))
    with pytest.raises(UsageError) as caught:
        pipe(**{"prompt": PROMPT, "num_inference_steps": 2, "seed": 32, **arguments})
    assert message in str(caught.value)


def test_a_picture_that_cannot_fit_is_refused_with_figures(pipe):
    with pytest.raises(ResourceError, match=r"needs about [\d.]+ TB of memory"):
        pipe(PROMPT, height=1 << 19, width=1 << 19)


def test_an_inpainting_unet_is_refused_by_name(pipe):
    import dataclasses

    from minisd.request import Request

    with pytest.raises(UsageError, match="9 channels"):
        Request.check(dataclasses.replace(pipe.unet.config, in_channels=9), pipe.vae.config, prompt=PROMPT)


def test_nan_names_the_layer_it_comes_from(pipe):
    weight = pipe.unet.params.mid_block.resnets[1].conv1.weight
    kept = weight[3, 5, 1, 1]
    weight[3, 5, 1, 1] = np.nan
    try:
        with pytest.raises(NumericError, match="NaN or Inf") as caught:
            pipe(PROMPT, num_inference_steps=2, seed=32)
    finally:
        weight[3, 5, 1, 1] = kept
    assert caught.value.layer == "unet.mid_block.resnets.1.conv1"


def test_scheduler_from_config_is_a_drop_in(pipe):
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, set_alpha_to_one=True)
    assert pipe.scheduler.config.prediction_type == "v_prediction"
