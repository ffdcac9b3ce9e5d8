"""Arrays as pictures, checked at known pixels."""

import numpy as np
import pytest
from PIL import Image

from minisd import viz
from minisd.errors import UsageError
from minisd.viz import pictures


def test_grey_has_zero_in_the_middle():
    assert viz.grey(np.array([-2.0, 0.0, 1.0, 2.0])).tolist() == [0, 128, 191, 255]
    assert viz.grey(np.array([-2.0, 0.0, 9.0]), limit=4).tolist() == [64, 128, 255]
    assert viz.grey(np.zeros(3, "float32")).tolist() == [128, 128, 128]


def test_diverging_is_blue_below_and_red_above():
    blue, pale, white, red = viz.diverging(np.array([-1.0, -0.5, 0.0, 1.0], "float32"))
    assert white.tolist() == [255, 255, 255]
    for shade, expected in ((blue, pictures.NEGATIVE), (red, pictures.POSITIVE), (pale, 0.5 + 0.5 * np.array(pictures.NEGATIVE))):
        np.testing.assert_allclose(shade, 255 * np.array(expected), atol=0.501)
    assert blue[2] > blue[0] and red[0] > red[2]


def test_hot_goes_through_red_and_yellow():
    assert viz.hot(np.array([0, 1, 2, 3]) / 3).tolist() == [[0, 0, 0], [255, 0, 0], [255, 255, 0], [255, 255, 255]]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("shade", [viz.grey, viz.diverging, viz.hot])
def test_a_nan_is_no_colour(shade, bad):
    with pytest.raises(UsageError, match="range"):
        shade(np.array([0.0, bad]))


def test_latent_channels_are_two_by_two():
    x = np.zeros((1, 4, 3, 5), "float32")
    x[0, 1, 0, 4], x[0, 2, 2, 0], x[0, 3] = 2.0, -2.0, 1.0
    image = viz.latent_channels(x, scale=8)
    gap = pictures.GAP
    assert image.mode == "L" and image.size == (2 * 40 + gap, 2 * 24 + gap)
    assert image.getpixel((0, 0)) == 128  # channel 0
    assert image.getpixel((40, 0)) == 255  # the gap
    assert image.getpixel((40 + gap + 4 * 8, 0)) == image.getpixel((40 + gap + 39, 7)) == 255  # channel 1, one latent pixel
    assert image.getpixel((0, 24 + gap + 2 * 8)) == 0  # channel 2
    assert image.getpixel((83, 51)) == 191  # channel 3
    assert viz.latent_channels(x[0], scale=8).tobytes() == image.tobytes()


def test_one_picture_at_a_time():
    with pytest.raises(UsageError, match="one picture"):
        viz.latent_channels(np.zeros((2, 4, 3, 3), "float32"))
    with pytest.raises(UsageError, match="one prompt"):
        viz.embedding(np.zeros((2, 77, 8), "float32"))


def test_embedding_has_a_row_a_token_and_a_column_a_channel():
    x = np.zeros((1, 77, 128), "float32")
    x[0, 3, 5], x[0, 4, 5] = 1.0, -1.0
    image = viz.embedding(x, limit=1.0)
    assert image.size == (6 * 128, 8 * 77)
    assert image.getpixel((5 * 6, 3 * 8)) == tuple(viz.diverging(np.array([1.0]), 1.0)[0])
    assert image.getpixel((5 * 6 + 5, 4 * 8 + 7)) == tuple(viz.diverging(np.array([-1.0]), 1.0)[0])
    assert image.getpixel((6 * 6, 3 * 8)) == (255, 255, 255)


def test_one_large_value_does_not_fade_the_others():
    x = np.random.RandomState(0).standard_normal((77, 128))
    faded = x.copy()
    faded[0, 0] = 1000.0
    a, b = (np.asarray(viz.embedding(y)).astype(int) for y in (x, faded))
    assert np.abs(a[8:] - b[8:]).max() <= 1


def test_a_grid_goes_row_by_row():
    images = [Image.new("L", (6, 4), value) for value in (10, 20, 30)]
    sheet = viz.grid(images, columns=2, gap=2)
    assert sheet.size == (14, 10)
    assert [sheet.getpixel(p) for p in ((0, 0), (8, 0), (0, 6), (8, 6), (6, 0))] == [10, 20, 30, 255, 255]
    assert viz.grid(images, columns=9, gap=0).size == (18, 4)


@pytest.mark.parametrize("images", [[], [Image.new("L", (6, 4)), Image.new("L", (4, 6))]])
def test_a_grid_of_nothing_or_of_different_sizes_is_refused(images):
    with pytest.raises(UsageError, match="one or more pictures of one size"):
        viz.grid(images, columns=2)


def test_a_caption_is_dark_on_white_and_never_cut():
    plain = Image.new("RGB", (200, 10), (9, 200, 9))
    sheet = viz.caption(plain, "index 3: t = 751")
    assert sheet.size == (200, 10 + pictures.CAPTION) and sheet.getpixel((0, pictures.CAPTION)) == (9, 200, 9)
    strip = np.asarray(sheet)[: pictures.CAPTION]
    assert strip.min() < 60 and strip[:, 150:].min() == 255 and strip[0].min() == 255
    wide = np.asarray(viz.caption(plain.resize((4, 4)), "a much longer line than the picture is wide"))[: pictures.CAPTION]
    assert wide.shape[1] > 100 and wide[:, -2:].min() == 255 and wide[:, -12:].min() < 160


def test_captioned_pictures_share_the_width_of_the_widest():
    sheet = pictures.captioned([("a", Image.new("RGB", (8, 8))), ("a long caption", Image.new("RGB", (8, 8)))], columns=1)
    assert sheet.width == viz.caption(Image.new("RGB", (8, 8)), "a long caption").width


def test_small_pictures_are_enlarged_by_whole_numbers():
    image = Image.new("L", (50, 20))
    image.putpixel((49, 19), 255)
    large = pictures.enlarged(image, side=128)
    assert large.size == (150, 60) and large.getpixel((147, 57)) == 255 and large.getpixel((146, 57)) == 0
    assert pictures.enlarged(large, side=128).size == large.size
