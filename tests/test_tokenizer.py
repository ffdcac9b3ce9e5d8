"""The tokenizer against ids recorded from transformers, a textbook in plain Python, and damaged folders."""

import hashlib
import json
import logging
import subprocess
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisd.errors import UsageError
from minisd.tokenizer import CLIPTokenizer
from tests.clip_vocab import FLAVOURS, GOLDEN, merges_txt, vocab_json, write_tokenizer

CASES = json.loads((GOLDEN / "tokenizer_ids.json").read_text())["cases"]
BOS, EOS = 49406, 49407


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    return {flavour: write_tokenizer(root / flavour, flavour) for flavour in FLAVOURS}


@pytest.fixture(scope="module")
def tokenizers(folders):
    return {flavour: CLIPTokenizer.from_pretrained(folder) for flavour, folder in folders.items()}


@pytest.fixture(scope="module")
def sd1(tokenizers):
    return tokenizers["sd1"]


@pytest.fixture(scope="module")
def sd2(tokenizers):
    return tokenizers["sd2"]


def ids(tokenizer, text):
    return tokenizer(text, padding=False).input_ids[0].tolist()


# ---------------------------------------------------------------- the vocabulary and the ids


def test_the_rebuilt_vocabulary_is_the_official_one():
    def sha256(text):
        return hashlib.sha256(text.encode()).hexdigest()

    assert sha256(merges_txt()) == "9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a"
    assert sha256(vocab_json()) == "e089ad92ba36837a0d31433e555c8f45fe601ab5c221d4f607ded32d9f7a4349"


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: ascii(case["text"])[1:25])
def test_ids_are_those_of_transformers(tokenizers, case, flavour):
    assert ids(tokenizers[flavour], case["text"]) == case[flavour]


WALKTHROUGHS = {  # printed in the walkthroughs that minisd follows, or in the test suites of other ports
    "A picture of a puppy": [320, 1674, 539, 320, 6829],
    "skunk": [42194],
    "a dog wearing hat": [320, 1929, 3309, 3801],
    "a photo of a car orbiting earth in van gogh style": [
        *(320, 1125, 539, 320, 1615, 523, 23016, 3475, 530, 2451, 19697, 1844)
    ],
    "A mouse in the style of puppy": [320, 9301, 530, 518, 1844, 539, 6829],
    "A mouse": [320, 9301],
    "A leopard": [320, 15931],
    "painting depicting the sea, sunrise, ship, artstation, 4k, concept art": [
        *(3086, 24970, 518, 2102, 267, 5610, 267, 1158, 267, 1486, 2631, 267, 275, 330, 267, 6353, 794)
    ],
    "A dog wearing a hat": [320, 1929, 3309, 320, 3801],
    "a photograph of an astronaut riding a horse": [320, 8853, 539, 550, 18376, 6765, 320, 4558],
    "A colorful dancer, nat geo photo": [320, 11444, 11400, 267, 11310, 11604, 1125],
    " an astronaut riding a horse": [550, 18376, 6765, 320, 4558],
    "a photo of an astronaut riding a horse on mars": [320, 1125, 539, 550, 18376, 6765, 320, 4558, 525, 7496],
    "Apple CoreML developer tools on a Macbook Air are fast": [
        *(3055, 19622, 5780, 10929, 5771, 525, 320, 20617, 1922, 631, 1953)
    ],
    "test tokenization": [1628, 32634, 10847],
}


@pytest.mark.parametrize("prompt", WALKTHROUGHS)
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_ids_are_those_of_the_walkthroughs(tokenizers, prompt, flavour):
    assert ids(tokenizers[flavour], prompt) == [BOS, *WALKTHROUGHS[prompt], EOS]


def test_exclamation_marks_are_padding_in_sd2(sd1, sd2):
    assert ids(sd1, "! !! !!!") == [BOS, 256, 748, 995, EOS]
    assert ids(sd2, "! !! !!!") == [BOS, 0, 0, 0, 0, 0, 0, EOS]


SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
BLOCKS = [(0, 0x24F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x45F), (0x5D0, 0x64A), (0x905, 0x939), (0x4E00, 0x4FFF)]
BLOCKS += [(0x1F300, 0x1F5FF), (0x660, 0x669), (0x2000, 0x2044), (0x2160, 0x217F), (0xAC00, 0xACFF), (0x1D400, 0x1D433)]
CHARACTERS = [st.characters(min_codepoint=a, max_codepoint=b, exclude_categories=["Cn"]) for a, b in BLOCKS]
RANKS = {tuple(line.split()): rank for rank, line in enumerate(merges_txt().split("\n")[1:-1])}


def textbook(text):
    """The steps of minisd/tokenizer.py in plain Python, without the ends, for an SD 1 tokenizer."""
    byte_letters = [chr(b) if 0x21 <= b < 0x7F or b >= 0xA1 and b != 0xAD else None for b in range(256)]
    others = iter(range(0x100, 0x200))
    byte_letters = [letter or chr(next(others)) for letter in byte_letters]
    text = "".join(c.lower() for c in unicodedata.normalize("NFC", text))
    kind = ["_" if c in SPACES else {"L": "L", "N": "N"}.get(unicodedata.category(c)[0], "S") for c in text] + ["end"]
    out, start = [], 0
    while start < len(text):
        stop = start + 1
        contraction = next((c for c in CONTRACTIONS if text.startswith(c, start)), None)
        if contraction:
            stop = start + len(contraction)
        elif kind[start] != "N":
            while kind[stop] == kind[start]:
                stop += 1
        if contraction or kind[start] != "_":
            out += merged([byte_letters[b] for b in text[start:stop].encode()])
        start = stop
    return out


def merged(symbols):
    symbols[-1] += "</w>"
    while len(symbols) > 1:
        rank, i = min((RANKS.get(pair, len(RANKS)), i) for i, pair in enumerate(zip(symbols, symbols[1:])))
        if rank == len(RANKS):
            break
        symbols[i : i + 2] = ["".join(symbols[i : i + 2])]
    return symbols


@settings(deadline=None)
@given(st.text(st.one_of(CHARACTERS)).filter(lambda text: "<|" not in text))  # no special tokens
def test_tokens_are_those_of_the_textbook(sd1, text):
    assert [token for _, token in sd1.table(text)] == ["<|startoftext|>", *textbook(text), "<|endoftext|>"]


@pytest.mark.parametrize("text", ["don't you'LL 2024 café ΟΔΟΣ", "x''s'tis !?'d ''m", "İstanbul ½²  ٣٤ 😀👍🏽 e\u0301"])
def test_the_textbook_covers_contractions_digits_and_signs(sd1, text):
    assert [token for _, token in sd1.table(text)][1:-1] == textbook(text)


@settings(deadline=None)
@given(st.text(), st.sampled_from(FLAVOURS))
def test_every_text_becomes_77_ids(tokenizers, text, flavour):
    tokenizer = tokenizers[flavour]
    tokens = tokenizer(text)
    length = tokens.attention_mask.sum()
    assert tokens.input_ids.shape == tokens.attention_mask.shape == (1, 77)
    assert tokens.input_ids[0, 0] == BOS and tokens.input_ids[0, length - 1] == EOS
    assert (tokens.input_ids[0, length:] == tokenizer.pad_token_id).all()
    assert (tokens.input_ids >= 0).all() and (tokens.input_ids < len(tokenizer)).all()


# ---------------------------------------------------------------- padding, truncation, batches


@pytest.mark.parametrize("flavour, pad", [("sd1", EOS), ("sd2", 0), ("turbo", 0)])
def test_the_pad_token_is_that_of_special_tokens_map(tokenizers, flavour, pad):
    tokens = tokenizers[flavour](["skunk", ""])
    assert tokens.input_ids.dtype == tokens.attention_mask.dtype == np.int64
    assert tokens.input_ids.tolist() == [[BOS, 42194, EOS] + [pad] * 74, [BOS, EOS] + [pad] * 75]
    assert tokens.attention_mask.tolist() == [[1] * 3 + [0] * 74, [1] * 2 + [0] * 75]
    assert tokens["input_ids"] is tokens.input_ids and dict(**tokens).keys() == {"input_ids", "attention_mask"}
    with pytest.raises(KeyError):
        tokens["offset_mapping"]


def test_padding_and_truncation_may_be_switched_off(sd1):
    prompts = ["a cat", "skunk"]
    a_cat, skunk = [BOS, 320, 2368, EOS], [BOS, 42194, EOS]
    assert sd1(prompts, padding="longest").input_ids.tolist() == [a_cat, [*skunk, EOS]]
    assert sd1(prompts, padding=True).attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert sd1(prompts, padding=False).input_ids == [a_cat, skunk]  # of different lengths: lists
    assert sd1(prompts, padding=False).attention_mask == [[1] * 4, [1] * 3]
    assert sd1(("skunk", "cat"), padding=False).input_ids.tolist() == [skunk, [BOS, 2368, EOS]]
    assert sd1("cat " * 100, truncation=False).input_ids.tolist() == [[BOS, *[2368] * 100, EOS]]
    assert sd1(["cat " * 100, "cat"], truncation=False).input_ids == [[BOS, *[2368] * 100, EOS], [BOS, 2368, *[EOS] * 75]]


@pytest.mark.parametrize("max_length, expected", [(2, [BOS, EOS]), (3, [BOS, 320, EOS]), (5, [BOS, 320, 2368, EOS, EOS])])
def test_max_length_counts_both_ends(sd1, max_length, expected):
    assert sd1("a cat", max_length=max_length).input_ids.tolist() == [expected]


def test_truncation_keeps_75_tokens_and_says_in_one_line_what_is_lost(sd1, caplog):
    prompt = "cat " * 10_000
    tokens = sd1([prompt, "a dog", prompt])
    assert tokens.input_ids[0].tolist() == tokens.input_ids[2].tolist() == [BOS, *[2368] * 75, EOS]
    lost = "77-token limit: the last 9,925 tokens are ignored, from 'cat cat cat cat cat cat...'"
    assert caplog.record_tuples == [("minisd", logging.WARNING, lost)]


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(
    "rest, message",
    [
        ("", None),
        (" Straße", "the last 4 tokens are ignored, from 'Straße'"),
        (" the\n\nEND", "the last 2 tokens are ignored, from 'the\\n\\nEND'"),
        ("\u00a0😀", "the last 1 token is ignored, from '😀'"),
    ],
)
def test_the_warning_quotes_the_prompt_as_it_was_typed(tokenizers, flavour, caplog, rest, message):
    start = "cafe\u0301 !  " * 37 + "cat"  # normalisation moves every position
    tokenizers[flavour](start + rest)
    assert [record.getMessage() for record in caplog.records] == ([f"77-token limit: {message}"] if message else [])


def test_calls_with_other_settings_leave_no_trace_and_threads_do_not_meet(sd1):
    settings = [{}, {"max_length": 5}, {"padding": False}, {"truncation": False}, {"padding": "longest", "max_length": 9}]
    prompts = ["cat " * n for n in (1, 3, 90)]
    calls = [(prompt, setting) for prompt in prompts for setting in settings] * 8
    expected = [sd1(prompt, **setting).input_ids.tolist() for prompt, setting in calls]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda call: sd1(call[0], **call[1]).input_ids.tolist(), calls))
    assert found == expected
    assert sd1._backend.padding is None and sd1._backend.truncation is None


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "text, words",
    [
        (None, "None is no prompt"),
        (3, "3 is no prompt"),
        (b"a cat", "no prompt"),
        ([], "no prompt"),
        (["a", None], "prompt 1 is no string: None"),
        ([["a"]], "prompt is no string"),
        ("a photo\udce9", "prompt is not valid Unicode at position 7"),
        (["a", "\ud83d"], "prompt 1 is not valid Unicode at position 0"),
        ("a" * 1_000_001, "prompt has 1,000,001 characters"),
    ],
    ids=range(9),
)
def test_a_prompt_that_cannot_be_meant_is_refused(sd1, text, words):
    with pytest.raises(UsageError, match=words):
        sd1(text)


@pytest.mark.parametrize(
    "setting",
    [{"max_length": n} for n in (1, 0, -3, True, 7.5, "77", 10**30)]
    + [{"padding": "left"}, {"padding": None}, {"truncation": "longest_first"}, {"return_tensors": "pt"}],
    ids=str,
)
def test_settings_that_cannot_be_meant_are_refused(sd1, setting):
    with pytest.raises(UsageError, match=f"{next(iter(setting))}="):
        sd1("a cat", **setting)


# ---------------------------------------------------------------- from ids back to tokens


def test_table_lists_ids_and_raw_tokens(sd1):
    words = [(320, "a</w>"), (1674, "picture</w>"), (539, "of</w>"), (320, "a</w>"), (6829, "puppy</w>")]
    assert sd1.table("A picture of a puppy") == [(BOS, "<|startoftext|>"), *words, (EOS, "<|endoftext|>")]
    assert sd1.table("robot")[1] == (8797, "robot</w>")
    assert sd1.table("Café")[1] == (15304, "cafÃ©</w>")
    assert len(sd1.table("cat " * 100)) == 102


def test_decode(sd1, sd2):
    row = sd1("A  Café, 😀!").input_ids
    assert sd1.decode(row[0, :7]) == "<|startoftext|>a café , 😀! <|endoftext|>"
    assert sd1.decode(row[0], skip_special_tokens=True) == "a café , 😀!"
    assert sd1.decode(row, skip_special_tokens=True) == ["a café , 😀!"]
    assert sd1.decode([[320], [320, 2368]]) == ["a", "a cat"]
    assert sd1.decode(6829) == sd1.decode(np.int64(6829)) == sd1.decode(np.array(6829)) == "puppy"
    assert sd1.decode([]) == ""
    assert sd2.decode(sd2("hello!").input_ids[0], skip_special_tokens=True) == "hello"


def test_ids_and_tokens_convert_both_ways(sd1):
    assert sd1.convert_ids_to_tokens(2368) == sd1.convert_ids_to_tokens(np.int64(2368)) == "cat</w>"
    assert sd1.convert_ids_to_tokens(np.array([[0, EOS]])) == [["!", "<|endoftext|>"]]
    assert sd1.convert_tokens_to_ids("cat</w>") == 2368
    assert sd1.convert_tokens_to_ids(["cat", "no such token"]) == [1481, EOS]  # "cat" inside a word; unknown


@pytest.mark.parametrize("number", [-1, 49408, 2**40])
def test_ids_outside_the_vocabulary_are_refused(sd1, number):
    for method in (sd1.decode, sd1.convert_ids_to_tokens):
        with pytest.raises(UsageError, match="0 to 49407"):
            method([320, number])


# ---------------------------------------------------------------- added tokens


def test_added_tokens_can_be_found_and_taken_away(folders):
    tokenizer = CLIPTokenizer.from_pretrained(folders["sd2"])
    before = tokenizer("a <b> c!").input_ids.tolist()
    tokenizer.add_tokens(["<a>", "<b>", "<c>"])
    assert tokenizer.added_tokens() == {"<a>": 49408, "<b>": 49409, "<c>": 49410}  # "!", special in SD 2, is none
    assert tokenizer.find_tokens("é <A> x<b><a>", ["<a>", "<b>"]) == [("<a>", 2, 5), ("<b>", 7, 10), ("<a>", 10, 13)]
    tokenizer.remove_tokens(["<b>"])
    assert tokenizer.added_tokens() == {"<a>": 49408, "<c>": 49409} and len(tokenizer) == 49410
    assert tokenizer("<c>").input_ids[0, 1] == 49409 and tokenizer("a <b> c!").input_ids.tolist() == before
    with pytest.raises(UsageError, match="no added token\n.*added are: <a>, <c>"):
        tokenizer.remove_tokens(["<b>"])


def test_added_tokens_follow_the_vocabulary_and_are_found_in_normalised_text(folders):
    tokenizer = CLIPTokenizer.from_pretrained(folders["sd1"])
    assert tokenizer.add_tokens(["<Cat-Toy>", "<cat-toy>_1"]) == 2
    assert tokenizer.add_tokens("<naïve one>") == 1
    assert ids(tokenizer, "a <CAT-toy> <cat-toy>_1<nai\u0308ve\n One>s") == [BOS, 320, 49408, 49409, 49410, 338, EOS]
    assert tokenizer.convert_tokens_to_ids(["<Cat-Toy>", "<naïve one>"]) == [49408, 49410]
    assert tokenizer.decode([320, 49409, 320]) == "a <cat-toy>_1a"  # without a blank, as in transformers
    assert (len(tokenizer), tokenizer.vocab_size) == (49411, 49408)


@pytest.mark.parametrize("token", ["cat", "cat</w>", "<new>", "<NEW>", "<|EndOfText|>", "", " "])
def test_a_token_that_would_never_be_found_or_hide_another_is_refused(folders, token):
    tokenizer = CLIPTokenizer.from_pretrained(folders["sd1"])
    tokenizer.add_tokens(["<new>"])
    with pytest.raises(UsageError, match="cannot be added"):
        tokenizer.add_tokens(["<other>", token])
    with pytest.raises(UsageError, match="cannot be added"):
        tokenizer.add_tokens(["<twice>", "<Twice>"])
    assert len(tokenizer) == 49409  # all or nothing


# ---------------------------------------------------------------- folders


def test_attributes(sd1, sd2):
    names = ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id", "model_max_length", "vocab_size")
    assert [getattr(sd1, name) for name in names] == [BOS, EOS, EOS, EOS, 77, 49408]
    assert [getattr(sd2, name) for name in names] == [BOS, EOS, EOS, 0, 77, 49408]
    assert (sd2.bos_token, sd2.eos_token, sd2.pad_token, len(sd2)) == ("<|startoftext|>", "<|endoftext|>", "!", 49408)
    assert repr(sd2) == "CLIPTokenizer(49,408 tokens, 77 positions, padded with '!')"


def test_importing_the_module_does_not_import_the_library():
    code = "import minisd.tokenizer, sys; sys.exit('tokenizers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
