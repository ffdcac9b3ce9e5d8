"""Arrays as pictures: grey for one channel, blue–white–red around zero, black–red–yellow–white for what is only positive.

    latent_channels(latents).save("latents.png")        # four grey pictures, 2×2
    embedding(pipe.encode_prompt(["a cat"])).save("prompt.png")
"""

import math

import numpy as np

from ..backend import to_numpy
from ..errors import UsageError
from ..image import unit_to_uint8

NEGATIVE, POSITIVE = (0.10, 0.30, 0.70), (0.75, 0.10, 0.15)  # the ends of `diverging`
GAP = 4  # pixels between the pictures of a grid
CAPTION = 18  # height of a line of text, in pixels


def grey(x, limit: float | None = None) -> np.ndarray:
    """−limit … limit as black … white, 0 in the middle; limit: max |x| by default.        [...] -> uint8 [...]"""
    x = to_numpy(x).astype("float64")
    return unit_to_uint8((0.5 + 0.5 * x / _limit(x, limit)).clip(0, 1))


def diverging(x, limit: float | None = None) -> np.ndarray:
    """1 − |v|·(1 − end), v = x/limit: white at 0, blue at −limit, red at limit.        [...] -> uint8 [..., 3]"""
    x = to_numpy(x).astype("float64")
    v = (x / _limit(x, limit)).clip(-1, 1)[..., None]
    return unit_to_uint8(1 - abs(v) * (1 - np.where(v < 0, NEGATIVE, POSITIVE)))


def hot(x, limit: float | None = None) -> np.ndarray:
    """0 … limit as black, red, yellow, white: (3v, 3v − 1, 3v − 2), v = x/limit.        [...] -> uint8 [..., 3]"""
    x = to_numpy(x).astype("float64")
    v = x[..., None] / _limit(x, limit)
    return unit_to_uint8((3 * v - np.arange(3, dtype="float64")).clip(0, 1))


def _limit(x: np.ndarray, limit: float | None) -> float:
    limit = float(np.max(np.abs(x), initial=0.0)) if limit is None else float(limit)
    if not 0.0 <= limit < math.inf:
        raise UsageError(f"the range of a picture is {limit}", "the array holds NaN or infinity, or the limit is no positive number", "give finite values")
    return limit or 1.0  # an array of zeros


def picture(pixels: np.ndarray, scale: int = 1):
    """uint8 [H, W] or [H, W, 3] -> a PIL image in which every value is a square of `scale` pixels."""
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(pixels.repeat(scale, axis=0).repeat(scale, axis=1)))


def latent_channels(latents, scale: int = 8, limit: float | None = None):
    """The channels of one latent picture as grey pictures side by side, 2×2 for four.        [C, H, W] or [1, C, H, W] -> PIL image

    The same grey is the same number in all channels: 0 in the middle, ±limit at the ends (by default the largest value there is).
    """
    x = to_numpy(latents)
    x = x[0] if x.ndim == 4 and len(x) == 1 else x
    if x.ndim != 3:
        raise UsageError(f"latents of the shape {list(x.shape)}", "one picture is drawn at a time", "give [C, H, W], such as latents[0]")
    shades = grey(x, limit)
    return grid([picture(channel, scale) for channel in shades], columns=math.ceil(math.sqrt(len(shades))))


def embedding(context, limit: float | None = None, height: int = 8, width: int | None = None):
    """The vectors of a prompt: a row for each token, a column for each channel, blue below 0 and red above.        [T, C] or [1, T, C] -> PIL image

    limit: the value of the full colours; by default 99 % of the values are smaller (the start token has some very large ones).
    height, width: pixels of one value; by default as wide as fits into 768 pixels.
    """
    from PIL import Image

    x = to_numpy(context)
    x = x[0] if x.ndim == 3 and len(x) == 1 else x
    if x.ndim != 2:
        raise UsageError(f"prompt vectors of the shape {list(x.shape)}", "one prompt is drawn at a time", "give [T, C], such as context[0]")
    limit = float(np.quantile(np.abs(x), 0.99)) if limit is None else limit
    width = max(1, 768 // x.shape[1]) if width is None else width
    return Image.fromarray(diverging(x, limit).repeat(height, axis=0).repeat(width, axis=1))


def enlarged(image, side: int = 128):
    """A small picture as many whole times larger as it takes to be `side` pixels wide."""
    from PIL import Image

    scale = math.ceil(side / image.width)
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def grid(images: list, columns: int, gap: int = GAP):
    """PIL images of one size, row by row, on white with a gap between them."""
    from PIL import Image

    if not images or any(image.size != images[0].size for image in images):
        raise UsageError(f"a grid of {len(images)} pictures of {len({i.size for i in images})} sizes", "", "give one or more pictures of one size")
    (w, h), columns = images[0].size, min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    mode = "L" if all(image.mode == "L" for image in images) else "RGB"
    sheet = Image.new(mode, (columns * (w + gap) - gap, rows * (h + gap) - gap), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * (w + gap), i // columns * (h + gap)))
    return sheet


def caption(image, text: str, width: int = 0):
    """The picture below a line of black text on white, not narrower than the text or `width`."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(12)
    width = max(width, image.width, math.ceil(font.getlength(text)) + 4)
    sheet = Image.new("RGB", (width, image.height + CAPTION), "white")
    ImageDraw.Draw(sheet).text((2, 2), text, fill="black", font=font)
    sheet.paste(image, (0, CAPTION))
    return sheet


def captioned(pictures: list, columns: int):
    """A grid of (text, PIL image) pairs, all as wide as the widest text needs."""
    width = max(caption(image, text).width for text, image in pictures)
    return grid([caption(image, text, width) for text, image in pictures], columns)
