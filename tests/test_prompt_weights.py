"""The mode a1111: brackets to weights, chunks of 75, and the mean that is restored."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisd import StableDiffusionPipeline
from minisd.errors import UsageError
from minisd.prompt_weights import chunks, encode_weighted, frame, parse, weigh

from .numerics import relative_l2
from .tiny_folder import write_tiny_sd2

PROMPT = "a cat on a blue background"
CASES = {  # from the documentation's own examples and their neighbours
    "a fox": [("a fox", 1.0)],
    "": [],
    "a (word)": [("a ", 1.0), ("word", 1.1)],
    "a ((word))": [("a ", 1.0), ("word", 1.21)],
    "a [word]": [("a ", 1.0), ("word", 1 / 1.1)],
    "a [[word]]": [("a ", 1.0), ("word", 1 / 1.21)],
    "a (word:1.5)": [("a ", 1.0), ("word", 1.5)],
    "a (word:0.25) b": [("a ", 1.0), ("word", 0.25), (" b", 1.0)],
    "(word: 1.5 )": [("word", 1.5)],
    "(word:.5)": [("word", 0.5)],
    "(word:-1)": [("word", -1.0)],
    "(word:+1.0) x": [("word x", 1.0)],
    r"a \(word\)": [("a (word)", 1.0)],
    r"a \[word\] \\": [("a [word] \\", 1.0)],
    r"(\(a\):2)": [("(a)", 2.0)],
    "((a:2):3)": [("a", 6.0)],
    "(a (b:1.5) c:0.5)": [("a ", 0.5), ("b", 0.75), (" c", 0.5)],
    "(a [b])": [("a ", 1.1), ("b", 1.0)],
    "[word:1.5]": [("word:1.5", 1 / 1.1)],
    "(a:b)": [("a:b", 1.1)],
    "(a:1.5.2)": [("a:1.5.2", 1.1)],
    "a) b": [("a) b", 1.0)],
    "a] b": [("a] b", 1.0)],
    "(a] b)": [("a] b", 1.1)],
    "a (b c": [("a ", 1.0), ("b c", 1.1)],
    "()": [],
    "(:1.5)": [],
    "(((": [],
}


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return StableDiffusionPipeline.from_pretrained(write_tiny_sd2(tmp_path_factory.mktemp("model")))


@pytest.mark.parametrize("prompt", CASES)
def test_brackets(prompt):
    found = parse(prompt)
    assert [text for text, _ in found] == [text for text, _ in CASES[prompt]]
    np.testing.assert_allclose([w for _, w in found], [w for _, w in CASES[prompt]], rtol=1e-12)


@given(st.text("ab ():[]\\1.", max_size=40))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_text_can_be_read_and_only_signs_are_lost(prompt):
    words = "".join(text for text, _ in parse(prompt))
    assert all(np.isfinite(w) for _, w in parse(prompt))
    assert words.count("a") == prompt.count("a") and words.count("b") == prompt.count("b")


def test_deep_brackets_are_refused():
    with pytest.raises(UsageError, match="more than 100 brackets"):
        parse("(" * 101 + "a")


@pytest.mark.parametrize("prompt", [PROMPT, "", "(a cat:1.0) on a (blue:1) background", r"a \(cat\) x", "a 7 <|endoftext|>", " two  blanks "])
def test_weights_of_one_are_no_weights_bit_by_bit(pipe, prompt):
    plain = prompt.replace("(a cat:1.0)", "a cat").replace("(blue:1)", "blue").replace("\\", "")
    assert np.array_equal(pipe.encode_prompt([prompt], prompt_weights="a1111"), pipe.encode_prompt([plain]))


def test_the_picture_too(pipe):
    options = dict(num_inference_steps=1, seed=1, output_type="latent")
    assert np.array_equal(pipe(PROMPT, prompt_weights="a1111", **options).images, pipe(PROMPT, **options).images)
    assert not np.array_equal(pipe("a (cat:1.3) on a blue background", prompt_weights="a1111", **options).images, pipe(PROMPT, **options).images)


def test_a_weight_multiplies_its_token_and_the_mean_is_restored(pipe):
    """The equation of the module by hand, in float64."""
    oracle = pipe.astype("float64")
    z = oracle.encode_prompt([PROMPT])
    w = np.ones((1, 77, 1))
    w[0, 2] = 1.3  # behind the start and "a"
    by_hand = w * z * (z.mean() / (w * z).mean())
    found = oracle.encode_prompt(["a (cat:1.3) on a blue background"], prompt_weights="a1111")
    np.testing.assert_allclose(found, by_hand, rtol=1e-10)
    np.testing.assert_allclose(found.mean(), z.mean(), rtol=1e-10)


def test_prompts_of_a_batch_do_not_see_each_other(pipe):
    texts = ["a (cat:1.4)", "a dog", "(((a bird)))"]
    batch = pipe.encode_prompt(texts, prompt_weights="a1111")
    for row, text in zip(batch, texts):
        assert relative_l2(row[None], pipe.encode_prompt([text], prompt_weights="a1111")) <= 1e-6


def assert_same(z, texts, pipe):
    """The encodings of these texts, one behind the other; within rounding, since the batch of a matrix product changes its order of sums."""
    assert relative_l2(z[0], np.concatenate([pipe.encode_prompt([text])[0] for text in texts])) <= 1e-6


def test_long_prompts_are_chunks_of_75(pipe):
    cut = chunks("cat " * 160, pipe.tokenizer)
    assert [len(ids) for ids, _ in cut] == [75, 75, 10]
    ids = pipe.tokenizer("cat " * 160, truncation=False, padding=False).input_ids[0][1:-1]
    assert [i for chunk, _ in cut for i in chunk] == ids.tolist()
    z = pipe.encode_prompt(["cat " * 160], prompt_weights="a1111")
    assert z.shape == (1, 231, 22)
    assert_same(z, ["cat " * 75, "cat " * 75, "cat " * 10], pipe)


def test_break_begins_another_chunk(pipe):
    assert_same(pipe.encode_prompt(["a cat BREAK a (dog:1.0)"], prompt_weights="a1111"), ["a cat", "a dog"], pipe)
    assert len(chunks("a BREAKFAST", pipe.tokenizer)) == 1 and len(chunks("a BREAK BREAK b", pipe.tokenizer)) == 3


def test_a_chunk_has_both_ends_and_padding(pipe):
    t = pipe.tokenizer
    ids, weights = frame(t, ([5, 6], [1.0, 2.0]), 75)
    assert ids.tolist() == [t.bos_token_id, 5, 6, t.eos_token_id] + [t.pad_token_id] * 73
    assert weights.tolist() == [1.0, 1.0, 2.0] + [1.0] * 74


def test_short_prompts_are_filled_up_with_empty_chunks(pipe):
    assert_same(encode_weighted(pipe.tokenizer, pipe.text_encoder, ["a cat"], at_least=2), ["a cat", ""], pipe)
    options = dict(num_inference_steps=1, seed=1, output_type="latent", prompt_weights="a1111")
    for prompt, negative in (("cat " * 80, "red"), ("red", "cat " * 80)):
        assert np.isfinite(pipe(prompt, negative_prompt=negative, **options).images).all()


def test_every_vector_of_a_learned_word_has_its_weight(pipe):
    pipe.load_textual_inversion({"<zz>": np.full((2, 22), 0.01, dtype="float32")})
    try:
        (chunk,) = chunks(pipe.maybe_convert_prompt("a (<zz>:1.5)"), pipe.tokenizer)
        assert chunk[1] == [1.0, 1.5, 1.5]
    finally:
        pipe.unload_textual_inversion()


def test_a_mean_of_zero_is_refused():
    z, w = np.array([[[1.0], [-3.0]]]), np.array([[3.0, 1.0]])
    with pytest.raises(UsageError, match="mean of a chunk 0"):
        weigh(z, w)
