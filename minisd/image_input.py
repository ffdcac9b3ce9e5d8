"""Pictures and masks that come in, from a file, a PIL image or an array, as the float arrays that the models take.

What happens to which kind of picture is one table in docs/editing.md. Arithmetic and order are those of diffusers' `VaeImageProcessor`:
resized in 8 bits by Lanczos, then /255, then 2x − 1. Nothing in a file is believed: seven formats, 64 megapixels, no network.
"""

import logging
import os
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .errors import MinisdError, ModelFileError, UsageError

log = logging.getLogger("minisd")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
MAX_PIXELS = 64_000_000
WHITE, BLACK = (255, 255, 255, 255), (0, 0, 0, 255)

# ----- from a file to an 8-bit PIL image -----------------------------------------------------------------------------------


def load_image(image):
    """A path or a PIL image as an upright RGB PIL image: transparent parts over white, 16 bits scaled to 8, of several frames the first.

    Raises UsageError for what is no local file, ModelFileError for a file that is no picture, is damaged, or has over 64 megapixels.
    """
    with _decoding(image):
        return _upright(image, behind=WHITE).convert("RGB")


def load_mask(mask):
    """A path or a PIL image as an upright 8-bit PIL image without alpha, transparent parts over black; its mode otherwise kept.

    A mask is resized before it becomes grey, as in diffusers, so its colours must still be there.
    """
    with _decoding(mask):
        return _upright(mask, behind=BLACK)


def _upright(image, behind: tuple):
    from PIL import Image, ImageOps

    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)
    else:
        with _open(image) as opened:
            image = ImageOps.exif_transpose(opened)
    if image.mode[0] in "IF":
        image = Image.fromarray(to_8_bits(np.asarray(image)))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, behind), image.convert("RGBA")).convert("RGB")
    return image


@contextmanager
def _open(path):
    """The opened picture, looked at before its pixels are read."""
    from PIL import Image

    name = os.fspath(path)
    if not isinstance(name, str) or "://" in name:
        raise UsageError(f"{name!r} is no local file", "nothing is fetched from the network", "save the picture first, and give its path")
    if not Path(name).is_file():
        what = "is a folder" if Path(name).is_dir() else "does not exist"
        raise UsageError(f"the picture {name} {what}", "", "check the path")
    with Image.open(name, formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise _too_large(name, f"{image.width}×{image.height} = {image.width * image.height / 1e6:,.0f} megapixels")
        if image.format != "MPO" and getattr(image, "is_animated", False):  # an MPO is a camera's JPEG with a preview behind it
            log.info("%s holds several pictures: the first one is used", name)
        profile = image.info.get("icc_profile") or b""
        if profile and b"sRGB" not in profile and "sRGB".encode("utf-16-be") not in profile:
            log.info("%s has a colour profile of its own: its numbers are read as sRGB, as diffusers does", name)
        yield image


@contextmanager
def _decoding(source):
    """Whatever a decoder trips over in a damaged file becomes a ModelFileError that names the file."""
    from PIL import Image, UnidentifiedImageError

    name = getattr(source, "filename", None) or (source if isinstance(source, (str, os.PathLike)) else "the picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except MinisdError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, str(error)) from None
    except UnidentifiedImageError:
        raise ModelFileError(f"{name} is no picture", f"minisd reads {', '.join(FORMATS)}, whatever the suffix says", "convert it to PNG") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, … on damaged files
        raise ModelFileError(f"{name} cannot be read", f"the file is damaged: {error}", "save the picture again, as PNG") from None


def _too_large(name, size: str) -> ModelFileError:
    return ModelFileError(f"{name} is too large", f"{size}; the limit is {MAX_PIXELS / 1e6:.0f} megapixels", "make it smaller first")


def to_8_bits(x: np.ndarray) -> np.ndarray:
    """Grey of 16 bits, round(x/257), or of 0 … 1 in float, round(255 x), as uint8 [H, W]. Pillow alone would cut it off at 255."""
    if x.dtype.kind == "f" and np.isfinite(x).all() and 0.0 <= x.min() and x.max() <= 1.0:
        return np.rint(x * 255).astype("uint8")
    if x.dtype.kind in "iu" and 0 <= x.min() and x.max() <= 65535:
        return np.rint(x / 257).astype("uint8")
    limits = "0 … 1" if x.dtype.kind == "f" else "0 … 65535"
    raise UsageError(f"a grey picture of {x.dtype} with values {x.min():g} … {x.max():g}", f"they must be in {limits}", "scale them first")


# ----- to the arrays that the models take ----------------------------------------------------------------------------------


def read_pictures(image, latent_channels: int = 4):
    """The pictures of a run, read and checked: a list of RGB PIL images and float arrays [H, W, 3] in 0 … 1.

    image: a path, a PIL image, an array ([H, W, 3] or [B, H, W, 3], uint8 or float in 0 … 1), a list of these; or latents, float
    [B, 4, h, w] at the UNet's scale, which are returned as they are.
    """
    if is_latents(image, latent_channels):
        return image
    return [_read(one, load_image) for one in _list(image, "image", grey=False)]


def read_masks(mask) -> list:
    """The masks of a run, read and checked: a list of PIL images and float arrays [H, W] in 0 … 1.

    mask: as in `read_pictures`, with or without colours; arrays [H, W], [H, W, 1], [B, H, W] or [B, H, W, 1], also of bool.
    """
    return [_read(one, load_mask) for one in _list(mask, "mask_image", grey=True)]


def is_latents(image, latent_channels: int = 4) -> bool:
    """Whether it is an array [B, 4, h, w] of latents rather than of pixels [B, H, W, 3]."""
    return getattr(image, "ndim", 0) == 4 and image.dtype.kind == "f" and image.shape[1] == latent_channels and image.shape[3] not in (1, 3)


def size_of(picture) -> tuple[int, int]:
    """(height, width) of a PIL image or an array."""
    return picture.shape[:2] if isinstance(picture, np.ndarray) else (picture.height, picture.width)


def picture_size(pictures, height: int | None = None, width: int | None = None, multiple: int = 8) -> tuple[int, int]:
    """(height, width) of a run: what is asked for, else that of the first picture, cut down to multiples as in diffusers."""
    own = tuple(multiple * n for n in pictures.shape[2:]) if isinstance(pictures, np.ndarray) else size_of(pictures[0])
    asked = [wanted if wanted is not None else size - size % multiple for wanted, size in zip((height, width), own)]
    if 0 in own or None in (height, width) and not all(asked):
        raise UsageError(f"the picture is {own[1]}×{own[0]} pixels", f"one latent stands for {multiple}×{multiple} of them",
                         "give a size to enlarge it to: height and width, or -W and -H")  # fmt: skip
    return tuple(asked)


def preprocess_image(pictures, height: int, width: int) -> np.ndarray:
    """Pixels in −1 … 1, float32 [B, 3, H, W], of what `read_pictures` gave; latents stay as they are.        diffusers `VaeImageProcessor`"""
    return pictures if isinstance(pictures, np.ndarray) else 2.0 * _stack(pictures, height, width, channels=3) - 1.0


def preprocess_mask(masks: list, height: int, width: int) -> np.ndarray:
    """float32 [B, 1, H, W] of 0 (kept) and 1 (repainted): grey of 128 … 255, or of 0.5 … 1 in float, is 1."""
    return (_stack(masks, height, width, channels=1) >= 0.5).astype("float32")


def shrink_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """The mask at the latents' size, each taking the pixel in its upper left corner.        [B, 1, H, W] -> [B, 1, h, w]"""
    return nearest(nearest(mask, height, axis=2), width, axis=3)


def check_masks(masks: list, pictures, mask: np.ndarray, multiple: int = 8, notes: bool = True):
    """Refuses masks that do not lie over their pictures, or repaint nothing. mask: preprocessed. notes: what is only odd is logged."""
    if not isinstance(pictures, np.ndarray):
        for (h, w), (H, W) in zip(map(size_of, masks), map(size_of, pictures)):
            if abs(h * W - w * H) > max(w, W):  # the proportions differ by more than a pixel
                raise UsageError(f"the mask is {w}×{h}, the picture {W}×{H}", "stretched over it, white would lie elsewhere", "give both one size")
            if (h, w) != (H, W) and notes:
                log.info("the mask of %d×%d is resized with the picture of %d×%d", w, h, W, H)
    small = shrink_mask(mask, mask.shape[2] // multiple, mask.shape[3] // multiple)
    for pixels, latents in zip(mask, small):
        if not pixels.any():
            raise UsageError("the mask is empty", "white is what is repainted, and nothing is white", "paint white what should change, or invert it")
        if not latents.any():
            why = f"the mask is sampled once for each {multiple}×{multiple} pixels, and its white parts fall in between"
            raise UsageError("the mask's white parts are too small", why, "paint them larger")
        if pixels.all() and notes:
            log.warning("the mask is white everywhere: the whole picture is repainted")


def _list(source, name: str, grey: bool) -> list:
    """The single pictures in `source`: paths, PIL images, and arrays [H, W, 3], or [H, W] if `grey`."""
    if isinstance(source, (list, tuple)):
        if not source:
            raise UsageError(f"{name} is an empty list", "", "give at least one picture")
        return [one for item in source for one in _list(item, name, grey)]
    if not hasattr(source, "ndim"):
        if source is None or not isinstance(source, (str, os.PathLike)) and not hasattr(source, "convert"):
            raise UsageError(f"{name} is {source!r}", "a picture is a path, a PIL image or an array", f"give {name}=Image.open(…)")
        return [source]
    if grey and source.ndim in (3, 4) and source.shape[-1] == 1:
        source = source[..., 0]
    ndim = 2 if grey else 3
    batch = list(source) if source.ndim == ndim + 1 else [source]
    if not source.size or source.ndim not in (ndim, ndim + 1) or not grey and source.shape[-1] != 3:
        wanted = "[H, W] or [B, H, W]" if grey else "[H, W, 3] or [B, H, W, 3]; latents are [B, 4, H/8, W/8]"
        raise UsageError(f"{name} has the shape {list(source.shape)}", f"pictures as arrays are {wanted}", "transpose it, or give a PIL image")
    return [_checked(np.asarray(one), name) for one in batch]


def _checked(x: np.ndarray, name: str) -> np.ndarray:
    """An array in 0 … 1 as float32 for the array route, or uint8."""
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind in "fb" and np.isfinite(x).all() and 0.0 <= x.min() and x.max() <= 1.0:
        return x.astype("float32")
    limits = f" with values {x.min():g} … {x.max():g}" if x.dtype.kind in "fiu" else ""
    raise UsageError(f"{name} is an array of {x.dtype}{limits}", "arrays are uint8, or float in 0 … 1", "pixels in −1 … 1 become (x + 1)/2")


def _read(one, load):
    """Files, PIL images and 8-bit arrays by `load`; float arrays stay."""
    from PIL import Image

    if isinstance(one, np.ndarray):
        return load(Image.fromarray(one)) if one.dtype == np.uint8 else one
    return load(one)


def _stack(pictures: list, height: int, width: int, channels: int) -> np.ndarray:
    """Resized and in 0 … 1: float32 [B, channels, H, W]."""
    planes = [_resized(picture, height, width, channels) for picture in pictures]
    return np.stack([plane.reshape(height, width, channels).transpose(2, 0, 1) for plane in planes])


def _resized(picture, height: int, width: int, channels: int) -> np.ndarray:
    """PIL images by Lanczos, then grey for a mask; float arrays by the nearest pixel, as torch's `interpolate`."""
    from PIL import Image

    H, W = size_of(picture)
    if channels == 3 and not 0.5 <= (width * H) / (height * W) <= 2.0:  # a mask has the proportions of its picture
        log.warning("a picture of %d×%d is stretched to %d×%d: crop it first to keep its proportions", W, H, width, height)
    if isinstance(picture, np.ndarray):
        return nearest(nearest(picture, height, axis=0), width, axis=1)
    picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    picture = picture.convert("L") if channels == 1 else picture
    return np.asarray(picture).astype("float32") / np.float32(255)


def nearest(x: np.ndarray, size: int, axis: int) -> np.ndarray:
    """`size` samples along an axis, ⌊i · old/size⌋ in float32: what torch's `interpolate(mode="nearest")` takes."""
    old = x.shape[axis]
    index = np.arange(size, dtype=np.float32) * (np.float32(old) / np.float32(size))
    return x.take(np.minimum(index.astype(np.int64), old - 1), axis=axis)
