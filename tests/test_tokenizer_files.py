"""Folders of a tokenizer: what may be absent or otherwise, and damaged ones."""

import json
import shutil

import pytest

from minisd.errors import ModelFileError
from minisd.tokenizer import CLIPTokenizer
from tests.clip_vocab import merges_txt, vocab_json, write_tokenizer


def ids(tokenizer, text):
    return tokenizer(text, padding=False).input_ids[0].tolist()


@pytest.fixture
def folder(tmp_path):
    """A small tokenizer folder to damage: 512 bytes, two merges, two special tokens."""
    vocab = list(json.loads(vocab_json()).items())
    tokens = [token for token, i in sorted(vocab, key=lambda item: item[1]) if i < 512]
    tokens += ["ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    write(tmp_path / "vocab.json", {token: i for i, token in enumerate(tokens)})
    (tmp_path / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    write(tmp_path / "special_tokens_map.json", {"pad_token": "!"})
    write(tmp_path / "tokenizer_config.json", {"model_max_length": 8})
    return tmp_path


def write(path, value):
    path.write_text(json.dumps(value))


def test_nothing_is_fixed_to_the_size_of_the_official_vocabulary(folder):
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    assert tokenizer("CAT ac!").input_ids.tolist() == [[514, 513, 64, 322, 0, 515, 0, 0]]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)) == (514, 515, 0, 516)


def test_the_folder_may_be_the_pipelines(folder):
    shutil.copytree(folder, folder / "model" / "tokenizer")
    for arguments in ((folder / "model",), (str(folder / "model"), "tokenizer"), (folder, "model/tokenizer")):
        assert len(CLIPTokenizer.from_pretrained(*arguments)) == 516


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_byte_order_marks_are_tolerated(folder, ending, mark):
    for path in folder.iterdir():
        path.write_bytes(mark + path.read_bytes().replace(b"\n", ending.encode() if path.suffix == ".json" else b"\n"))
    merges = ["#version: 0.2", "c a", "ca t</w>"]
    eol = ending[:2] if ending == "\r\n" else "\n"
    (folder / "merges.txt").write_bytes(mark + (eol.join(merges) + ending).encode())
    assert ids(CLIPTokenizer.from_pretrained(folder), "cat") == [514, 513, 515]


@pytest.mark.parametrize("text", ["c a\nca t</w>", "#version: 0.2\nc a\nca t</w>"])
def test_header_and_last_line_end_of_merges_may_be_absent(folder, text):
    (folder / "merges.txt").write_text(text)
    assert ids(CLIPTokenizer.from_pretrained(folder), "cat") == [514, 513, 515]


@pytest.mark.parametrize("merges", [["c a", "ca t</w>"], [["c", "a"], ["ca", "t</w>"]]])
def test_tokenizer_json_alone_is_enough(folder, merges):
    vocab = json.loads((folder / "vocab.json").read_text())
    added = [{"id": 0, "content": "!", "normalized": False, "special": True}]
    added += [{"id": 516, "content": "<toy>", "normalized": True, "special": False}]
    write(folder / "tokenizer.json", {"model": {"type": "BPE", "vocab": vocab, "merges": merges}, "added_tokens": added})
    write(folder / "tokenizer_config.json", {"pad_token": "!", "model_max_length": 77})
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json"):
        (folder / name).unlink()
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    assert ids(tokenizer, "cat!<TOY>") == [514, 513, 0, 516, 515]
    assert (tokenizer.pad_token_id, tokenizer.vocab_size, len(tokenizer)) == (0, 516, 517)
    assert tokenizer.decode([516, 0], skip_special_tokens=True) == "<toy>"


def test_tokenizer_json_wins_over_the_older_files_as_in_transformers(folder):
    tokens = sorted(vocab := json.loads((folder / "vocab.json").read_text()), key=vocab.get)
    tokens.remove("cat</w>")
    write(folder / "tokenizer.json", {"model": {"vocab": {token: i for i, token in enumerate(tokens)}, "merges": ["c a"]}})
    assert ids(CLIPTokenizer.from_pretrained(folder), "cat") == [513, 512, 339, 514]


def test_added_tokens_json_of_older_folders_is_read(folder):
    write(folder / "added_tokens.json", {"<toy>_1": 517, "<Toy>": 516})
    assert ids(CLIPTokenizer.from_pretrained(folder), "<toy>_1<TOY>") == [514, 517, 516, 515]


def test_added_tokens_decoder_overrules_special_tokens_map_as_in_transformers(folder):
    added = {"0": {"content": "!", "special": True, "normalized": False}, "514": {"content": "<|startoftext|>"}}
    write(folder / "tokenizer_config.json", {"pad_token": "<|endoftext|>", "added_tokens_decoder": added})
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    assert (tokenizer.pad_token_id, tokenizer.model_max_length) == (515, 77)
    assert ids(tokenizer, "!") == [514, 0, 515]


@pytest.mark.parametrize("length, expected", [(1000000000000000019884624838656, 77), (1e30, 77), (64, 64)])
def test_an_unknown_model_max_length_is_77(folder, length, expected):
    write(folder / "tokenizer_config.json", {"model_max_length": length})
    assert CLIPTokenizer.from_pretrained(folder).model_max_length == expected


def test_tokenizer_config_may_be_absent(folder):
    (folder / "tokenizer_config.json").unlink()
    assert CLIPTokenizer.from_pretrained(folder)("cat").input_ids.shape == (1, 77)


VOCABULARY = {token: i for i, token in enumerate(["a", "a</w>", "<|startoftext|>", "<|endoftext|>"])}
DAMAGES = {
    "vocab.json": [
        (None, "vocab.json does not exist"),
        ("", "vocab.json is broken\n.*no JSON"),
        ('{"a": 0, "b', "vocab.json is broken\n.*no JSON"),
        ('{"a": %s}' % ("9" * 5000), "vocab.json is broken\n.*no JSON"),
        ("[1, 2]", "vocab.json is broken\n.*holds list"),
        (b'{"caf\xe9": 0}', "vocab.json is broken\n.*UTF-8"),
        ("{}", "vocab.json is no vocabulary"),
        ('{"a": "0"}', "vocab.json is no vocabulary"),
        ('{"a": 0, "b": 0}', "vocab.json is no vocabulary"),
        ('{"a": 0, "b": 2}', "vocab.json is no vocabulary"),
        (json.dumps({"a": 0, "<|endoftext|>": 1}), "no '<.startoftext.>'"),
        (json.dumps(VOCABULARY), "merges.txt does not fit vocab.json"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "vocab.json is only a pointer(\n.*)*git lfs pull"),
    ],
    "merges.txt": [
        (None, "merges.txt does not exist"),
        ("", "merges.txt is broken"),
        ("#version: 0.2\n", "merges.txt is broken\n.*no merges"),
        ("#version: 0.2\nc a\n\nca t</w>\n", "merges.txt is broken\n.*merge 1 "),
        ("#version: 0.2\nc a t\n", "merges.txt is broken\n.*merge 0 .*'c a t'"),
        ("#version: 0.2\nc a\n", "merges.txt is cut short\n.*'cat</w>'"),
        ("#version: 0.2\nc a\nca t</w>\nd o\n", "merges.txt does not fit vocab.json\n.*`do`"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "merges.txt is only a pointer"),
    ],
    "special_tokens_map.json": [
        (None, "special_tokens_map.json does not exist"),
        ("null", "special_tokens_map.json is broken"),
        ('{"pad_token": 3}', "3 is no token"),
        ('{"eos_token": {"lstrip": false}}', "is no token"),
        ('{"bos_token": "<bos>"}', "no '<bos>'"),
    ],
    "tokenizer_config.json": [
        ("{", "tokenizer_config.json is broken"),
        ('{"model_max_length": 1}', "model_max_length = 1"),
        ('{"model_max_length": "77"}', "model_max_length = '77'"),
        ('{"model_max_length": NaN}', "model_max_length = nan"),
        ('{"truncation_side": "left"}', "truncation_side = 'left'"),
        ('{"padding_side": "left"}', "padding_side = 'left'"),
        ('{"split_special_tokens": true}', "split_special_tokens = True"),
        ('{"added_tokens_decoder": [1]}', "tokenizer_config.json: the added tokens are broken"),
        ('{"added_tokens_decoder": {"x": "<new>"}}', "tokenizer_config.json: the added tokens are broken"),
        ('{"added_tokens_decoder": {"600": "<new>"}}', "'<new>' has id 600 in its file, but gets 516"),
    ],
    "added_tokens.json": [
        ('{"<new>": 516, "<other>": "x"}', "added_tokens.json: the added tokens are broken"),
        ('{"<new>": 520}', "'<new>' has id 520 in its file, but gets 516"),
    ],
    "tokenizer.json": [("[]", "tokenizer.json is broken"), ("[" * 100_000, "tokenizer.json is broken")],
}


@pytest.mark.parametrize("name, content, words", [(name, *damage) for name in DAMAGES for damage in DAMAGES[name]])
def test_a_damaged_folder_is_refused_by_name(folder, name, content, words):
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ModelFileError, match=words) as caught:
        CLIPTokenizer.from_pretrained(folder)
    assert caught.value.why and caught.value.fix


def test_a_file_that_cannot_be_read_is_refused_by_name(folder):
    (folder / "vocab.json").unlink()
    (folder / "vocab.json").mkdir()
    with pytest.raises(ModelFileError, match="vocab.json cannot be read"):
        CLIPTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("added", [[1], [{}], [{"id": None, "content": "<new>"}], {"id": 1}, None])
def test_damaged_added_tokens_of_tokenizer_json_are_refused_by_name(folder, added):
    vocab = json.loads((folder / "vocab.json").read_text())
    model = {"vocab": vocab, "merges": ["c a", "ca t</w>"]}
    write(folder / "tokenizer.json", {"model": model, "added_tokens": added})
    with pytest.raises(ModelFileError, match="tokenizer.json: the added tokens are broken"):
        CLIPTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("model", [None, [], {}, {"vocab": VOCABULARY}, {"vocab": VOCABULARY, "merges": [1, 2]}])
def test_a_damaged_tokenizer_json_is_refused_by_name(folder, model):
    write(folder / "tokenizer.json", {"model": model})
    with pytest.raises(ModelFileError, match="tokenizer.json"):
        CLIPTokenizer.from_pretrained(folder)


def test_the_official_merges_cut_short_are_noticed(tmp_path):
    folder = write_tokenizer(tmp_path / "cut", "sd1")
    (folder / "merges.txt").write_text("\n".join(merges_txt().split("\n")[:30_001]), encoding="utf-8")
    with pytest.raises(ModelFileError, match="cut short\n.*after 30,000 merges"):
        CLIPTokenizer.from_pretrained(folder)
