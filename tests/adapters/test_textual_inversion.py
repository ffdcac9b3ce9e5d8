"""Learned words: every form of file, ids and rows, several vectors, taking away; and what is refused. Files are made byte by byte."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from minisd import StableDiffusionPipeline
from minisd.adapters.textual_inversion import expand_words, read_textual_inversion
from minisd.errors import ModelFileError, NumericError, UsageError
from tests.checkpoint.torch_bytes import encode, write_legacy, write_zip
from tests.tiny_folder import write_tiny_sd2

C = 22
ONE = np.linspace(-0.1, 0.1, C, dtype="float32")
THREE = np.random.RandomState(0).standard_normal((3, C)).astype("float16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_sd2(tmp_path_factory.mktemp("model"))


@pytest.fixture
def pipe(folder):
    return StableDiffusionPipeline.from_pretrained(folder)


def a1111(vectors, **more) -> dict:
    return {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "birb", "step": 5000, "sd_checkpoint": None, **more}


FORMS = {
    "diffusers.bin": (lambda p: write_zip(p, {"<birb>": ONE}), "<birb>", ONE[None]),
    "old.bin": (lambda p: write_legacy(p, {"<birb>": ONE}), "<birb>", ONE[None]),
    "several.bin": (lambda p: write_zip(p, {"<birb>": THREE}), "<birb>", THREE),
    "a1111.pt": (lambda p: write_zip(p, a1111(THREE)), "birb", THREE),
    "nameless.pt": (lambda p: write_zip(p, {"string_to_token": {"*": 265}, "string_to_param": {"*": THREE}}), "nameless", THREE),
    "otherkey.pt": (lambda p: write_zip(p, {"string_to_param": {"@": ONE}, "name": "xyzzy"}), "xyzzy", ONE[None]),
    "diffusers.safetensors": (lambda p: save_file({"<birb>": ONE}, p), "<birb>", ONE[None]),
    "style.safetensors": (lambda p: save_file({"emb_params": THREE}, p), "style", THREE),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form(pipe, tmp_path, name):
    write, word, vectors = FORMS[name]
    write(tmp_path / name)
    before, count = pipe.text_encoder.token_embedding, len(pipe.tokenizer)
    pipe.load_textual_inversion(tmp_path / name)
    tokens = [word, *(f"{word}_{i}" for i in range(1, len(vectors)))]
    assert pipe.tokenizer.convert_tokens_to_ids(tokens) == list(range(count, count + len(vectors)))
    table = pipe.text_encoder.token_embedding
    assert table.dtype == np.float32 and np.array_equal(table[:count], before) and np.array_equal(table[count:], vectors)
    assert pipe.text_encoder.config.vocab_size == len(table)
    ids = pipe.tokenizer(pipe.maybe_convert_prompt(f"a {word} toy")).input_ids[0]
    assert ids[2 : 2 + len(vectors)].tolist() == list(range(count, count + len(vectors)))
    assert np.isfinite(pipe.encode_prompt([f"a {word} toy"])).all()


def test_a_word_of_ones_own(pipe, tmp_path):
    path = write_zip(tmp_path / "learned_embeds.bin", {"<birb>": THREE})
    pipe.load_textual_inversion(tmp_path, token="<bird>")
    assert list(pipe.tokenizer.added_tokens()) == ["<bird>", "<bird>_1", "<bird>_2"]
    inversion = read_textual_inversion(path)
    assert inversion.tokens == ("<birb>", "<birb>_1", "<birb>_2") and inversion.source == str(path)


def test_every_vector_is_written_out(pipe):
    pipe.load_textual_inversion({"<birb>": THREE, "<one>": ONE})
    for prompt, expected in {
        "a <birb> toy": "a <birb> <birb>_1 <birb>_2 toy",
        "A <BIRB>,<birb>!": "A <birb> <birb>_1 <birb>_2,<birb> <birb>_1 <birb>_2!",
        "é  <birb>": "é  <birb> <birb>_1 <birb>_2",
        "<one> cat": "<one> cat",
        "a cat": "a cat",
        "": "",
    }.items():
        assert expand_words(prompt, pipe.tokenizer) == expected


def test_a_learned_row_is_the_token_it_was_taken_from(pipe):
    """With the vector of "cat" the new word gives the prompt of the cat, bit by bit."""
    (cat,) = pipe.tokenizer("cat").input_ids[0][1:2]
    pipe.load_textual_inversion({"<zz>": pipe.text_encoder.token_embedding[cat]})
    assert np.array_equal(pipe.encode_prompt(["a <zz> on a blue background"]), pipe.encode_prompt(["a cat on a blue background"]))


def test_unloading_gives_the_model_back(pipe):
    before, ids = pipe.text_encoder.token_embedding, pipe.tokenizer("a <birb> <one>").input_ids
    pipe.load_textual_inversion({"<birb>": THREE, "<one>": ONE})
    kept = pipe.text_encoder.token_embedding[pipe.tokenizer.added_tokens()["<one>"]]
    pipe.unload_textual_inversion("<birb>")  # with all its vectors; the ids behind it move up
    assert pipe.tokenizer.added_tokens() == {"<one>": len(before)}
    assert np.array_equal(pipe.text_encoder.token_embedding, [*before, kept])
    assert pipe.tokenizer("a <one>").input_ids[0][2] == len(before)
    pipe.unload_textual_inversion()
    assert np.array_equal(pipe.text_encoder.token_embedding, before) and np.array_equal(pipe.tokenizer("a <birb> <one>").input_ids, ids)
    pipe.load_textual_inversion({"<birb>": THREE})  # and it can be learned again


def test_a_float64_copy_knows_the_word(pipe):
    pipe.load_textual_inversion({"<birb>": THREE})
    truth = pipe.astype("float64").encode_prompt(["a <birb>"])
    assert truth.dtype == np.float64 and np.abs(truth - pipe.encode_prompt(["a <birb>"])).max() < 1e-4


REFUSED = {
    "width.bin": (lambda p: write_zip(p, {"<birb>": np.zeros(768, dtype="float32")}), ModelFileError, r"768 numbers\n.*learned for SD 1.x"),
    "sdxl.safetensors": (lambda p: save_file({"clip_l": ONE, "clip_g": ONE}, p), ModelFileError, "for SDXL"),
    "two.bin": (lambda p: write_zip(p, {"<a>": ONE, "<b>": ONE}), ModelFileError, r"holds <a>, <b>"),
    "nothing.bin": (lambda p: write_zip(p, {}), ModelFileError, "no textual inversion"),
    "list.bin": (lambda p: write_zip(p, [ONE]), ModelFileError, "it holds list"),
    "text.bin": (lambda p: write_zip(p, {"<a>": "b"}), ModelFileError, "no floating tensor"),
    "numbers.bin": (lambda p: write_zip(p, {"<a>": np.arange(C)}), ModelFileError, r"int64 \[1, 22\]"),
    "cube.bin": (lambda p: write_zip(p, {"<a>": np.zeros((2, 2, C))}), ModelFileError, r"\[2, 2, 22\]"),
    "many.bin": (lambda p: write_zip(p, {"<a>": np.zeros((76, C))}), ModelFileError, "N up to 75"),
    "none.bin": (lambda p: write_zip(p, {"<a>": np.zeros((0, C))}), ModelFileError, r"\[0, 22\]"),
    "nan.bin": (lambda p: write_zip(p, {"<a>": ONE * np.nan}), NumericError, "NaN or Inf"),
    "tensor.bin": (lambda p: write_zip(p, ONE), UsageError, "does not say its word"),
    "known.bin": (lambda p: write_zip(p, {"cat</w>": ONE}), UsageError, "cannot be added"),
    "blank.bin": (lambda p: write_zip(p, {" ": ONE}), UsageError, "cannot be added"),
    "number.bin": (lambda p: write_zip(p, {5: ONE}), ModelFileError, "no floating tensor"),
    "params.pt": (lambda p: write_zip(p, {"string_to_param": [1]}), ModelFileError, "string_to_param"),
    "name.pt": (lambda p: write_zip(p, {"string_to_param": {"*": ONE}, "name": 5}), ModelFileError, "name a text"),
    "evil.bin": (lambda p: write_zip(p, code=b"\x80\x02cos\nsystem\n(" + encode("touch owned", {}) + b"tR."), ModelFileError, "the name os.system"),
    "pixels.png": (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 40), ModelFileError, "not a safetensors file|is broken"),
    "missing": (lambda p: None, UsageError, "there is no file"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_changes_nothing(pipe, tmp_path, name):
    write, error, message = REFUSED[name]
    write(tmp_path / name)
    before, count = pipe.text_encoder.token_embedding, len(pipe.tokenizer)
    with pytest.raises(error, match=message):
        pipe.load_textual_inversion(tmp_path / name)
    assert pipe.text_encoder.token_embedding is before and len(pipe.tokenizer) == count


def test_a_word_that_exists_or_does_not(pipe):
    pipe.load_textual_inversion({"<birb>": ONE})
    with pytest.raises(UsageError, match="cannot be added"):
        pipe.load_textual_inversion({"<BIRB>": ONE})
    with pytest.raises(UsageError, match="no added token"):
        pipe.unload_textual_inversion("<other>")
