"""Where the picture looks at which word: the cross-attention of the UNet, averaged over heads, layers and steps.

    image, maps = word_maps(pipe, "a cat on a blue background", num_inference_steps=10, seed=1)
    attention_picture(image, maps).save("attention.png")

Each pixel distributes a weight of 1 over the 77 tokens of the prompt; most of it goes to the start token, which says nothing. After
Tang et al., "What the DAAM", arXiv:2210.04885.
"""

import numpy as np

from ..backend import to_numpy
from ..errors import UsageError
from ..tracing import listen
from .pictures import captioned, enlarged, hot, picture


class _CrossAttention:
    """A listener that sums up the weights of the prompt's pass, for each size of the picture inside the UNet: {S: [T, S]}."""

    patterns = ("unet.*.attn2/probs",)

    def __init__(self):
        self.sums, self.calls = {}, 0

    def __call__(self, event):
        if event.kind == "tap" and event.name.endswith(".attn2/probs"):
            probs = to_numpy(event.output)  # [B, N, S, T]
            if len(probs) > 2:
                raise UsageError(f"attention of a batch of {len(probs)} rows", "the maps are those of one picture", "give one prompt, one picture")
            weights = probs[-1].mean(axis=0).T.astype("float64")  # with guidance the empty prompt is row 0
            self.sums[weights.shape[1]] = self.sums.get(weights.shape[1], 0.0) + weights
            self.calls += 1


def token_maps(pipe, prompt: str, **options):
    """Makes a picture, and for each of the 77 tokens the share of attention that each latent pixel gave to it.

    options: of `pipe(...)`, but for two_passes        -> (PIL image, float64 [T, H, W]); over T the maps sum to 1
    """
    options.pop("output_type", None)
    with listen(_CrossAttention()) as attention:
        image = pipe(prompt, **options).images[0]
    if not attention.calls:
        raise UsageError("this UNet has no cross-attention", "no layer is called attn2", "use a model that is steered by text")
    f = pipe.vae.config.downscale
    H, W = image.height // f, image.width // f
    return image, sum(_enlarge(weights, H, W) for weights in attention.sums.values()) / attention.calls


def _enlarge(weights: np.ndarray, H: int, W: int) -> np.ndarray:
    """Weights of a smaller picture, halved some times and rounded up, at full size: [T, S] -> [T, H, W]."""
    h, w = H, W
    while h * w > weights.shape[1]:
        h, w = -(-h // 2), -(-w // 2)
    small = weights.reshape(-1, h, w)
    return small[:, np.arange(H) * h // H][:, :, np.arange(W) * w // W]


def word_maps(pipe, prompt: str, **options):
    """`token_maps` by word: a word of several tokens gets their sum.        -> (PIL image, [(word, float64 [H, W]), …])"""
    image, maps = token_maps(pipe, prompt, **options)
    words = words_of(pipe.tokenizer, pipe.maybe_convert_prompt(prompt), len(maps))
    return image, [(word, maps[places].sum(axis=0)) for word, places in words]


def words_of(tokenizer, prompt: str, limit: int = 77) -> list:
    """The words of a prompt, and at which places their tokens stand: [("a", [1]), ("skateboarding", [2, 3]), …]; each learned token is a word."""
    words, learned = [], tokenizer.added_tokens()
    begins = True
    for place, (_, token) in enumerate(tokenizer.table(prompt)[1:-1], 1):
        if place == limit - 1:  # the end token stands there
            break
        if begins or token in learned:
            words.append(("", []))
        word, places = words[-1]
        words[-1] = word + token.removesuffix("</w>"), [*places, place]
        begins = token.endswith("</w>") or token in learned
    return words


def attention_picture(image, maps: list, columns: int = 4):
    """The picture, and for each word a sheet on which it glows where it was looked at: half grey picture, half map.

    The brightest spot of every word is white: how much attention it got in all stands in the caption.        -> PIL image
    """
    from PIL import Image

    image = enlarged(image)
    dim, sheets = image.convert("L").convert("RGB"), [("", image)]
    for word, weights in maps:
        glow = picture(hot(weights)).resize(image.size, Image.Resampling.BILINEAR)
        sheets.append((f"{word}  {weights.mean():.1%}", Image.blend(dim, glow, 0.5)))
    return captioned(sheets, columns)
