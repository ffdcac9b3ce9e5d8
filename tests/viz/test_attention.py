"""Attention maps: weights that sum to 1, the right rows and layers, words of several tokens, and whole-number enlargement."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from minisd.errors import UsageError
from minisd.tracing import trace
from minisd.viz import attention_picture, token_maps, word_maps
from minisd.viz.attention import _enlarge, words_of

PROMPT = "a cat on a blue background"
OPTIONS = dict(num_inference_steps=1, seed=1)


def test_every_pixel_distributes_a_weight_of_one(pipe):
    image, maps = token_maps(pipe, PROMPT, **OPTIONS)
    assert maps.shape == (77, 16, 16) and maps.min() >= 0
    np.testing.assert_allclose(maps.sum(axis=0), 1.0, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(pipe(PROMPT, **OPTIONS).images[0]))  # watching changes nothing


def test_the_maps_are_those_of_the_prompts_half_averaged_over_layers(pipe):
    with trace("unet.*.attn2/probs") as seen:
        pipe(PROMPT, num_inference_steps=1, seed=1)
    expected = np.zeros((77, 16, 16))
    for name, probs in seen.items():
        size = int(probs.shape[2] ** 0.5)
        small = probs[1].mean(axis=0).T.reshape(77, size, size)  # row 0 is the empty prompt
        expected += small.repeat(16 // size, axis=1).repeat(16 // size, axis=2) / len(seen)
    np.testing.assert_allclose(token_maps(pipe, PROMPT, num_inference_steps=1, seed=1)[1], expected, atol=1e-6)


def test_without_guidance_and_at_another_size(pipe):
    _, maps = token_maps(pipe, PROMPT, guidance_scale=1.0, width=72, height=48, **OPTIONS)
    assert maps.shape == (77, 12, 18)
    np.testing.assert_allclose(maps.sum(axis=0), 1.0, atol=1e-5)


def test_words_are_the_sums_of_their_tokens(pipe):
    _, maps = token_maps(pipe, PROMPT, **OPTIONS)
    _, words = word_maps(pipe, PROMPT, **OPTIONS)
    assert [word for word, _ in words] == PROMPT.split()
    places = dict(words_of(pipe.tokenizer, PROMPT))
    np.testing.assert_array_equal(words[1][1], maps[places["cat"]].sum(axis=0))


def test_a_word_of_several_tokens_is_one_word(pipe):
    words = words_of(pipe.tokenizer, "a zyxwv cat")
    assert [word for word, _ in words] == ["a", "zyxwv", "cat"]
    places = [place for _, at in words for place in at]
    assert places == list(range(1, len(places) + 1)) and len(words[1][1]) > 1
    assert words_of(pipe.tokenizer, "cat " * 100)[-1] == ("cat", [75])  # cut as the tokenizer cuts


def test_learned_words_are_words(pipe, tmp_path):
    vectors = pipe.text_encoder.token_embedding[[3, 4]]
    save_file({"<pair>": vectors}, tmp_path / "pair.safetensors")
    pipe.load_textual_inversion(tmp_path / "pair.safetensors")
    try:
        assert words_of(pipe.tokenizer, pipe.maybe_convert_prompt("a <pair> cat")) == [("a", [1]), ("<pair>", [2]), ("<pair>_1", [3]), ("cat", [4])]
        assert [word for word, _ in word_maps(pipe, "a <pair> cat", **OPTIONS)[1]] == ["a", "<pair>", "<pair>_1", "cat"]
    finally:
        pipe.unload_textual_inversion()


@pytest.mark.parametrize("H, W", [(16, 16), (12, 18), (7, 5)])
def test_enlarging_repeats_pixels(H, W):
    h, w = -(-H // 2), -(-W // 2)
    large = _enlarge(np.arange(h * w, dtype="float64")[None], H, W)[0]
    assert large.shape == (H, W) and large[0, 0] == 0 and large[-1, -1] == h * w - 1
    assert set(large.ravel()) == set(range(h * w))


def test_the_picture_glows_where_a_word_was_looked_at(pipe):
    image = pipe.to_images(np.zeros((1, 4, 16, 16), "float32"))[0]
    weights = np.zeros((16, 16))
    weights[:, :8] = 0.5
    sheet = np.asarray(attention_picture(image, [("left", weights)], columns=2)).astype(int)
    right_cell = sheet[:, (sheet.shape[1] + 4) // 2 :][-128:, :128]
    assert right_cell[:, :40].mean() > right_cell[:, 88:].mean() + 100


def test_one_picture_at_a_time(pipe):
    with pytest.raises(UsageError, match="one prompt, one picture"):
        token_maps(pipe, [PROMPT, PROMPT], num_inference_steps=1, seed=1)
