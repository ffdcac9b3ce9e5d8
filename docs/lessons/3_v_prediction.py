# %% [markdown]
# # Lesson 3 · A pipeline of our own, and v-prediction
#
# Stable Diffusion 2 changed three things: another text encoder, another padding, and a UNet that predicts neither noise nor picture but the
# **velocity** v. The model inside minisd predicts v too. In this lesson the whole pipeline is written again in thirty lines; in the end it must
# give the pipeline's numbers. Before that: is the UNet a U? And what is a scheduler good for?
#
# Cells marked `official` need official files: `MINISD_CLIP_TOKENIZER`, `MINISD_SD14` or `MINISD_SD21` name their folder.

# %%
import json
import math
import os
from pathlib import Path

import numpy as np

import minisd
from minisd import AutoencoderKL, CLIPTokenizer, DDIMScheduler, Generator, StableDiffusionPipeline, UNet2DConditionModel, trace, viz
from minisd.checkpoint import component_shapes
from minisd.config import UNetConfig, VAEConfig
from minisd.experiments import without_scheduler
from minisd.params import Params
from minisd.prompts import lerp, slerp

pipe = StableDiffusionPipeline.from_pretrained("tiny")
PROMPT, SEED = "a penguin on a purple background", 42

# %% [markdown]
# ## 1. Padding with an exclamation mark
#
# SD 1 fills the 77 places up with the end token. SD 2 fills them with id 0, which is the token `!`. Two files of the official folder disagree about
# it: `tokenizer_config.json` says the end token, `special_tokens_map.json` says `!`, and the second one is right. No mask hides the padding from
# the UNet, so the wrong file changes the picture. And since `!` has become a special token, a real `!` in a prompt turns into 0 as well.


# %%
def padded_with(vocabulary_folder, pad_token: str) -> CLIPTokenizer:
    """A tokenizer with the vocabulary of this folder and this padding."""
    folder = Path(vocabulary_folder)
    folder = folder if (folder / "vocab.json").exists() else folder / "tokenizer"
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    return CLIPTokenizer(json.loads((folder / "vocab.json").read_text(encoding="utf-8")), merges, {"pad_token": pad_token}, {}, 77)


folder = Path(minisd.__file__).parent / "weights" / "tokenizer"
sd1, sd2 = padded_with(folder, "<|endoftext|>"), padded_with(folder, "!")
assert sd1(PROMPT).input_ids[0, -1] == sd1.eos_token_id and sd2(PROMPT).input_ids[0, -1] == 0
assert (sd1(PROMPT).input_ids != sd2(PROMPT).input_ids).sum() == 77 - 8
assert sd2("a cat!", padding=False).input_ids[0, -2] == 0

right, wrong = (pipe.text_encoder(tokenizer(PROMPT).input_ids) for tokenizer in (sd1, sd2))
np.testing.assert_array_equal(right[:, :7], wrong[:, :7])  # causal: the prompt itself is untouched
print(f"the padding's vectors differ by {np.linalg.norm(right - wrong) / np.linalg.norm(right):.0%}")
assert np.linalg.norm(right - wrong) > 0.1 * np.linalg.norm(right)

# %% tags=["official"]
if folder := os.environ.get("MINISD_CLIP_TOKENIZER") or os.environ.get("MINISD_SD14"):
    ship = "painting depicting the sea, sunrise, ship, artstation, 4k, concept art"
    ids = [49406, 3086, 24970, 518, 2102, 267, 5610, 267, 1158, 267, 1486, 2631, 267, 275, 330, 267, 6353, 794, 49407]
    assert padded_with(folder, "!")(ship).input_ids[0].tolist() == ids + [0] * (77 - len(ids))
    assert padded_with(folder, "<|endoftext|>")(ship).input_ids[0].tolist() == ids + [49407] * (77 - len(ids))
if folder := os.environ.get("MINISD_SD21"):
    assert CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer").pad_token_id == 0

# %% [markdown]
# ## 2. What a prompt looks like
#
# 77 rows, one for each token, a column for each channel. The picture has three parts: the start token with its few very large values, the words,
# and the padding, where most rows are nearly the same.

# %%
context = pipe.encode_prompt([PROMPT])
picture = viz.embedding(context)
assert picture.height == 77 * 8
from_row_to_row = np.abs(np.diff(context[0], axis=0)).mean(axis=-1)
assert np.median(from_row_to_row[8:]) < np.median(from_row_to_row[:7])
picture

# %% [markdown]
# Between two prompts there are others: along the straight line (`lerp`), or along the arc that keeps the length (`slerp`). Both begin and end at
# the prompts.

# %%
other = pipe.encode_prompt(["a house on a purple background"])
halfway = lerp(context, other, 0.5)
np.testing.assert_allclose(halfway, (context + other) / 2, rtol=1e-5, atol=1e-6)
for between in (lerp, slerp):
    np.testing.assert_allclose(between(context, other, 0.0), context, atol=1e-5)
    np.testing.assert_allclose(between(context, other, 1.0), other, atol=1e-5)
lengths = [np.linalg.norm(between(context, other, 0.5), axis=-1).mean() for between in (lerp, slerp)]
assert lengths[0] < lengths[1]  # the chord is shorter than the arc

# %% [markdown]
# ## 3. Is it a U?
#
# A UNet of Stable Diffusion's shape, a fortieth as wide and with random weights: it needs no download, and its `trace` shows every size. Multiply
# the channels by 40 and the sides by 2 and you have the official table.


# %%
def random_model(cls, config):
    """A model with the config's shapes and small random weights."""
    random = np.random.default_rng(0)
    tensors = {name: (0.05 * random.standard_normal(shape)).astype("float32") for name, shape in component_shapes(config).items()}
    return cls(config, Params.from_state_dict(tensors, path=cls.component))


U = random_model(UNet2DConditionModel, UNetConfig(block_out_channels=(8, 16, 32, 32), norm_num_groups=4, attention_head_dim=4, cross_attention_dim=8))
with trace("unet.conv_in", "unet.down_blocks.?", "unet.mid_block", "unet.up_blocks.?", "unet.conv_out") as seen:
    U(np.zeros((2, 4, 32, 32), "float32"), 1, np.zeros((2, 3, 8), "float32"))
table = []
for name in seen:
    B, C, H, W = seen[name].shape
    table.append((C if name == "unet.conv_out" else 40 * C, 2 * H))
    print(f"{name:20} {table[-1][0]:5} channels, {table[-1][1]:2} × {table[-1][1]}")
assert table == [(320, 64), (320, 32), (640, 16), (1280, 8), (1280, 8), (1280, 8), (1280, 16), (1280, 32), (640, 64), (320, 64), (4, 64)]
assert min(size for _, size in table) == 8 and table[0][1] == table[-1][1]  # down, and up again

# %% [markdown]
# The decoder of the VAE is a ladder: three of its blocks double the size. Again a thirty-second as wide, and here at a quarter of the size.

# %%
vae = random_model(AutoencoderKL, VAEConfig(
    block_out_channels=(4, 8, 16, 16), norm_num_groups=2, layers_per_block=2,
    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
))  # fmt: skip
with trace("vae.decoder.conv_in", "vae.decoder.mid_block", "vae.decoder.up_blocks.?") as seen:
    vae.decode(np.zeros((1, 4, 16, 16), "float32"))
ladder = [(32 * C, 4 * H) for _, C, H, _ in (seen[name].shape for name in seen)]
assert ladder == [(512, 64), (512, 64), (512, 128), (512, 256), (256, 512), (128, 512)]

# %% [markdown]
# The number between latents and UNet stands in the VAE's config, but not in everyone's: SD 2.1's file has no `scaling_factor`, SD 1.4's no
# `norm_num_groups`. The defaults are part of the format.

# %%
assert VAEConfig().scaling_factor == 0.18215 and VAEConfig().norm_num_groups == 32
assert pipe.vae.config.scaling_factor != 0.18215  # this model says its own

# %% [markdown]
# ## 4. v, x0 and ε
#
# With $x_t = a\,x_0 + s\,\varepsilon$, $a = \sqrt{\bar\alpha}$, $s = \sqrt{1-\bar\alpha}$, the velocity is $v = a\,\varepsilon - s\,x_0$: x and v
# are the same pair (x0, ε), turned by an angle. Turning back, $x_0 = a\,x - s\,v$ and $\varepsilon = a\,v + s\,x$. Nothing is divided by a, which
# is nearly 0 at the start: that is why v-models may begin with pure noise.

# %%
a, s = math.sqrt(0.3), math.sqrt(0.7)
clean, noise = Generator(0).randn((2, 1, 4, 8, 8))
x, v = a * clean + s * noise, a * noise - s * clean
np.testing.assert_allclose(a * x - s * v, clean, atol=1e-6)
np.testing.assert_allclose(a * v + s * x, noise, atol=1e-6)

ddim = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
                     clip_sample=False, set_alpha_to_one=False, steps_offset=1)  # fmt: skip
ddim.set_timesteps(50)
assert ddim.timesteps[:2].tolist() == [981, 961] and ddim.timesteps[-1] == 1

# %% [markdown]
# DDIM's step: see x0 and ε, then mix them again with less noise. The last step goes to t = −19, which is in no table. What noise is left there? The
# SD 2 config says that of the first level (`set_alpha_to_one: false`, ᾱ = 0.99915); one from-scratch implementation says none. The difference is a
# trace of ε: 0.0292 times it.



# %%
def alpha(t: int) -> float:
    return float(ddim.alphas_cumprod[max(t, 0)])


for t in (981, 501, 1):
    x0, eps = ddim.predict(v, t, x)
    by_hand = math.sqrt(alpha(t - 20)) * x0 + math.sqrt(1 - alpha(t - 20)) * eps
    np.testing.assert_allclose(ddim.step(v, t, x).prev_sample, by_hand, rtol=1e-5, atol=1e-5)

to_one = DDIMScheduler.from_config(ddim.config, set_alpha_to_one=True)
to_one.set_timesteps(50)
kept, dropped = (scheduler.step(v, 1, x).prev_sample for scheduler in (ddim, to_one))
x0, eps = ddim.predict(v, 1, x)
trace_of_noise = math.sqrt(1 - alpha(0))
assert f"{trace_of_noise:.4f}" == "0.0292"
np.testing.assert_allclose(kept - dropped, (math.sqrt(alpha(0)) - 1) * x0 + trace_of_noise * eps, atol=1e-5)

# %% [markdown]
# ## 5. The pipeline in thirty lines
#
# Height and width in this order, for arrays are rows × columns. A slide of the talk that this lesson follows had them swapped; square pictures
# never notice.


# %%
def ours(prompt: str, seed: int, steps: int, guidance: float = 7.5, height: int = 64, width: int = 64):
    """Text to latents with nothing but the parts and the formulas above."""
    texts = np.concatenate([pipe.text_encoder(pipe.tokenizer(text).input_ids) for text in ("", prompt)])
    betas = np.linspace(0.00085**0.5, pipe.scheduler.config.beta_end**0.5, 1000) ** 2
    bars = np.cumprod(1 - betas)
    stride = 1000 // steps
    f = pipe.vae.config.downscale
    x = Generator(seed).randn((1, 4, height // f, width // f))
    for t in range((steps - 1) * stride + 1, 0, -stride):
        bar, after = bars[t], bars[max(t - stride, 0)]
        uncond, cond = np.split(pipe.unet(np.concatenate((x, x)), t, texts), 2)
        v = uncond + guidance * (cond - uncond)
        x0 = float(np.sqrt(bar)) * x - float(np.sqrt(1 - bar)) * v
        eps = float(np.sqrt(bar)) * v + float(np.sqrt(1 - bar)) * x
        x = float(np.sqrt(after)) * x0 + float(np.sqrt(1 - after)) * eps
    return x


mine = ours(PROMPT, SEED, steps=5)
theirs = pipe(PROMPT, seed=SEED, num_inference_steps=5, output_type="latent").images
print(f"relative difference {np.linalg.norm(mine - theirs) / np.linalg.norm(theirs):.1e}")
assert np.linalg.norm(mine - theirs) < 1e-3 * np.linalg.norm(theirs)
pipe.to_images(mine)[0]

# %% [markdown]
# A model can be run at sizes it was not trained for, since convolutions and attention do not care: SD 2's 768-pixel model at 512, ours at 48 × 80.
# What it paints there is another question.

# %%
wide = pipe(PROMPT, seed=SEED, num_inference_steps=2, height=48, width=80)
assert wide.images[0].size == (80, 48)  # PIL says width first
assert ours(PROMPT, SEED, steps=2, height=48, width=80).shape == (1, 4, 12, 20)

# %% [markdown]
# ## 6. What is the scheduler for?
#
# Take it away: n times subtract the same share of the predicted noise, `x −= ratio · ε / n`. The ratio 1.5 was found by trial. A picture appears,
# its contrast does not: near the end there is less noise than the step takes away, at the start there is more. The scheduler knows how much there
# is.

# %%
texts = np.concatenate((pipe.encode_prompt([""]), context))
pipe.scheduler.set_timesteps(5)
noise = Generator(SEED).randn((1, 4, 16, 16))
*_, bare = without_scheduler(pipe, noise, texts, ratio=1.5)
print(f"deviation of the latents: {theirs.std():.2f} with a scheduler, {bare.std():.2f} without, {noise.std():.2f} of the noise")
alike = [float(np.corrcoef(y.ravel(), theirs.ravel())[0, 1]) for y in (noise, bare)]
print(f"correlation with the picture: noise {alike[0]:.2f}, without a scheduler {alike[1]:.2f}")
assert alike[1] > alike[0] + 0.2 and bare.std() < theirs.std()
viz.grid([pipe.to_images(y)[0] for y in (theirs, bare)], columns=2)

# %% [markdown]
# ## Exercises
#
# 1. Change one sign in `ours` (say in the line of `eps`) and look at the picture. Then find out with which sign `v` would be ε if `bar` were 0.
# 2. Repeat section 1 with the whole pipeline: give `prompt_embeds` made with the wrong padding. Can you see it in the picture? Can you see it with
#    guidance 1?
# 3. Try ratios from 0.5 to 3 in section 6 and draw the correlation against the ratio with `viz.line_plot`. Is 1.5 the best for this model?
