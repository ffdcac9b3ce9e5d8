"""The tokenizer against transformers' `CLIPTokenizer`, live: the same machine, so the same ids for every text."""

import json
import random
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from minisd.tokenizer import CLIPTokenizer  # noqa: E402
from tests.clip_vocab import FLAVOURS, GOLDEN, flagged, write_tokenizer  # noqa: E402

pytestmark = pytest.mark.reference


@pytest.fixture(scope="module", params=FLAVOURS)
def pair(request, tmp_path_factory):
    return load(write_tokenizer(tmp_path_factory.mktemp("tokenizer"), request.param))


def load(folder):
    return CLIPTokenizer.from_pretrained(folder), transformers.CLIPTokenizer.from_pretrained(folder)


def assert_same_ids(pair, texts):
    ours, theirs = pair
    expected = theirs(texts, verbose=False)["input_ids"]
    found = [ours(text, padding=False, truncation=False).input_ids[0].tolist() for text in texts]
    assert found == expected


def machine(tokenizer):
    """Everything that decides about ids, but for the two ends, which minisd adds itself."""
    description = json.loads(tokenizer.to_str())
    return {name: description[name] for name in ("added_tokens", "normalizer", "pre_tokenizer", "model", "decoder")}


def test_the_machine_is_the_same(pair):
    ours, theirs = pair
    assert machine(ours._backend) == machine(theirs.backend_tokenizer)


def test_the_golden_file_is_what_transformers_says(tmp_path):
    cases = json.loads((GOLDEN / "tokenizer_ids.json").read_text())["cases"]
    for flavour in FLAVOURS:
        theirs = transformers.CLIPTokenizer.from_pretrained(write_tokenizer(tmp_path / flavour, flavour))
        for case in cases:
            assert theirs(case["text"], truncation=True, max_length=77)["input_ids"] == case[flavour], ascii(case["text"])


def test_every_code_point(pair):
    """Planes 0 and 1 and the tags, 64 to a text, each between letters, so that composition and word breaks are met."""
    points = [chr(i) for i in (*range(0xD800), *range(0xE000, 0x20000), *range(0xE0000, 0xE0200))]
    assert_same_ids(pair, ["e".join(points[i : i + 64]) for i in range(0, len(points), 64)])


RANGES = [(0x00, 0x7F), (0x80, 0x24F), (0x300, 0x36F), (0x370, 0x5FF), (0x600, 0x6FF), (0x900, 0xDFF), (0x1100, 0x11FF)]
RANGES += [(0x1E00, 0x1FFF), (0x2000, 0x22FF), (0x3000, 0x9FFF), (0xAC00, 0xD7A3), (0xFB00, 0xFFFF), (0x1D400, 0x1D7FF)]
RANGES += [(0x1F1E6, 0x1FAFF)]
PIECES = ["<|endoftext|>", "<|startoftext|>", "<|EndOfText|>", "</w>", "!", "!!", "'s", "'LL", "''", "a", "cat", "7", "\0"]
PIECES += [" ", "\n", "\u3000"]


def test_random_texts(pair):
    rng = random.Random(0)

    def text():
        low, high = rng.choice(RANGES)
        length = rng.randint(0, 40)
        return "".join(rng.choice(PIECES) if rng.random() < 0.3 else chr(rng.randint(low, high)) for _ in range(length))

    texts = [text() for _ in range(3000)]
    assert_same_ids(pair, texts)

    ours, theirs = pair
    settings = dict(padding="max_length", truncation=True, return_tensors="np")
    for batch in (texts[:100], "hello! " * 50, "", "cat"):
        for max_length in (77, 2, 3, 10):
            found = ours(batch, max_length=max_length, **settings)
            expected = theirs(batch, max_length=max_length, **settings)
            for name in ("input_ids", "attention_mask"):
                assert found[name].dtype == expected[name].dtype == np.int64
                assert np.array_equal(found[name], expected[name])
    longest = theirs(texts[:100], padding="longest", return_tensors="np").input_ids
    assert np.array_equal(ours(texts[:100], padding="longest", truncation=False).input_ids, longest)


def test_the_way_back(pair):
    ours, theirs = pair
    rng = random.Random(1)
    for length in (0, 1, 5, 40):
        for _ in range(50):
            ids = [rng.choice([0, 49406, 49407, rng.randrange(49408)]) for _ in range(length)]
            assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)
            for skip in (False, True):
                assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
    tokens = ["cat</w>", "cat", "!", "<|endoftext|>", "no such token"]
    assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens)
    for name in ("bos_token", "eos_token", "pad_token", "unk_token", "model_max_length", "vocab_size"):
        assert getattr(ours, name) == getattr(theirs, name)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert len(ours) == len(theirs)


ADDED_TEXTS = ["<Cat-Toy>", "a <cat-toy>s <CAT-TOY>_1!", "<nai\u0308ve> x<naïve>", "<cat-to y>", "<|endoftext|><cat-toy>"]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_added_tokens(tmp_path, flavour):
    ours, theirs = load(write_tokenizer(tmp_path, flavour))
    tokens = ["<Cat-Toy>", "<cat-toy>_1", "<naïve>"]
    assert ours.add_tokens(tokens) == theirs.add_tokens(tokens) == 3
    assert machine(ours._backend) == machine(theirs.backend_tokenizer)
    assert_same_ids((ours, theirs), ADDED_TEXTS)
    for text in ADDED_TEXTS:
        ids = ours(text).input_ids[0]
        assert ours.decode(ids) == theirs.decode(ids)
        assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)

    theirs.save_pretrained(tmp_path / "saved")  # tokenizer.json in place of the old files
    assert not (tmp_path / "saved" / "vocab.json").exists()
    saved = load(tmp_path / "saved")
    assert saved[0].pad_token_id == saved[1].pad_token_id == ours.pad_token_id
    assert machine(saved[0]._backend) == machine(saved[1].backend_tokenizer)
    assert_same_ids(saved, ADDED_TEXTS)


SMALL_VOCABULARY = {token: i for i, token in enumerate(["a", "a</w>", "aa</w>", "<|startoftext|>", "<|endoftext|>"])}
OTHER_FOLDERS = {  # what to change in an SD 1 folder, file by file; None deletes the file
    "added_tokens.json": {"added_tokens.json": {"<cat-toy>_1": 49409, "<Cat-Toy>": 49408}},
    "a special added token": {
        "added_tokens.json": {"<Cat-Toy>": 49408},
        "special_tokens_map.json": {"pad_token": "<Cat-Toy>", "eos_token": flagged("<|endoftext|>")},
    },
    "a pad token of its own": {"special_tokens_map.json": {"pad_token": "[PAD]"}},
    "plain strings": {
        "special_tokens_map.json": {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "!"},
        "tokenizer_config.json": {"model_max_length": 77},
    },
    "added_tokens_decoder against the map": {
        "special_tokens_map.json": {"pad_token": "!"},
        "tokenizer_config.json": {
            "model_max_length": 77,
            "added_tokens_decoder": {
                "49408": flagged("<Cat-Toy>") | {"special": False},
                "49406": flagged("<|startoftext|>") | {"special": True},
            },
        },
    },
    "no tokenizer_config.json": {"tokenizer_config.json": None},
    "tokenizer.json beside the older files": {
        "special_tokens_map.json": {"pad_token": "a"},
        "tokenizer.json": {
            "version": "1.0",
            "added_tokens": [flagged("<Cat-Toy>") | {"id": 5, "special": False}],
            "model": {"type": "BPE", "vocab": SMALL_VOCABULARY, "merges": [["a", "a</w>"]]},
        },
    },
}


@pytest.mark.parametrize("changes", OTHER_FOLDERS.values(), ids=OTHER_FOLDERS)
def test_other_folders(tmp_path, changes):
    folder = write_tokenizer(tmp_path, "sd1")
    for name, content in changes.items():
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    pair = load(folder)
    assert machine(pair[0]._backend) == machine(pair[1].backend_tokenizer)
    assert pair[0].pad_token_id == pair[1].pad_token_id
    assert_same_ids(pair, [*ADDED_TEXTS, "hello! [PAD][pad] <|ENDOFTEXT|>"])


def test_byte_order_marks_and_line_ends_change_nothing(tmp_path):
    folder = write_tokenizer(tmp_path / "official", "sd2")
    other = shutil.copytree(folder, tmp_path / "other")
    for path in other.iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    _, theirs = load(folder)
    assert machine(CLIPTokenizer.from_pretrained(other)._backend) == machine(theirs.backend_tokenizer)
