# %% [markdown]
# # Lesson 2 · The pipeline, opened
#
# `pipe("a dog")` is one line. This lesson does what happens inside it, looks at the state after every step, and puts two common slips side by side
# with their numbers: an **index passed as a timestep**, and an **unscaled input**. Both run without complaint in most programs, and both give
# pictures.
#
# Cells marked `official` need official files: `MINISD_CLIP_TOKENIZER` or `MINISD_SD14` name their folder.

# %%
import os
import tempfile
from pathlib import Path

import numpy as np

from minisd import CLIPTokenizer, Generator, LMSDiscreteScheduler, PNDMScheduler, StableDiffusionPipeline, viz
from minisd.errors import UsageError
from minisd.experiments import one_shot

pipe = StableDiffusionPipeline.from_pretrained("tiny")
PROMPT, SEED = "a dog on a green background", 100

# %% [markdown]
# ## 1. One line
#
# The names and their meaning are those of diffusers; what differs is that everything is an array.

# %%
image = pipe(PROMPT, num_inference_steps=6, seed=SEED, guidance_scale=7.5).images[0]
assert image.size == (64, 64) and np.asarray(image).std() > 10
image

# %% [markdown]
# ## 2. Text: ids, tokens, mask, vectors

# %%
tokens = pipe.tokenizer(PROMPT)
for number, token in pipe.tokenizer.table(PROMPT):
    print(number, token)
words = len(PROMPT.split())
assert tokens.attention_mask[0].tolist() == [1] * (words + 2) + [0] * (75 - words)
context = pipe.text_encoder(tokens.input_ids)
assert context.shape == (1, 77, pipe.text_encoder.config.hidden_size)

# %% tags=["official"]
if folder := os.environ.get("MINISD_CLIP_TOKENIZER") or os.environ.get("MINISD_SD14"):
    clip = CLIPTokenizer.from_pretrained(folder)
    IDS = {
        "a dog wearing hat": [49406, 320, 1929, 3309, 3801, 49407],
        "A dog wearing a hat": [49406, 320, 1929, 3309, 320, 3801, 49407],
        "a photograph of an astronaut riding a horse": [49406, 320, 8853, 539, 550, 18376, 6765, 320, 4558, 49407],
    }
    for text, ids in IDS.items():
        assert clip(text, padding=False).input_ids[0].tolist() == ids
    assert clip.table("a dog wearing hat")[2] == (1929, "dog</w>")
    assert clip(list(IDS)[:2]).input_ids.shape == (2, 77)  # the end token is the padding in SD 1

# %% [markdown]
# Walkthroughs halve the text encoder to fp16 to save memory. On a CPU NumPy has no fp16 arithmetic worth having, so minisd stores fp16 and computes
# in float32, or in float64 as its own oracle. How much is lost by *storing* the vectors in fp16 can be measured against it:

# %%
truth = pipe.text_encoder.astype("float64")(tokens.input_ids)


def off(y):
    return float(np.linalg.norm(y - truth) / np.linalg.norm(truth))


print(f"relative error of float32 {off(context):.1e}, rounded to fp16 {off(context.astype('float16').astype('float64')):.1e}")
assert off(context) < 1e-5 < off(context.astype("float16").astype("float64")) < 1e-3

# %% [markdown]
# ## 3. A picture through the VAE

# %%
vae, factor = pipe.vae, pipe.vae.config.scaling_factor
pixels = np.asarray(image.resize((64, 64))).astype("float32") / 255 * 2 - 1
posterior = vae.encode(pixels.transpose(2, 0, 1)[None])
x0 = posterior.sample(SEED) * factor
again = pipe.to_images(x0)[0]
error = np.asarray(again).astype(float) - np.asarray(image)
print(f"PSNR {10 * np.log10(255**2 / np.mean(error**2)):.1f} dB, largest difference {np.abs(error).max():.0f} of 255")
assert 10 * np.log10(255**2 / np.mean(error**2)) > 18
viz.latent_channels(x0)

# %% [markdown]
# ## 4. The schedule as a picture
#
# 51 steps of LMS with Stable Diffusion's betas: σ falls fast at first. `schedule_plot` returns SVG text; `minisd plot schedule` writes the same to
# a file.

# %%
SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
lms, pndm = LMSDiscreteScheduler(**SD), PNDMScheduler(**SD, skip_prk_steps=True, steps_offset=1)
for scheduler in (lms, pndm):
    scheduler.set_timesteps(51)
svg = viz.schedule_plot({"LMS": lms, "PNDM": pndm})
assert svg.count("<polyline") == 2 and "51 and 52 model calls" in svg
assert (np.diff(lms.sigmas) < 0).all()

# %% [markdown]
# ## 5. Noise, level by level
#
# LMS adds σ·ε and leaves the picture as it is: x = x0 + σ·ε. PNDM and DDIM shrink the picture at the same time, so that the variance stays 1. After
# division by √(σ² + 1) both are the same thing. The grid shows every tenth of 51 levels.

# %%
noise = Generator(SEED).randn(x0.shape)
for i in range(0, 51, 10):
    noisy = lms.add_noise_at(x0, noise, index=i)
    np.testing.assert_allclose(noisy, x0 + lms.sigmas[i] * noise, rtol=1e-5, atol=1e-5)
    t = round(lms.at(index=i))
    preserving = pndm.add_noise_at(x0, noise, timestep=t)
    np.testing.assert_allclose(preserving.std(), (noisy / np.sqrt(lms.sigmas[i] ** 2 + 1)).std(), rtol=0.02)

kept, pipe.scheduler = pipe.scheduler, lms
grid = viz.noise_levels(pipe, x0, noise, range(0, 51, 10), columns=3)
grid

# %% [markdown]
# ## 6. One shot, and two slips
#
# Step 40 of 51 has the timestep 199.8 and σ = 0.5712. A well-known notebook passes 40, the index, as the timestep, and forgets to scale the input.
# minisd refuses the index, because no step of this run has t = 40; the other slip can only be shown.

# %%
assert abs(lms.at(index=40) - 199.8) < 1e-4 and abs(lms.sigmas[40] - 0.5712) < 5e-5
try:
    lms.add_noise(x0, noise, 40)
except UsageError as error:
    print(error)
    assert "an index is not a timestep" in str(error)
else:
    raise AssertionError("40 was taken for a timestep")

pipe.scheduler = LMSDiscreteScheduler.from_config(kept.config, timestep_spacing="linspace")  # this model's own betas
pipe.scheduler.set_timesteps(51)
both = np.concatenate((pipe.encode_prompt([""]), pipe.encode_prompt([PROMPT])))
noisy = pipe.scheduler.add_noise_at(x0, noise, index=40)
t = pipe.scheduler.at(index=40)

seen, eps = one_shot(pipe, noisy, both, index=40, guidance_scale=1.5)
wrong_t = pipe.scheduler.predict(pipe.predict_noise(pipe.scheduler.scale_model_input(noisy, t), 40, both, 1.5), t, noisy)[0]
minus_all = noisy - eps  # "the picture minus the noise", without asking how much of it there is
s = pipe.scheduler.scales(t)[1]
np.testing.assert_allclose(seen, noisy - s * eps, rtol=1e-4, atol=1e-4)  # the right amount: x0 = x − σ·ε


def distance(y) -> float:
    return float(np.abs(y - x0).mean())


print({name: round(distance(y), 3) for name, y in dict(noisy=noisy, one_shot=seen, wrong_t=wrong_t, minus_all=minus_all).items()})
assert distance(seen) < 0.8 * distance(noisy)
assert distance(seen) < min(distance(wrong_t), distance(minus_all))
viz.grid([pipe.to_images(y)[0] for y in (noisy, seen, wrong_t, minus_all)], columns=4)

# %% [markdown]
# The input that was not scaled by 1/√(σ² + 1) hurts where σ is large: a third of the way down.

# %%
noisy, t = pipe.scheduler.add_noise_at(x0, noise, index=17), pipe.scheduler.at(index=17)
seen, _ = one_shot(pipe, noisy, both, index=17, guidance_scale=1.5)
unscaled, _ = pipe.scheduler.predict(pipe.predict_noise(noisy, t, both, 1.5), t, noisy)
print(f"σ = {pipe.scheduler.scales(t)[1]:.2f}: distance {distance(seen):.2f} scaled, {distance(unscaled):.2f} not scaled")
assert distance(seen) < 0.8 * distance(unscaled)

# %% [markdown]
# ## 7. The loop, with a picture of every step
#
# `pipe.steps(...)` is the loop as a generator. What an earlier generation of notebooks did with a counter and `save_int` is a plain `for`. The
# command line has it as `--frames steps/`.

# %%
pipe.scheduler = kept
with tempfile.TemporaryDirectory() as folder:
    for step in pipe.steps(PROMPT, num_inference_steps=6, seed=SEED, guidance_scale=7.5):
        pipe.to_images(step.latents)[0].save(Path(folder, f"{step.index:04d}.jpeg"))
    saved = sorted(path.name for path in Path(folder).iterdir())
assert saved == [f"{i:04d}.jpeg" for i in range(6)]
np.testing.assert_array_equal(np.asarray(pipe.to_images(step.latents)[0]), np.asarray(image))  # the same run as in section 1

# %% [markdown]
# ## 8. Several prompts at once
#
# A batch is one array. Each picture may have a seed of its own, and is then the picture that it would be alone: so an interesting one can be made
# again without the others.

# %%
prompts = ["a dog on a green background", "a rocket on a yellow background"]
batch = pipe(prompts, seed=[100, 101], num_inference_steps=2, output_type="latent").images
alone = pipe(prompts[1], seed=101, num_inference_steps=2, output_type="latent").images
assert batch.shape == (2, 4, 16, 16) and np.abs(batch[1:] - alone).max() < 1e-3
one_stream = pipe(prompts, seed=100, num_inference_steps=2, output_type="latent").images  # one seed draws both, one after the other
assert np.abs(one_stream[0] - batch[0]).max() < 1e-3 < np.abs(one_stream[1] - batch[1]).max()

# %% tags=["official"]
if folder := os.environ.get("MINISD_SD14"):
    official = StableDiffusionPipeline.from_pretrained(folder)
    official("a dog wearing hat", num_inference_steps=70, guidance_scale=7.5, seed=100).images[0].save("dog.png")

# %% [markdown]
# ## Exercises
#
# 1. In section 6, from which index on does the unscaled input no longer matter? Plot the distance of `unscaled` from x0 for all 51 indices with
#    `viz.line_plot`.
# 2. Save the frames of section 7 as `viz.frames(pipe, steps)` with `minisd.image.save_animation(frames, "dog.gif")`. At which step can you tell the
#    dog?
# 3. Give `seed=[100, 100]` for two different prompts. What do the two pictures have in common?
