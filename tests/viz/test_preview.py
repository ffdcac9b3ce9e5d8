"""The linear map from latents to colours: an exact fit where the decoder is linear, the right colours where it is not."""

from types import SimpleNamespace

import numpy as np
import pytest

from minisd.viz import Preview, fit_preview

MATRIX, OFFSET = np.array([[0.1, 0.2, -0.1], [0.0, -0.1, 0.1], [0.1, 0.0, 0.0], [0.05, 0.0, 0.1]]), np.array([0.1, -0.2, 0.0])


def linear_vae(scaling_factor: float = 0.5, f: int = 4):
    """A decoder that is a matrix, and enlarges each latent pixel f times."""

    def decode(z):
        rgb = np.einsum("bchw,cd->bdhw", z * scaling_factor, MATRIX) + OFFSET[:, None, None]
        return rgb.repeat(f, axis=2).repeat(f, axis=3)

    config = SimpleNamespace(latent_channels=4, downscale=f, scaling_factor=scaling_factor)
    return SimpleNamespace(config=config, dtype=np.dtype("float64"), decode=decode)


@pytest.mark.parametrize("f, scaling_factor", [(4, 0.5), (8, 0.18215)])
def test_a_linear_decoder_is_found_exactly(f, scaling_factor):
    preview = fit_preview(linear_vae(scaling_factor, f))
    np.testing.assert_allclose(preview.matrix, MATRIX, atol=1e-12)
    np.testing.assert_allclose(preview.offset, OFFSET, atol=1e-12)


def test_a_preview_is_its_equation_in_pixels():
    z = np.zeros((2, 4, 2, 3), "float32")
    z[1, 0, 1, 2] = 5.0
    first, second = Preview(MATRIX, OFFSET)(z, scale=4)
    assert first.size == (12, 8)
    background = tuple(np.rint((OFFSET / 2 + 0.5) * 255).astype(int))
    assert first.getpixel((11, 7)) == second.getpixel((7, 7)) == background
    assert second.getpixel((8, 4)) == second.getpixel((11, 7)) == tuple(np.rint(((OFFSET + 5 * MATRIX[0]) / 2 + 0.5) * 255).astype(int))


def test_previews_of_the_embedded_model_resemble_its_pictures(pipe):
    """Of pictures of four colours each: nearer to the decoded ones than any single colour is, by 3 dB at least; the same map every time."""
    preview, f = fit_preview(pipe.vae), pipe.vae.config.downscale
    np.testing.assert_array_equal(preview.matrix, fit_preview(pipe.vae).matrix)
    colours = np.random.RandomState(0).uniform(-1, 1, (8, 3, 2, 2)).astype("float32")
    x = pipe.vae.encode(colours.repeat(16, axis=2).repeat(16, axis=3)).mode() * pipe.vae.config.scaling_factor
    decoded = np.stack([np.asarray(image.reduce(f)) for image in pipe.to_images(x)]).astype(float)
    shown = np.stack([np.asarray(image) for image in preview(x)]).astype(float)
    error, spread = np.mean((shown - decoded) ** 2), np.mean((decoded - decoded.mean(axis=(1, 2), keepdims=True)) ** 2)
    assert error <= spread / 2
