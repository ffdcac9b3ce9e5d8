"""Tokenizer folders as the official models have them: four files, no tokenizer.json, byte for byte the same vocabulary.

CLIP's vocabulary is its list of merges: 256 bytes, the same with </w>, one token per merge, two special tokens. The merges
alone are stored, golden/clip_merges.txt.xz; vocab.json and merges.txt are rebuilt from them, with the official sha256.
"""

import json
import lzma
from functools import cache
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"
FLAVOURS = ("sd1", "sd2", "turbo")
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


@cache
def merges_txt() -> str:
    """48,894 lines "left right" behind a header, in rank order."""
    return "#version: 0.2\n" + lzma.decompress((GOLDEN / "clip_merges.txt.xz").read_bytes()).decode()


@cache
def vocab_json() -> str:
    """49,408 tokens. The visible Latin-1 characters stand for themselves; the other bytes are written from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = [chr(byte) for byte in visible] + [chr(0x100 + i) for i in range(256 - len(visible))]
    merged = [line.replace(" ", "") for line in merges_txt().splitlines()[1:]]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *merged, BOS, EOS]
    ids = {token: i for i, token in enumerate(tokens)}
    return json.dumps(ids, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def flagged(content: str, normalized: bool = True) -> dict:
    return {"content": content, "lstrip": False, "normalized": normalized, "rstrip": False, "single_word": False}


def special_tokens_map(flavour: str) -> dict:
    pad = {"sd1": EOS, "sd2": "!", "turbo": flagged("!", normalized=False)}[flavour]
    return {"bos_token": flagged(BOS), "eos_token": flagged(EOS), "pad_token": pad, "unk_token": flagged(EOS)}


def tokenizer_config(flavour: str) -> dict:
    """SD 2 names <|endoftext|> as padding here, and is overruled by its special_tokens_map.json."""
    config = {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": 77}
    config["tokenizer_class"] = "CLIPTokenizer"
    if flavour == "turbo":
        added = {"0": flagged("!", normalized=False), "49406": flagged(BOS), "49407": flagged(EOS)}
        config["added_tokens_decoder"] = {number: token | {"special": True} for number, token in added.items()}
        config["clean_up_tokenization_spaces"] = True
        return config | {"bos_token": BOS, "eos_token": EOS, "pad_token": "!", "unk_token": EOS}
    named = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS}
    config |= {name: {"__type": "AddedToken", **flagged(token)} for name, token in named.items()}
    name = {"sd1": "openai/clip-vit-large-patch14", "sd2": "hf-models/stable-diffusion-v2-768x768/tokenizer"}[flavour]
    return config | {"pad_token": EOS, "special_tokens_map_file": "./special_tokens_map.json", "name_or_path": name}


def write_tokenizer(folder: Path, flavour: str) -> Path:
    """Writes the tokenizer folder of an SD 1 model ("sd1"), an SD 2 model ("sd2") or SD-Turbo ("turbo")."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_bytes(vocab_json().encode())
    (folder / "merges.txt").write_bytes(merges_txt().encode())
    for name, content in ("special_tokens_map", special_tokens_map), ("tokenizer_config", tokenizer_config):
        (folder / f"{name}.json").write_text(json.dumps(content(flavour), indent=2, sort_keys=True) + "\n")
    return folder
