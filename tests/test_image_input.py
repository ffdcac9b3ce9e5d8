"""Pictures that come in: every kind of file and array, what becomes of it, and what is refused; one test each."""

import logging
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minisd import image_input
from minisd.errors import ModelFileError, UsageError
from minisd.image_input import check_masks, load_image, load_mask, nearest, picture_size, preprocess_image, preprocess_mask, read_masks, read_pictures

from .edit_cases import mask, picture


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def saved(image: Image.Image, name: str = "a.png", **options) -> str:
    image.save(name, **options)
    return name


def pixels(image: Image.Image) -> list:
    return np.asarray(image).reshape(-1, 3).tolist()


# ----- kinds of files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix, loss", [("png", 0), ("bmp", 0), ("tiff", 0), ("ppm", 0), ("gif", 10), ("webp", 10), ("jpg", 10)])
def test_every_format(suffix, loss):
    loaded = load_image(saved(picture(), f"a.{suffix}"))
    assert loaded.mode == "RGB" and loaded.size == (79, 66)
    assert np.abs(np.asarray(loaded).astype(int) - np.asarray(picture())).mean() <= loss


def test_paths_pil_images_and_objects_are_the_same():
    name = saved(picture())
    for source in (name, Path(name), Image.open(name), picture()):
        np.testing.assert_array_equal(np.asarray(load_image(source)), np.asarray(picture()))


def test_exif_rotation_is_undone():
    image, exif = Image.new("RGB", (2, 1), "red"), Image.Exif()
    image.putpixel((1, 0), (0, 0, 255))
    exif[0x0112] = 6  # the camera was turned: the left of the file is the top of the picture
    upright = load_image(saved(image, exif=exif))
    assert upright.size == (1, 2) and pixels(upright) == [[255, 0, 0], [0, 0, 255]]
    assert load_mask("a.png").size == (1, 2)


def test_transparent_parts_are_white_and_in_a_mask_black():
    image = Image.new("RGBA", (3, 1), (10, 20, 30, 255))
    image.putpixel((1, 0), (10, 20, 30, 0))
    image.putpixel((2, 0), (0, 0, 0, 51))
    assert pixels(load_image(saved(image))) == [[10, 20, 30], [255, 255, 255], [204, 204, 204]]
    assert pixels(load_mask("a.png")) == [[10, 20, 30], [0, 0, 0], [0, 0, 0]]


def test_transparency_of_a_palette_and_of_grey():
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    assert pixels(load_image(saved(palette, transparency=1))) == [[255, 0, 0], [255, 255, 255]]
    assert pixels(load_image(Image.merge("LA", [Image.new("L", (1, 1), v) for v in (7, 0)]))) == [[255, 255, 255]]


def test_sixteen_bit_grey_is_scaled_and_not_cut_off():
    values = np.array([[0, 257, 128 * 257 - 100, 65535]], dtype="uint16")
    assert pixels(load_image(saved(Image.fromarray(values)))) == [[v] * 3 for v in (0, 1, 128, 255)]
    assert np.asarray(load_mask("a.png")).tolist() == [[0, 1, 128, 255]]


def test_float_grey_is_zero_to_one_or_refused():
    assert pixels(load_image(saved(Image.fromarray(np.array([[0, 0.5, 1]], "float32")), "a.tiff"))) == [[v] * 3 for v in (0, 128, 255)]
    for bad in ([[0.0, 2.0]], [[-0.1, 0.5]], [[np.nan, 0.5]]):
        with pytest.raises(UsageError, match="must be in 0 … 1"):
            load_image(Image.fromarray(np.array(bad, "float32")))
    with pytest.raises(UsageError, match="must be in 0 … 65535"):
        load_image(Image.fromarray(np.array([[70_000]], "int32")))


@pytest.mark.parametrize("mode, value, rgb", [("L", 7, (7, 7, 7)), ("1", 1, (255, 255, 255)), ("CMYK", (0, 255, 255, 0), (255, 0, 0)), ("P", 0, (9, 8, 7))])
def test_other_modes_become_rgb(mode, value, rgb):
    image = Image.new(mode, (1, 1), value)
    if mode == "P":
        image.putpalette([9, 8, 7])
    name = saved(image, "a.tiff" if mode == "CMYK" else "a.png")
    assert pixels(load_image(name)) == [list(rgb)]


def test_of_an_animation_the_first_picture_is_taken_and_it_is_said(caplog):
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    name = saved(frames[0], "a.gif", save_all=True, append_images=frames[1:])
    with caplog.at_level(logging.INFO, "minisd"):
        assert pixels(load_image(name))[0] == [255, 0, 0]
    assert "a.gif holds several pictures: the first one is used" in caplog.text


def test_a_colour_profile_is_not_applied_and_it_is_said(caplog):
    with caplog.at_level(logging.INFO, "minisd"):
        for profile, said in ((b"... Display P3 ...", 1), (b"... sRGB IEC61966 ...", 0), ("sRGB".encode("utf-16-be"), 0)):
            caplog.clear()
            assert pixels(load_image(saved(Image.new("RGB", (1, 1), (1, 2, 3)), icc_profile=profile))) == [[1, 2, 3]]
            assert caplog.text.count("colour profile") == said


def test_the_suffix_does_not_matter():
    saved(picture(), "a.png")
    Path("a.png").rename("a.jpg")
    np.testing.assert_array_equal(np.asarray(load_image("a.jpg")), np.asarray(picture()))


# ----- what is refused -----------------------------------------------------------------------------------------------------


def png(width: int, height: int, depth: int = 8, data: bytes = b"\0" * 1000) -> bytes:
    """A PNG in RGB of these claims, written by hand."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def test_of_sixteen_bits_a_colour_the_high_ones_are_read():
    Path("a.png").write_bytes(png(2, 1, 16, b"\0" + struct.pack(">6H", 0x0180, 0xFF00, 0x7FFF, 1, 255, 256)))
    assert pixels(load_image("a.png")) == [[1, 255, 127], [0, 0, 1]]


@pytest.mark.parametrize("side", [8_001, 10_000, 100_000])
def test_a_decompression_bomb_is_refused_before_its_pixels(side):
    Path("a.png").write_bytes(png(side, side))
    with pytest.raises(ModelFileError, match=r"(?s)a.png is too large.*the limit is 64 megapixels"):
        load_image("a.png")


def broken_files() -> dict:
    saved(picture(), "whole.png")
    saved(picture(), "whole.jpg")
    whole, jpg = Path("whole.png").read_bytes(), Path("whole.jpg").read_bytes()
    changed = bytearray(whole)
    changed[60] ^= 255
    return {"cut.png": whole[: len(whole) // 2], "cut.jpg": jpg[: len(jpg) // 2], "changed.png": bytes(changed), "empty.png": b"",
            "header.png": whole[:20], "page.png": b"<!doctype html><html></html>", "drawing.svg": b"<svg></svg>", "text.eps": b"%!PS-Adobe-3.0 EPSF-3.0"}  # fmt: skip


@pytest.mark.parametrize("name", ["cut.png", "cut.jpg", "changed.png", "empty.png", "header.png", "page.png", "drawing.svg", "text.eps"])
def test_damaged_and_foreign_files_are_named(name):
    Path(name).write_bytes(broken_files()[name])
    for load in (load_image, load_mask):
        with pytest.raises(ModelFileError, match=f"{name} (is no picture|cannot be read)") as caught:
            load(name)
        assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "path, message",
    [("no.png", "the picture no.png does not exist"), (".", "is a folder"), ("https://example.org/a.png", "is no local file"), ("file:///a.png", "no local")],
)
def test_what_is_no_local_file_is_refused(path, message):
    with pytest.raises(UsageError, match=message):
        load_image(path)


@pytest.mark.parametrize("image", [None, 3, [], {}, np.zeros((2, 3, 4)), np.zeros((4, 4)), np.zeros((0, 4, 3)), np.full((4, 4, 3), 2.0),
                                   np.full((4, 4, 3), -1.0), np.full((4, 4, 3), np.nan), np.zeros((4, 4, 3), "int32")])  # fmt: skip
def test_what_is_no_picture_is_refused(image):
    with pytest.raises(UsageError, match="image is|image has the shape"):
        read_pictures(image)


# ----- to arrays -----------------------------------------------------------------------------------------------------------


def test_pixels_are_scaled_to_minus_one_and_one():
    [x] = preprocess_image(read_pictures(Image.fromarray(np.array([[[0, 51, 255]]], "uint8"))), 1, 1)
    assert x.dtype == np.float32 and x.shape == (3, 1, 1)
    np.testing.assert_allclose(x.ravel(), [-1, -0.6, 1], atol=1e-7)


def test_eight_bit_arrays_are_pictures_and_floats_are_sampled():
    eight = np.asarray(picture())
    np.testing.assert_array_equal(*(preprocess_image(read_pictures(x), 64, 72) for x in (eight, picture())))
    x = preprocess_image(read_pictures(eight / 255), 64, 72)
    assert x.shape == (1, 3, 64, 72)
    rows, columns = np.arange(64) * 66 // 64, np.arange(72) * 79 // 72
    np.testing.assert_allclose((x[0].transpose(1, 2, 0) + 1) / 2, eight[rows][:, columns] / 255, atol=1e-6)


def test_batches_and_lists():
    one = np.asarray(picture())
    for source in ([picture(), picture()], np.stack([one, one]), [one, picture()], [np.stack([one, one])]):
        x = preprocess_image(read_pictures(source), 8, 8)
        assert x.shape == (2, 3, 8, 8) and np.array_equal(x[0], x[1])


def test_latents_are_left_alone():
    z = np.full((2, 4, 8, 9), 7.0)
    assert read_pictures(z) is z and preprocess_image(z, 1, 1) is z and picture_size(z, multiple=8) == (64, 72)


def test_sizes_are_cut_down_to_multiples():
    assert picture_size([picture()]) == (64, 72) and picture_size([picture()], multiple=4) == (64, 76)
    assert picture_size([picture()], 128, None) == (128, 72)
    with pytest.raises(UsageError, match="the picture is 7×30 pixels"):
        picture_size([Image.new("RGB", (7, 30))])
    assert picture_size([Image.new("RGB", (1, 1))], 64, 64) == (64, 64)


def test_a_picture_out_of_proportion_is_said_to_be(caplog):
    preprocess_image([Image.new("RGB", (300, 100))], 64, 128)
    assert not caplog.text
    preprocess_image([Image.new("RGB", (300, 100))], 64, 64)
    assert "a picture of 300×100 is stretched to 64×64" in caplog.text


def test_nearest_is_floor():
    assert nearest(np.arange(10), 4, 0).tolist() == [0, 2, 5, 7]
    assert nearest(np.arange(3), 7, 0).tolist() == [0, 0, 0, 1, 1, 2, 2]


# ----- masks ---------------------------------------------------------------------------------------------------------------


def test_masks_are_binary_from_128():
    grey = Image.fromarray(np.array([[0, 127, 128, 255]], "uint8"))
    x = preprocess_mask(read_masks(grey), 1, 4)
    assert x.dtype == np.float32 and x.tolist() == [[[[0, 0, 1, 1]]]]


def test_every_kind_of_mask():
    white = np.asarray(mask()) >= 128
    expected = white.astype("float32")[None, None]
    for source in (mask(), mask(mode="RGB"), np.asarray(mask()), white, white[None], white[..., None], white[None, ..., None], [white],
                   white.astype("float32"), white.astype("float64") * 0.6, saved(mask(), "m.png"), saved(mask(mode="RGBA"), "n.png")):  # fmt: skip
        np.testing.assert_array_equal(preprocess_mask(read_masks(source), 66, 79), expected)


MASKS = {
    "empty": (np.zeros((66, 79)), "the mask is empty"),
    "too small": (np.eye(66, 79) * (np.arange(79) == 3), "white parts are too small"),
    "another shape": (np.ones((79, 66)), "the mask is 66×79, the picture 79×66"),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_that_cannot_be_meant_are_refused(name):
    values, message = MASKS[name]
    masks = read_masks(values)
    with pytest.raises(UsageError, match=message):
        check_masks(masks, [picture()], preprocess_mask(masks, 64, 72))


def test_odd_masks_are_said_to_be(caplog):
    masks = read_masks(np.ones((132, 158)))
    with caplog.at_level(logging.INFO, "minisd"):
        check_masks(masks, [picture()], preprocess_mask(masks, 64, 72), notes=False)
        assert not caplog.text
        check_masks(masks, [picture()], preprocess_mask(masks, 64, 72))
    assert "white everywhere" in caplog.text and "the mask of 158×132 is resized with the picture of 79×66" in caplog.text


@pytest.mark.parametrize("bad", [None, np.zeros((2, 2, 2, 2)), np.full((4, 4), 2.0), np.zeros((4, 4, 3))[None]])
def test_what_is_no_mask_is_refused(bad):
    with pytest.raises(UsageError, match="mask_image"):
        read_masks(bad)


def test_limits_are_written_down():
    assert image_input.MAX_PIXELS == 64_000_000 and "EPS" not in image_input.FORMATS
