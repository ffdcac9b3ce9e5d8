"""A tokenizer's files: the vocabulary, the merges, and what special tokens there are; each refused by name where it is broken.

    vocab.json, merges.txt                    {token: id}; two symbols a line, by rank
    special_tokens_map.json                   which token pads
    tokenizer_config.json                     how many positions, and what of transformers' options is not the default
    tokenizer.json, added_tokens.json         instead of or beside them, by the version of transformers that wrote the folder
"""

import json
from pathlib import Path

from .errors import ModelFileError

MAX_CHARACTERS = 1_000_000
POSITIONS = 77  # where tokenizer_config.json does not say
SPECIAL_TOKENS = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}
# Fields of tokenizer_config.json that would change the ids, with the only value that is implemented.
NEUTRAL = {"padding_side": "right", "truncation_side": "right", "split_special_tokens": False}
REFETCH = "fetch the tokenizer folder of the model again"


def refuse_cut_merges(vocab: dict, merges: list, special: set) -> None:
    """Cut at the end of a line, merges.txt looks whole. But CLIP numbers merge r as 512 + r, and special tokens follow."""
    follower = next((token for token, i in vocab.items() if i == 512 + len(merges)), None)
    if vocab.get("".join(merges[-1])) == 511 + len(merges) and follower is not None and follower not in special:
        raise ModelFileError("merges.txt is cut short", f"after {len(merges):,} merges none makes {follower!r}", REFETCH)


def content(token) -> str:
    """The text of a token that is given as a string or as a dict with flags."""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str) or not text:
        raise ModelFileError(f"{token!r} is no token", "it is a string, or an object whose `content` is one", REFETCH)
    return text


def read_vocabulary(folder: Path) -> tuple[dict, list]:
    """vocab {token: id} and merges [(left, right), …] by rank."""
    vocab_file, merges_file, whole = folder / "vocab.json", folder / "merges.txt", folder / "tokenizer.json"
    if whole.exists():  # transformers, too, then leaves the older files alone
        vocab_file = merges_file = whole
        model = _read_json(whole).get("model")
        vocab, lines = (model.get("vocab"), model.get("merges")) if isinstance(model, dict) else (None, None)
    else:
        vocab, lines = _read_json(vocab_file), _read_text(merges_file).rstrip().split("\n")
        lines = lines[1:] if lines[0].startswith("#version") else lines
    ids = list(vocab.values()) if isinstance(vocab, dict) else []
    if not ids or not all(isinstance(i, int) for i in ids) or set(ids) != set(range(len(ids))):
        why = "it must number its tokens 0, 1, 2, … without a gap"
        raise ModelFileError(f"{vocab_file} is no vocabulary", why, REFETCH)
    if not isinstance(lines, list) or not lines:
        raise ModelFileError(f"{merges_file} is broken", "it has no merges", REFETCH)
    merges = [line.split() if isinstance(line, str) else line for line in lines]  # tokenizer.json: "l r" or ["l", "r"]
    for rank, pair in enumerate(merges):
        if not isinstance(pair, list) or len(pair) != 2:
            why = f"merge {rank} is not two symbols but {lines[rank]!r:.60}"
            raise ModelFileError(f"{merges_file} is broken", why, REFETCH)
    return vocab, [tuple(pair) for pair in merges]


def read_settings(folder: Path, pad_token: str | None) -> tuple[dict, dict, int]:
    """Special tokens by name, added tokens by id, and the number of positions."""
    config_file = folder / "tokenizer_config.json"
    config = _read_json(config_file, default={})
    for field, only in NEUTRAL.items():
        if config.get(field, only) != only:
            why = f"it changes the ids, and only {only!r} is implemented"
            raise ModelFileError(f"{config_file}: {field} = {config[field]!r}", why, "use another tokenizer folder")
    length = config.get("model_max_length", POSITIONS)
    if not isinstance(length, (int, float)) or not length >= 2:
        raise ModelFileError(f"{config_file}: model_max_length = {length!r}", "it must be 2 or more", REFETCH)
    length = int(length) if length <= MAX_CHARACTERS else POSITIONS  # transformers writes 1e30 for "not known"

    whole, older = {}, {}
    if "added_tokens_decoder" not in config:  # with it, as in sd-turbo, transformers leaves these three files alone
        whole = _read_json(folder / "tokenizer.json", default={})
        older = _read_json(folder / "added_tokens.json", default={})
        # May not be missing: SD 2 would be padded with the wrong token, and nobody would see it.
        known = {"pad_token": pad_token} if pad_token else {} if whole else None
        config |= _read_json(folder / "special_tokens_map.json", default=known)
    special = {name: config[name] for name in SPECIAL_TOKENS if config.get(name)}
    named = set(map(content, special.values()))
    try:
        added = {int(number): token for number, token in config.get("added_tokens_decoder", {}).items()}
        for token, number in older.items():
            added[int(number)] = {"content": token, "special": token in named, "normalized": token not in named}
        added |= {int(token["id"]): token for token in whole.get("added_tokens", [])}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        source = "tokenizer.json" if whole else "added_tokens.json" if older else config_file.name
        raise ModelFileError(f"{folder / source}: the added tokens are broken", repr(error), REFETCH) from error
    return special, added, length


def _read_json(path: Path, default: dict | None = None) -> dict:
    """The object in the file; `default`, where given, stands for a file that does not exist."""
    if default is not None and not path.exists():
        return default
    text = _read_text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is broken", f"it is no JSON: {error}", REFETCH) from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} is broken", f"it holds {type(value).__name__}, not an object", REFETCH)
    return value


def _read_text(path: Path) -> str:
    """UTF-8, with or without a byte order mark."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ModelFileError(f"{path} does not exist", "a tokenizer folder must have it", REFETCH) from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read", str(error), "check the path and its permissions") from error
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{path} is broken", f"it is no UTF-8 text: {error}", REFETCH) from error
    if text.startswith("version https://git-lfs"):
        raise ModelFileError(f"{path} is only a pointer", "the file itself is kept by Git LFS", "run: git lfs pull")
    return text
