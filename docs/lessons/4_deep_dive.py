# %% [markdown]
# # Lesson 4 · Deep dive: change every part
#
# Now that the parts are known, each can be bent: swap a word inside the text encoder, invent a word, stand between two prompts, begin in the middle
# of the schedule, look at every step, and steer the picture by a **loss on its pixels** whose gradient goes through the decoder. The notebook that
# made this tour famous no longer runs on current libraries; three of the places where it breaks are here as asserts that hold.
#
# Cells marked `official` need official files: `MINISD_CLIP_TOKENIZER` or `MINISD_SD14` name their folder.

# %%
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from minisd import CLIPTextModel, CLIPTokenizer, Generator, LMSDiscreteScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline, ops, viz
from minisd.errors import UsageError
from minisd.guidance import blue_loss, guided, loss_of_latents
from minisd.image import save_animation
from minisd.prompts import embed, lerp, mix

pipe = StableDiffusionPipeline.from_pretrained("tiny")
tokenizer, text_encoder = pipe.tokenizer, pipe.text_encoder
SEED = 32

# %% [markdown]
# ## 1. Inside the text encoder
#
# A token becomes a row of one table, its place a row of another, and the two are **added**. That sum is all the transformer reads.

# %%
PROMPT = "a cat on a blue background"
ids = tokenizer(PROMPT).input_ids
by_hand = text_encoder.token_embedding[ids] + text_encoder.position_embedding[None]
np.testing.assert_array_equal(text_encoder.embeddings(ids), by_hand)
cat, dog, penguin = (tokenizer.convert_tokens_to_ids(f"{word}</w>") for word in ("cat", "dog", "penguin"))
assert text_encoder.token_embedding[cat].shape == (text_encoder.config.hidden_size,)

# %% tags=["official"]
if folder := os.environ.get("MINISD_CLIP_TOKENIZER") or os.environ.get("MINISD_SD14"):
    clip = CLIPTokenizer.from_pretrained(folder)
    PRINTED = {
        "A picture of a puppy": [320, 1674, 539, 320, 6829], "skunk": [42194], "A mouse": [320, 9301], "A leopard": [320, 15931],
        "A mouse in the style of puppy": [320, 9301, 530, 518, 1844, 539, 6829],
        "A colorful dancer, nat geo photo": [320, 11444, 11400, 267, 11310, 11604, 1125],
    }  # fmt: skip
    for text, numbers in PRINTED.items():
        assert clip(text, padding=False).input_ids[0].tolist() == [49406, *numbers, 49407]
    assert clip.convert_ids_to_tokens([320, 1674, 539, 6829, 2368, 42194]) == ["a</w>", "picture</w>", "of</w>", "puppy</w>", "cat</w>", "skunk</w>"]
    # The notebook speaks of a skunk and prints the shape of token 8797. That one is
    assert clip.convert_ids_to_tokens(8797) == "robot</w>"
    assert clip("skunk", padding=False).attention_mask.tolist() == [[1, 1, 1]]

# %% [markdown]
# The rest of the encoder takes any embeddings, not only those of the tables. (The notebook builds the causal mask with a private function of its
# library, and the function is gone. The mask is one line: place i sees places ≤ i.)

# %%
context = text_encoder.encode_embeddings(by_hand)
np.testing.assert_array_equal(context, text_encoder(ids))

# %% [markdown]
# Swap the cat for the dog **behind** the tokenizer. Everything before it keeps its bits; everything from it on changes, for no place sees what
# comes later.

# %%
swapped = text_encoder.encode_embeddings(embed(text_encoder, ids, {cat: text_encoder.token_embedding[dog]}))
place = ids[0].tolist().index(cat)
np.testing.assert_array_equal(swapped[:, :place], context[:, :place])
assert (np.abs(swapped - context)[0, place:].max(axis=-1) > 1e-4).all()
np.testing.assert_array_equal(swapped, pipe.encode_prompt([PROMPT.replace("cat", "dog")]))  # it is the other prompt

# %% [markdown]
# A token between tokens: half a cat, half a dog. And half-way between two whole prompts *after* the encoder, which is something else: the
# transformer is not linear.

# %%
both = mix(text_encoder, {cat: 0.5, dog: 0.5})
np.testing.assert_allclose(both, (text_encoder.token_embedding[cat] + text_encoder.token_embedding[dog]) / 2, rtol=1e-6)
mixed_before = text_encoder.encode_embeddings(embed(text_encoder, ids, {cat: both}))
mixed_after = lerp(context, swapped, 0.5)
assert np.abs(mixed_before - mixed_after).max() > 1e-2

# %% [markdown]
# ## 2. A new word: textual inversion
#
# A learned style is a file with one vector. It gets a token of its own and a row of the table. To know that this works, our file holds the
# penguin's vector under the name `<birb>`: then the two prompts must be the same prompt. (How such a vector is learned from pictures, with the
# gradients of section 7: `minisd/learn.py`.)

# %%
with tempfile.TemporaryDirectory() as folder:
    save_file({"<birb>": text_encoder.token_embedding[penguin].copy()}, Path(folder, "birb.safetensors"))
    pipe.load_textual_inversion(Path(folder, "birb.safetensors"))
assert tokenizer.table("a <birb> on a blue background")[2][1] == "<birb>"
np.testing.assert_array_equal(pipe.encode_prompt(["a <birb> on a blue background"]), pipe.encode_prompt(["a penguin on a blue background"]))
pipe.unload_textual_inversion()

# %% [markdown]
# ## 3. A picture from vectors
#
# Every pipeline takes `prompt_embeds` in place of a text. Here 0.35 of one animal and 0.65 of another.

# %%
STEPS = 5
a, b = pipe.encode_prompt(["a penguin on a blue background"]), pipe.encode_prompt(["a dog on a blue background"])
between = pipe(prompt_embeds=0.35 * a + 0.65 * b, seed=SEED, num_inference_steps=STEPS, output_type="latent").images
ends = [pipe(prompt_embeds=x, seed=SEED, num_inference_steps=STEPS, output_type="latent").images for x in (a, b)]
distances = [float(np.abs(between - end).mean()) for end in ends]
print("distance to the penguin and to the dog:", distances)
assert min(distances) > 1e-2
viz.grid([pipe.to_images(x)[0] for x in (ends[0], between, ends[1])], columns=3)

# %% tags=["official"]
if folder := os.environ.get("MINISD_SD14"):
    words, encoder = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"), CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
    puppy = words("A picture of a puppy").input_ids
    row = encoder.embeddings(puppy)[0, 0]
    np.testing.assert_allclose([*row[:3], *row[-3:]], [2.6770e-03, 5.2133e-03, 4.9323e-04, -3.1321e-03, 1.0659e-03, 3.4316e-03], atol=5e-7)
    as_cat = encoder.encode_embeddings(embed(encoder, puppy, {6829: encoder.token_embedding[2368]}))[0]
    np.testing.assert_allclose(as_cat[0, :3], [-0.3884, 0.0229, -0.0522], atol=1e-4)
    np.testing.assert_allclose(as_cat[-1, :3], [-0.6393, -0.4703, 0.1103], atol=1e-4)
    half = mix(encoder, {6829: 0.5, 42194: 0.5})
    assert half.shape == (768,)

# %% [markdown]
# ## 4. Noise and the schedule
#
# LMS with the betas of Stable Diffusion, 15 steps. Timestep and σ are two names of one thing; index 10 is a third.

# %%
lms = LMSDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
lms.set_timesteps(15)
TIMESTEPS = [999, 927.6429, 856.2857, 784.9286, 713.5714, 642.2143, 570.8571, 499.5, 428.1429, 356.7857, 285.4286, 214.0714, 142.7143, 71.3571, 0]
SIGMAS = [14.6146, 9.6826, 6.6780, 4.7746, 3.5221, 2.6666, 2.0606, 1.6156, 1.2768, 1.0097, 0.7913, 0.6056, 0.4397, 0.2780, 0.0292, 0]
np.testing.assert_allclose(lms.timesteps, TIMESTEPS, atol=6e-5)
np.testing.assert_allclose(lms.sigmas, SIGMAS, atol=6e-5)
np.testing.assert_allclose(lms.timesteps[10], 285.4286, atol=1e-4)

x0 = ends[0]
noise = Generator(1).randn(x0.shape)
noisy = lms.add_noise_at(x0, noise, index=10)
np.testing.assert_allclose(noisy, x0 + lms.sigmas[10] * noise, rtol=1e-5, atol=1e-5)
svg = viz.schedule_plot({"LMS, 15 steps": lms})
assert svg.startswith("<svg") and "noise to signal" in svg

# %% [markdown]
# ## 5. Where the UNet is going
#
# One call answers with an array like the latents. From it the picture that the UNet has in mind at this step: $x_0 = x - \sigma\varepsilon$. The
# notebook asks the scheduler for it by calling `step` a second time with the same timestep. Once that silently stored every slope twice; today it
# ends in an IndexError; here it is refused, and `predict` answers without a step.

# %%
pipe.scheduler = scheduler = LMSDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="linspace")
scheduler.set_timesteps(STEPS)
texts = np.concatenate((pipe.encode_prompt([""]), pipe.encode_prompt([PROMPT])))
x, t = Generator(SEED).randn((1, 4, 16, 16)) * scheduler.init_noise_sigma, scheduler.timesteps[0]
output = pipe.predict_noise(scheduler.scale_model_input(x, t), t, texts, 7.5)
assert output.shape == x.shape

seen, eps = scheduler.predict(output, t, x)
np.testing.assert_allclose(seen, x - scheduler.sigmas[0] * eps, rtol=1e-4, atol=1e-4)
first = scheduler.step(output, t, x)
np.testing.assert_array_equal(first.pred_original_sample, seen)
try:
    scheduler.step(output, t, x)
except UsageError as error:
    assert "once and in order" in str(error)
else:
    raise AssertionError("a second step at the same timestep was taken")
assert len(scheduler.derivatives) == 1

# %% [markdown]
# x and x0 of all steps side by side, as a film. The suffix decides: `.gif`, `.webp` and `.png` need nothing, `.mp4` the extra `minisd[video]`. From
# the command line: `minisd "a cat" --frames cat.gif`.

# %%
steps = list(pipe.steps(PROMPT, num_inference_steps=STEPS, seed=SEED))
film = viz.frames(pipe, steps)
assert len(film) == STEPS and film[0].size == (128, 64)
with tempfile.TemporaryDirectory() as folder:
    save_animation(film, Path(folder, "cat.gif"))
    with Image.open(Path(folder, "cat.gif")) as gif:
        assert gif.n_frames == STEPS
settled = [float(np.abs(step.pred_original_sample - steps[-1].latents).mean()) for step in steps]
assert settled[-1] < 0.2 * settled[0]  # what the UNet has in mind settles long before the noise is gone
film[2]

# %% [markdown]
# ## 6. Image to image: begin in the middle
#
# Encode a picture, add the noise of step `start_step`, and let the loop run from there. By hand it is four lines, and the pipeline gives the same
# numbers. The earlier the start, the less of the picture is left.
#
# (diffusers' LMS takes the weights of four slopes also where only one is known, so its first steps after a start in the middle have the wrong
# length, and minisd follows it for the sake of equal pictures. `LMSDiscreteScheduler(compat=False)` does it right.)

# %%
start, noise = 2, Generator(SEED).randn(x0.shape)
scheduler.set_timesteps(STEPS)
x = scheduler.add_noise_at(x0, noise, index=start)  # x0: the penguin of section 3
for t in scheduler.timesteps[start:]:
    output = pipe.predict_noise(scheduler.scale_model_input(x, t), t, texts, 8.0)
    x = scheduler.step(output, t, x).prev_sample

img2img = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
options = dict(image=x0, num_inference_steps=STEPS, guidance_scale=8.0, seed=SEED, output_type="latent")
np.testing.assert_array_equal(img2img(PROMPT, start_step=start, **options).images, x)
left = [float(np.abs(img2img(PROMPT, start_step=i, **options).images - x0).mean()) for i in (1, start + 1)]
print(f"distance from the first picture: {left[0]:.2f} from step 1, {left[1]:.2f} from step {start + 1}")
assert left[1] < left[0]
viz.grid([pipe.to_images(y)[0] for y in (x0, x)], columns=2)

# %% [markdown]
# ## 7. Steering by a loss
#
# How blue should the picture be? A loss on pixels, |blue − 0.9| on average, has a gradient with respect to the *latents*: backwards through the
# decoder. Hold ε fixed; then the picture in mind moves exactly as x does, and every few steps `x ← x − σ² · gradient`. No torch is needed: minisd's
# backward pass is written by hand. First: is it the gradient? In float64, along a random direction, against a difference quotient.



# %%
def blue_squared(pixels):
    """mean blue², and its gradient: smooth, as a difference quotient likes it.        [B, H, W, 3] -> a number, [B, H, W, 3]"""
    blue = pixels[..., 2:]
    return float((blue**2).mean()), np.concatenate((0 * blue, 0 * blue, 2 * blue / blue.size), axis=-1)


vae64 = pipe.vae.astype("float64")
point, direction = x0.astype("float64"), Generator(5).randn(x0.shape, "float64")
value, gradient = loss_of_latents(vae64, point, blue_squared)
h = 1e-5
quotient = (loss_of_latents(vae64, point + h * direction, blue_squared)[0] - loss_of_latents(vae64, point - h * direction, blue_squared)[0]) / (2 * h)
print(f"gradient · direction {np.sum(gradient * direction):.8f}, difference quotient {quotient:.8f}")
assert abs(np.sum(gradient * direction) - quotient) < 1e-6 * max(1.0, abs(quotient))

# %%
options = dict(prompt="an apple on a green background", num_inference_steps=STEPS, guidance_scale=3.0, seed=SEED)
first, *_, plain = pipe.steps(**options)
moved, *_, steered = guided(pipe.steps(**options), pipe, blue_loss(0.9), scale=30, every=2)

sigma = scheduler.scales(first.t)[1]
_, gradient = loss_of_latents(pipe.vae, first.pred_original_sample, blue_loss(0.9))
np.testing.assert_allclose(moved.latents, first.latents - 30 * sigma**2 * gradient, rtol=1e-4, atol=1e-3)

blue = [float(pipe.to_images(step.latents, "np")[..., 2].mean()) for step in (plain, steered)]
print(f"mean blue: {blue[0]:.2f} without, {blue[1]:.2f} with the loss")
assert blue[1] > blue[0] + 0.1
viz.grid([pipe.to_images(step.latents)[0] for step in (plain, steered)], columns=2)

# %% [markdown]
# ## 8. Less memory, and what it costs
#
# Attention in slices, guidance in two passes, the VAE apart from the rest: each of these changes at most the order in which numbers are added. So
# each has an exactness that can be measured.

# %%
x_in, t = scheduler.scale_model_input(noise, scheduler.timesteps[2]), scheduler.timesteps[2]
truth = pipe.unet.astype("float64")(x_in.astype("float64"), t, texts[1:].astype("float64"))
for rung in ("reference", "chunked", "tiled"):  # ops.explain("attention") describes them
    with ops.using(attention=rung):
        y = pipe.unet(x_in, t, texts[1:])
    error = float(np.linalg.norm(y - truth) / np.linalg.norm(truth))
    print(f"attention {rung:10} relative error {error:.1e}")
    assert error < 2e-5
one, two = (pipe.predict_noise(x_in, t, texts, 7.5, two_passes=two_passes) for two_passes in (False, True))
assert np.linalg.norm(one - two) < 1e-5 * np.linalg.norm(one)

# %% [markdown]
# ## Exercises
#
# 1. Make a word that is half penguin, half rocket, write it to a file as in section 2, and paint it on three backgrounds.
# 2. In section 6 use `LMSDiscreteScheduler.from_config(pipe.scheduler.config, compat=False)`. Compare the two results with a DDIM run from the same
#    noise.
# 3. Write a loss that wants the left half of the picture dark and the right half bright, with its gradient, and check the gradient as in section 7
#    before you use it.
