# %% [markdown]
# # Lesson 1 · From a prompt to a picture with LMS
#
# The first notebook that most people run does this: take the five parts, choose the LMS sampler, and write the loop by hand. Here the loop is
# written by hand too, and at the end it has to give **bit for bit** what `pipe(...)` gives. On the way: where the famous σ = 14.6146 comes from,
# what the sampler remembers, and what a LoRA is.
#
# Cells marked `official` need official files: `MINISD_CLIP_TOKENIZER` or `MINISD_SD14` name their folder.

# %%
import os
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from minisd import CLIPTokenizer, DDIMScheduler, Generator, LMSDiscreteScheduler, StableDiffusionPipeline, viz
from minisd.schedulers.lms import lms_coefficients

pipe = StableDiffusionPipeline.from_pretrained("tiny")
PROMPT, SEED, STEPS, GUIDANCE = "an apple on a blue background", 32, 6, 7.5

# %% [markdown]
# ## 1. The prompt
#
# Prompts that were copied from a web page bring a leading blank along, or typographic quotes that were meant as Python's. A blank does not matter:
# the tokenizer collapses white space. Quotes *inside* the string do matter: they are tokens.

# %%
plain = pipe.tokenizer(PROMPT).input_ids
np.testing.assert_array_equal(pipe.tokenizer(" " + PROMPT).input_ids, plain)
np.testing.assert_array_equal(pipe.tokenizer("An  APPLE\ton a blue background ").input_ids, plain)
assert len(pipe.tokenizer.table(f"“{PROMPT}”")) > len(pipe.tokenizer.table(PROMPT))

# %% tags=["official"]
if folder := os.environ.get("MINISD_CLIP_TOKENIZER") or os.environ.get("MINISD_SD14"):
    clip = CLIPTokenizer.from_pretrained(folder)
    for text in (" an astronaut riding a horse", "an astronaut riding a horse"):
        assert clip(text, padding=False).input_ids[0].tolist() == [49406, 550, 18376, 6765, 320, 4558, 49407]

# %% [markdown]
# ## 2. The scheduler, from arguments and from a config
#
# Training mixed pictures with noise in 1000 levels. β is the variance that each level adds; its square root grows evenly from √0.00085 to √0.012.
# Everything else follows in two lines.

# %%
betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
alphas_cumprod = np.cumprod(1 - betas)
sigma = np.sqrt((1 - alphas_cumprod) / alphas_cumprod)

lms = LMSDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
np.testing.assert_allclose(lms.alphas_cumprod, alphas_cumprod, rtol=1e-4)
assert abs(lms.alphas_cumprod[0] - 0.99915) < 1e-6 and abs(lms.alphas_cumprod[999] - 0.00466010) < 1e-6

# %% [markdown]
# The printed first σ is 14.6146. Multiply the thousand numbers up in float32 and you get 14.6147: enough for a doubt whether the port is right.
# torch accumulates in float64.

# %%
lms.set_timesteps(15)
in_float32 = np.cumprod((1 - betas).astype("float32"), dtype="float32")[-1]
print(f"accumulated in float64 {lms.sigmas[0]:.4f}, in float32 {np.sqrt((1 - in_float32) / in_float32):.4f}")
assert f"{lms.sigmas[0]:.4f}" == "14.6146" and f"{np.sqrt((1 - in_float32) / in_float32):.4f}" == "14.6147"

# %% [markdown]
# A run of n steps takes n timesteps, evenly spaced from 999 to 0. They are fractions, and go into the UNet as fractions; σ between two levels is
# interpolated. A final 0 is appended.

# %%
PRINTED = {  # number of steps: the first σ and the last three, as the walkthroughs print them
    15: ([14.6146, 9.6826, 6.6780, 4.7746], [0.2780, 0.0292, 0]),
    30: ([14.6146, 11.9176, 9.8142, 8.1585], None),
    50: ([14.6146, 12.9368, 11.4916, 10.2429], [0.1393, 0.0292, 0]),
}
for n, (first, last) in PRINTED.items():
    lms.set_timesteps(n)
    np.testing.assert_allclose(lms.sigmas[:4], first, atol=6e-5)
    assert last is None or np.abs(lms.sigmas[-3:] - last).max() < 6e-5
    np.testing.assert_allclose(lms.timesteps, np.linspace(999, 0, n), rtol=1e-6, atol=1e-4)
lms.set_timesteps(100)
assert len(lms.timesteps) == 100 and len(lms.sigmas) == 101 and f"{lms.sigmas[0]:.4f}" == "14.6146"

# %% [markdown]
# A model brings its scheduler's settings along, perhaps those of another sampler. `from_config` takes what it understands and keeps the rest; a
# default that nobody chose stays behind.

# %%
PNDM_CONFIG = {  # what Stable Diffusion 1 comes with
    "_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None, "clip_sample": False,
}  # fmt: skip
from_config = LMSDiscreteScheduler.from_config(PNDM_CONFIG)
from_config.set_timesteps(100)
np.testing.assert_array_equal(from_config.sigmas, lms.sigmas)
assert from_config.config.skip_prk_steps is True  # kept for the way back to PNDM
assert DDIMScheduler.from_config(from_config.config).config.timestep_spacing == "leading"  # LMS' own "linspace" did not travel

# %% [markdown]
# ## 3. What LMS remembers
#
# In the variables of LMS a noisy picture is $x_\sigma = x_0 + \sigma\varepsilon$, and ε is the slope dx/dσ. Euler's method would go from σᵢ to σᵢ₊₁
# along the newest slope. LMS lays a polynomial through the last four slopes and integrates it exactly. The weights can be printed; they sum to the
# length of the step, because a constant slope must be followed exactly.

# %%
lms.set_timesteps(15)
for i in range(5):
    weights = lms_coefficients(lms.sigmas, i, order=min(i + 1, 4))
    print(i, "  ".join(f"{w:+.4f}" for w in weights))
    assert abs(sum(weights) - (lms.sigmas[i + 1] - lms.sigmas[i])) < 1e-5

# Slopes that are any cubic of σ are integrated exactly.
cubic = np.polynomial.Polynomial([0.3, -1.0, 0.5, 0.07])
i, s = 7, lms.sigmas.astype("float64")
step = sum(w * cubic(s[i - k]) for k, w in enumerate(lms_coefficients(s, i, 4)))
assert abs(step - (cubic.integ()(s[i + 1]) - cubic.integ()(s[i]))) < 1e-9

# %% [markdown]
# ## 4. The loop
#
# 1. Encode the empty prompt and the prompt, **in this order**, into one batch.
# 2. Draw noise from the seed; LMS begins at σ_max, so it is multiplied by that.
# 3. In each step divide x by √(σ² + 1): the UNet was trained on variance 1. Call it once for both halves.
# 4. Guidance: away from what the empty prompt predicts, $\varepsilon = u + g\,(c - u)$. Then let the scheduler step.
#
# This model's own scheduler config says v-prediction and other betas; LMS takes them over.

# %%
pipe.scheduler = scheduler = LMSDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="linspace")
context = np.concatenate((pipe.encode_prompt([""]), pipe.encode_prompt([PROMPT])))
assert context.shape == (2, 77, 128)

scheduler.set_timesteps(STEPS)
noise = Generator(SEED).randn((1, 4, 16, 16))
assert abs(scheduler.init_noise_sigma - scheduler.sigmas[0]) < 1e-6
x = noise * scheduler.init_noise_sigma
for i, t in enumerate(scheduler.timesteps):
    x_in = scheduler.scale_model_input(x, t)
    np.testing.assert_allclose(x_in, x / np.sqrt(scheduler.sigmas[i] ** 2 + 1), rtol=1e-5)
    u, c = np.split(pipe.unet(np.concatenate((x_in, x_in)), t, context), 2)
    x = scheduler.step(u + GUIDANCE * (c - u), t, x).prev_sample

image = pipe.to_images(x)[0]
image

# %% [markdown]
# The same in one line, bit for bit. And with the two halves one after the other, in half the memory, equal but for rounding.

# %%
options = dict(num_inference_steps=STEPS, guidance_scale=GUIDANCE, seed=SEED, output_type="latent")
np.testing.assert_array_equal(pipe(PROMPT, **options).images, x)
two_passes = pipe(PROMPT, two_passes=True, **options).images
assert np.abs(two_passes - x).max() < 1e-3

corner = np.asarray(image)[:6, :6].reshape(-1, 3).mean(axis=0)
print("mean colour of the upper left corner:", corner.round())
assert corner[2] > corner[0] + 30  # it is blue

# %% [markdown]
# With the official weights the noise has 64×64 places; these are the first eight numbers of seed 32.

# %%
first = [-1.7415627, -0.36350328, 0.98032767, -1.7387018, 0.35303196, -0.20259109, -0.5070606, 0.21246785]
np.testing.assert_allclose(Generator(32).randn((1, 4, 64, 64)).ravel()[:8], first, atol=1e-6)

# %% tags=["official"]
if folder := os.environ.get("MINISD_SD14"):
    official = StableDiffusionPipeline.from_pretrained(folder)
    official.scheduler = LMSDiscreteScheduler.from_config(official.scheduler.config)
    official("a photograph of an astronaut riding a horse", num_inference_steps=100, seed=32).images[0].save("astronaut.png")

# %% [markdown]
# ## 5. LoRA
#
# The notebook that this lesson follows has LoRA in its title and no LoRA in its code. It is one equation: instead of a new weight W′ store two thin
# matrices, $W' = W + \frac{\alpha}{r} B A$. With rank r = 1 a weight of 128×192 numbers becomes 128 + 192. Below a file is written by hand, loaded,
# and the weight compared with the equation.

# %%
W = pipe.unet.params.mid_block.attentions[0].transformer_blocks[0].attn2.to_v.weight
out, inside = W.shape
A, B = (0.2 * Generator(seed).randn(shape) for seed, shape in ((1, (1, inside)), (2, (out, 1))))
kept = W.copy()
with tempfile.TemporaryDirectory() as folder:
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
    save_file({f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}, Path(folder, "tiny_lora.safetensors"))
    pipe.load_lora_weights(Path(folder, "tiny_lora.safetensors"))

changed = pipe.unet.params.mid_block.attentions[0].transformer_blocks[0].attn2.to_v.weight
np.testing.assert_allclose(changed, kept + B @ A, atol=1e-6)
print(f"‖ΔW‖/‖W‖ = {np.linalg.norm(B @ A) / np.linalg.norm(kept):.3f}")
assert np.abs(pipe.unet(x_in, t, context[1:]) - c).max() > 1e-3  # another answer of the last step's UNet

pipe.unload_lora_weights()
np.testing.assert_array_equal(pipe.unet.params.mid_block.attentions[0].transformer_blocks[0].attn2.to_v.weight, kept)

# %% [markdown]
# ## Exercises
#
# 1. Swap the order of the two prompts in `context` without changing the line `u, c = …`. What does the picture show, and which guidance scale would
#    undo the swap?
# 2. Pass `order=1` to `scheduler.step`. That is Euler's method. How many steps does it need until its picture is as near to a 50-step run as LMS
#    with 6?
# 3. Print the weights of the last steps of a 50-step run (`i = 46 … 48`). Some are much larger than their sum. What does that do to an error of the
#    UNet?
