# %% [markdown]
# # Lesson 0 · The parts, one at a time
#
# Stable Diffusion is five small machines and a loop. This lesson takes the machines out of the box one after the other: **tokenizer**, **text
# encoder**, **VAE**, **scheduler**, **UNet**. Nothing is hidden: what goes in and comes out of each is a NumPy array, and after each cell an
# `assert` says what you should see.
#
# The model is the small one inside minisd (64×64 pixels), so every cell takes a fraction of a second. Cells marked `official` do the same with the
# official weights, for readers who have them: set `MINISD_SD14` to the folder of Stable Diffusion 1.4. The numbers in them are those of the public
# walkthroughs.

# %%
import json
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from minisd import CLIPTokenizer, Generator, PNDMScheduler, StableDiffusionPipeline, viz
from minisd.image import unit_to_pil, unit_to_uint8
from minisd.image_input import preprocess_image

pipe = StableDiffusionPipeline.from_pretrained("tiny")
tokenizer, text_encoder, vae, unet = pipe.tokenizer, pipe.text_encoder, pipe.vae, pipe.unet
pipe

# %% [markdown]
# ## 1. Tokenizer: text to 77 integers
#
# A prompt is cut into pieces that a vocabulary knows. A piece that ends a word carries `</w>`. The list begins with a start token, ends with an end
# token, and is filled up to 77. The attention mask says which of the 77 are prompt; the text encoder of Stable Diffusion never looks at it.

# %%
PROMPT = "a cat on a blue background"
for number, token in tokenizer.table(PROMPT):
    print(f"{number:6}  {token}")

tokens = tokenizer(PROMPT)
ids = tokens.input_ids
assert ids.shape == (1, 77) and ids.dtype == np.int64
assert [token for _, token in tokenizer.table(PROMPT)] == ["<|startoftext|>", *(f"{word}</w>" for word in PROMPT.split()), "<|endoftext|>"]
assert ids[0, 0] == tokenizer.bos_token_id and (ids[0, 7:] == tokenizer.eos_token_id).all()  # here the end token is the padding too
assert tokens.attention_mask.sum() == 8
assert tokenizer.decode(ids[0], skip_special_tokens=True) == PROMPT

# %% [markdown]
# The official models have a vocabulary of 49,408 pieces. Set `MINISD_CLIP_TOKENIZER` (or `MINISD_SD14`) to a folder with its `vocab.json` and
# `merges.txt`; every official model has one named `tokenizer`.

# %% tags=["official"]
if folder := os.environ.get("MINISD_CLIP_TOKENIZER") or os.environ.get("MINISD_SD14"):
    clip = CLIPTokenizer.from_pretrained(folder)
    assert len(clip) == 49408 and (clip.bos_token_id, clip.eos_token_id) == (49406, 49407)
    van_gogh = [49406, 320, 1125, 539, 320, 1615, 523, 23016, 3475, 530, 2451, 19697, 1844, 49407]
    assert clip("a photo of a car orbiting earth in van gogh style", padding=False).input_ids[0].tolist() == van_gogh
    assert clip.decode(49406) == "<|startoftext|>" and clip.convert_ids_to_tokens(6829) == "puppy</w>"

# %% [markdown]
# ## 2. Text encoder: 77 integers to 77 vectors
#
# A transformer that lets each place look at itself and at what stands before it. The last hidden state is all that the UNet will know of the
# prompt.

# %%
context = text_encoder(ids)
assert context.shape == (1, 77, text_encoder.config.hidden_size)
np.testing.assert_array_equal(context, pipe.encode_prompt([PROMPT]))

# Causal: a longer prompt has the same vectors as far as the texts agree.
longer = text_encoder(tokenizer(PROMPT + " in the rain").input_ids)
np.testing.assert_allclose(longer[:, :7], context[:, :7], atol=1e-5)
assert np.abs(longer[:, 7:] - context[:, 7:]).max() > 0.1

# %% [markdown]
# ## 3. Picture to array
#
# The networks take pixels in −1 … 1, channels first: `[B, 3, H, W]`. Walkthroughs differ in two details: which filter makes the picture smaller,
# and whether one writes `x / 127.5 − 1` or `x / 255 · 2 − 1`. The first makes another picture. The second changes no bit, because doubling is
# exact.

# %%
large = Image.new("RGB", (200, 200), (40, 80, 200))
ImageDraw.Draw(large).ellipse((40, 50, 150, 160), fill=(220, 40, 30))
bicubic, lanczos = (np.asarray(large.resize((64, 64), filter)) for filter in (Image.Resampling.BICUBIC, Image.Resampling.LANCZOS))
assert (bicubic != lanczos).any()

one_way = bicubic.astype("float32") / 127.5 - 1
other_way = bicubic.astype("float32") / 255 * 2 - 1
np.testing.assert_array_equal(one_way, other_way)

# minisd's own way in is that of diffusers: Lanczos, then / 255.
np.testing.assert_array_equal(preprocess_image([large], 64, 64)[0], (lanczos.astype("float32") / 255 * 2 - 1).transpose(2, 0, 1))

x = one_way.transpose(2, 0, 1)[None]
assert x.shape == (1, 3, 64, 64) and -1 <= x.min() and x.max() <= 1

# %% [markdown]
# ## 4. VAE: array to latents and back
#
# The encoder does not answer with latents but with a distribution: a mean and a deviation for each number. Drawing from it is `mean + deviation ·
# noise`. The UNet wants latents of variance about 1, so they are multiplied by a constant: 0.18215 in Stable Diffusion, another number in this
# model.

# %%
distribution = vae.encode(x)
factor = vae.config.scaling_factor
latents = distribution.sample(0) * factor
by_hand = distribution.mean + np.exp(0.5 * distribution.logvar) * Generator(0).randn(distribution.mean.shape)
np.testing.assert_allclose(latents, by_hand * factor, rtol=1e-5)
assert latents.shape == (1, 4, 16, 16) and 0.3 < latents.std() < 3

viz.latent_channels(latents)  # grey is 0; the same grey is the same number in all four

# %% [markdown]
# 64·64·3 numbers became 16·16·4: twelve times fewer. In Stable Diffusion 512·512·3 become 64·64·4: 48 times fewer. (One walkthrough says 64 times;
# that counts the places only, not the channels.) What is lost can be measured.

# %%
assert x.size / latents.size == 12 and (512 * 512 * 3) / (64 * 64 * 4) == 48 and (512 * 512) / (64 * 64) == 64

pixels = vae.decode(latents / factor)
again = (pixels / 2 + 0.5).clip(0, 1).transpose(0, 2, 3, 1)  # −1 … 1 to 0 … 1, channels last
error = again[0] - bicubic / 255
psnr = -10 * np.log10(np.mean(error**2))
print(f"round trip: {psnr:.1f} dB, largest difference {np.abs(error).max():.2f}")
assert psnr > 14

# %% [markdown]
# The last step to a file is `× 255` and **round**. Some ports cut off instead; every second pixel is then one too dark. No eye sees it, every
# comparison does.

# %%
rounded, cut = unit_to_uint8(again).astype(int), (again * 255).astype("uint8").astype(int)
assert set(np.unique(rounded - cut)) == {0, 1} and 0.2 < (rounded != cut).mean() < 0.8
unit_to_pil(again)[0]

# %% [markdown]
# ## 5. Scheduler: how much noise at which step
#
# PNDM as Stable Diffusion 1 sets it up. It mixes picture and noise so that the variance stays: $x_t = \sqrt{\bar\alpha_t}\,x_0 +
# \sqrt{1-\bar\alpha_t}\,\varepsilon$.
#
# **An index is not a timestep.** PNDM runs its second timestep twice, so 15 steps are 16 entries, 50 steps are 51 calls of the UNet, and everything
# behind the double moves by one place. Index 10 is t = 331, not 265 as an eye on the DDIM list would have it. minisd makes you say which of the two
# you mean.

# %%
STABLE_DIFFUSION = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000, steps_offset=1)
pndm = PNDMScheduler(**STABLE_DIFFUSION, skip_prk_steps=True)
pndm.set_timesteps(50)
assert len(pndm.timesteps) == 51
pndm.set_timesteps(15)
assert pndm.timesteps.tolist() == [925, 859, 859, 793, 727, 661, 595, 529, 463, 397, 331, 265, 199, 133, 67, 1]
assert pndm.at(index=10) == 331

noise = Generator(1).randn(latents.shape)
noisy = pndm.add_noise_at(latents, noise, index=10)
alpha = pndm.alphas_cumprod[331]
np.testing.assert_allclose(noisy, np.sqrt(alpha) * latents + np.sqrt(1 - alpha) * noise, rtol=1e-5, atol=1e-6)
pipe.to_images(noisy)[0]

# %% [markdown]
# ## 6. UNet: what is noise here?
#
# One call: noisy latents, timestep and prompt vectors in, an array of the latents' shape out. This model answers with the velocity v (lesson 3),
# others with the noise ε. In both cases the scheduler turns the answer into the picture that the model sees. The model has never seen our red disc,
# but it was trained on this scheduler's noise, so we use its own now.

# %%
pipe.scheduler.set_timesteps(15)
t = pipe.scheduler.at(index=10)
noisy = pipe.scheduler.add_noise_at(latents, noise, index=10)
answer = unet(noisy, t, pipe.encode_prompt([""]))
assert answer.shape == noisy.shape

x0, eps = pipe.scheduler.predict(answer, t, noisy)
before, after = (float(np.abs(y - latents).mean()) for y in (noisy, x0))
print(f"distance from the clean latents: {before:.2f} with the noise, {after:.2f} as the UNet sees it")
assert after < before
viz.grid([pipe.to_images(y)[0] for y in (latents, noisy, x0)], columns=3)

# %% [markdown]
# ## 7. Where noise comes from
#
# "The same seed" means the same picture only with the same generator. minisd has torch's (CPU and CUDA) and NumPy's, to the last bit; JAX's is not
# among them, and need not be: noise from anywhere can be given to a run as `latents=`. And torch's CPU generator has a trap of its own: from 16
# numbers on it takes another algorithm.

# %%
from minisd.rng import make_generator

first = {kind: make_generator(123, kind).randn(16) for kind in ("torch-cpu", "philox", "numpy")}
assert all(np.abs(a - b).max() > 0.5 for a in first.values() for b in first.values() if a is not b)
np.testing.assert_allclose(Generator(0).randn(3), [1.5410, -0.2934, -2.1788], atol=5e-5)
np.testing.assert_allclose(Generator(0).randn(16)[:4], [-1.1258398, -1.1523602, -0.2505786, -0.4338788], atol=1e-6)

given = np.random.default_rng(7).standard_normal((1, 4, 16, 16)).astype("float32")
runs = [pipe(PROMPT, latents=given, num_inference_steps=2, output_type="latent").images for _ in range(2)]
np.testing.assert_array_equal(*runs)

# %% [markdown]
# ## 8. Half the bits: bfloat16
#
# Some official weights come in bfloat16, which NumPy does not know. It is no mystery: the upper 16 bits of a float32. Here is a whole weights file
# by hand, and minisd reads it exactly.

# %%
from minisd.checkpoint.safetensors_file import read_header

numbers = np.array([1.0, -0.3, 3.14159, 1e-30], "float32")
upper = (numbers.view("uint32") >> 16).astype("uint16")
with tempfile.TemporaryDirectory() as folder:
    header = json.dumps({"w": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}).encode()
    path = Path(folder, "half.safetensors")
    path.write_bytes(len(header).to_bytes(8, "little") + header + upper.tobytes())
    half = read_header(path)["w"].read()
assert half.dtype == np.float32 and half[0] == 1.0
assert (np.abs(half / numbers - 1) < 2**-7).all() and half[2] != numbers[2]  # 8 bits of significand are left

# %% [markdown]
# ## Exercises
#
# 1. Replace `distribution.sample(0)` by `distribution.mode()`. How does the PSNR of the round trip change, and why so little?
# 2. Find the index of PNDM's 15 steps from which on the decoded noisy picture shows the disc to you. Which σ is that? (`minisd plot schedule
#    --scheduler pndm --json`)
# 3. Round `latents` to bfloat16 with the trick of section 8 and decode. Is the difference larger or smaller than that between `sample` and `mode`?
