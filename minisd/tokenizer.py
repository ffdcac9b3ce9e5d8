"""CLIP's tokenizer: a prompt becomes 77 integers, and they are all that the text encoder ever sees of it.

Byte-pair encoding as in CLIP (Radford et al. 2021, arXiv:2103.00020; Sennrich et al. 2016, arXiv:1508.07909), number for
number what transformers' `CLIPTokenizer` returns. "A  Café!" goes this way:

    normalise   Unicode NFC; a run of white space becomes one blank; lower case                          a café!
    split       into words: 's 't 're 've 'm 'll 'd, or letters, or ONE digit, or other signs            a · café · !
    spell       each UTF-8 byte is written as one visible letter, so that no byte is unknown; the
                last one of a word carries </w>, so that "cat" and the start of "catalogue" differ       c a f Ã ©</w>
    merge       join the neighbours that stand highest in merges.txt, the leftmost first, until no
                two neighbours stand there any more                                                      cafÃ©</w>
    look up     vocab.json counts 256 bytes, 256 bytes with </w>, then one token per line of
                merges.txt, and last <|startoftext|> and <|endoftext|>                                   320 15304 256
    frame       <|startoftext|>, at most 75 ids, <|endoftext|>, and padding: 77 in all, because CLIP has 77 positions

Traps. SD 1 pads with <|endoftext|>, SD 2 and the turbo models with "!" (id 0). The text encoder does not mask padding, so
the wrong one changes the picture; SD 2's tokenizer_config.json names the wrong one, special_tokens_map.json wins. "!" is
then a special token, cut out before everything else: "hello!" ends with id 0 in SD 2, with 256 in SD 1. Lower case goes
character by character: a final Σ becomes σ, not the ς of `str.lower()`. A prompt that spells <|endoftext|> gets that token.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import ModelFileError, UsageError

log = logging.getLogger("minisd")

MAX_CHARACTERS = 1_000_000
POSITIONS = 77  # where tokenizer_config.json does not say
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
SPECIAL_TOKENS = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}
# Fields of tokenizer_config.json that would change the ids, with the only value that is implemented.
NEUTRAL = {"padding_side": "right", "truncation_side": "right", "split_special_tokens": False}
REFETCH = "fetch the tokenizer folder of the model again"


@dataclass(frozen=True, eq=False)
class Tokens:
    """`input_ids` and `attention_mask` (1 prompt, 0 padding), also as tokens["input_ids"]: int64 [B, T].

    Lists of lists where `padding=False` or `truncation=False` leaves rows of different lengths.
    """

    input_ids: np.ndarray | list
    attention_mask: np.ndarray | list

    def keys(self) -> tuple:
        return ("input_ids", "attention_mask")

    def __getitem__(self, name: str):
        if name not in self.keys():
            raise KeyError(name)
        return getattr(self, name)


class CLIPTokenizer:
    """A prompt -> ids [B, 77] int64, by the steps at the top of this file. Must match transformers' `CLIPTokenizer`."""

    def __init__(self, vocab: dict, merges: list, special_tokens: dict, added_tokens: dict, model_max_length: int):
        """vocab {token: id}; merges [(left, right), …] by rank; special_tokens {"pad_token": "!", …} where they differ
        from SPECIAL_TOKENS; added_tokens {id: token}. A token is a string, or a dict with "content" and flags."""
        names = SPECIAL_TOKENS | special_tokens
        self.bos_token, self.eos_token, self.unk_token, self.pad_token = map(_content, names.values())
        for token in (self.bos_token, self.eos_token, self.unk_token):
            if token not in vocab:
                why = "it is not the vocabulary of a CLIP text encoder"
                raise ModelFileError(f"the vocabulary has no {token!r}", why, REFETCH)
        _refuse_cut_merges(vocab, merges, set(map(_content, [*names.values(), *added_tokens.values()])))
        self._backend = _backend(vocab, merges, self.unk_token)
        self._declare(names, added_tokens)
        self.bos_token_id = self._backend.token_to_id(self.bos_token)
        self.eos_token_id = self._backend.token_to_id(self.eos_token)
        self.unk_token_id = self._backend.token_to_id(self.unk_token)
        self.pad_token_id = self._backend.token_to_id(self.pad_token)
        self.model_max_length = model_max_length

    @classmethod
    def from_pretrained(cls, folder, subfolder: str | None = None, *, pad_token: str | None = None) -> "CLIPTokenizer":
        """Reads vocab.json, merges.txt, special_tokens_map.json and tokenizer_config.json, as official models have them,
        or the tokenizer.json that transformers 5 saves in place of the first three.

        folder: the pipeline's folder, or the tokenizer's own.        pad_token: what pads where there is no special_tokens_map.json
        """
        folder = Path(folder, subfolder or "")
        if (folder / "tokenizer").is_dir() and not (folder / "vocab.json").exists():
            folder = folder / "tokenizer"
        return cls(*_read_vocabulary(folder), *_read_settings(folder, pad_token))

    def __call__(self, text, padding="max_length", truncation=True, max_length=None, return_tensors="np") -> Tokens:
        """One prompt or a list of prompts -> ids and mask, int64 [B, T].

        `padding`: "max_length", "longest" (= True) or False. `truncation=False` keeps every token of a long prompt.
        `max_length` counts both ends; it is `model_max_length`, 77, by default.
        """
        prompts = _checked_texts(text, "prompt")
        limit = self.model_max_length if max_length is None else max_length
        if not isinstance(limit, (int, np.integer)) or not 2 <= limit <= MAX_CHARACTERS:
            raise UsageError(f"max_length={limit!r} cannot be meant", "2 are for the ends", "leave it out")
        if truncation not in (True, False):
            raise UsageError(f"truncation={truncation!r} is unknown", fix="use True or False")
        if return_tensors != "np":
            raise UsageError(f"return_tensors={return_tensors!r} is unknown", "minisd has NumPy arrays", 'use "np"')
        framed = {prompt: self._frame(prompt, limit if truncation else None) for prompt in dict.fromkeys(prompts)}
        rows = [framed[prompt] for prompt in prompts]
        match padding:
            case "max_length":
                width = limit
            case "longest" | True:
                width = max(map(len, rows))
            case "do_not_pad" | False:
                width = 0
            case _:
                raise UsageError(f"padding={padding!r} is unknown", fix='use "max_length", "longest" or False')
        masks = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
        rows = [row + [self.pad_token_id] * (width - len(row)) for row in rows]
        if len({len(row) for row in rows}) > 1:
            return Tokens(rows, masks)
        return Tokens(np.array(rows, dtype=np.int64), np.array(masks, dtype=np.int64))

    def _frame(self, prompt: str, limit: int | None) -> list[int]:
        """bos + ids + eos, cut to `limit` with a warning that says what is lost."""
        # Ends, limit and padding are not left to the backend: threads share it, and it keeps such settings between calls.
        encoding = self._backend.encode(prompt, add_special_tokens=False)
        ids = encoding.ids
        room = len(ids) if limit is None else limit - 2
        if (lost := len(ids) - room) > 0:
            rest = prompt[encoding.offsets[room][0] :].strip()
            rest = rest if len(rest) <= 24 else rest[:24].rstrip() + "..."
            are = "token is" if lost == 1 else "tokens are"
            log.warning("%d-token limit: the last %s %s ignored, from %r", limit, f"{lost:,}", are, rest)
        return [self.bos_token_id, *ids[:room], self.eos_token_id]

    def table(self, prompt: str) -> list[tuple[int, str]]:
        """The whole prompt, not cut and not padded: [(49406, "<|startoftext|>"), (320, "a</w>"), …]."""
        (prompt,) = _checked_texts(prompt, "prompt")
        ids = self._frame(prompt, None)
        return list(zip(ids, self.convert_ids_to_tokens(ids)))

    def decode(self, ids, skip_special_tokens: bool = False) -> str | list[str]:
        """One id or ids [T] -> text in lower case, a blank behind every word; ids [B, T] -> a list of texts."""
        ids = _plain(ids)
        ids = [ids] if isinstance(ids, int) else [_plain(i) for i in ids]
        if any(isinstance(row, list) for row in ids):
            return [self.decode(row, skip_special_tokens) for row in ids]
        self.convert_ids_to_tokens(ids)  # refuses ids that the backend would skip in silence
        return self._backend.decode(ids, skip_special_tokens=skip_special_tokens).replace("</w>", " ").strip()

    def convert_ids_to_tokens(self, ids) -> str | list[str]:
        """Ids -> tokens as vocab.json spells them: 6829 -> "puppy</w>", 15304 -> "cafÃ©</w>"."""
        ids = _plain(ids)
        if not isinstance(ids, int):
            return [self.convert_ids_to_tokens(i) for i in ids]
        token = self._backend.id_to_token(ids) if 0 <= ids < len(self) else None
        if token is None:
            raise UsageError(f"no token has the id {ids}", f"ids run from 0 to {len(self) - 1}")
        return token

    def convert_tokens_to_ids(self, tokens) -> int | list[int]:
        """Tokens as vocab.json spells them -> ids; anything else gets `unk_token_id`, as in transformers."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        found = self._backend.token_to_id(tokens)
        return self.unk_token_id if found is None else found

    def add_tokens(self, tokens: str | list[str]) -> int:
        """Appends new tokens behind the vocabulary, in this order, and returns how many.

        They are found in the normalised prompt before it is split: "<Cat>" is also "<cat>", and is found inside a word.
        """
        tokens = _checked_texts(tokens, "token")
        normalise = self._backend.normalizer.normalize_str
        taken = {normalise(token.content) for token in self._backend.get_added_tokens_decoder().values()}
        for token in tokens:
            if not token.strip() or normalise(token) in taken or self._backend.token_to_id(token) is not None:
                why = "it is empty, or the vocabulary has it already (capitals do not count)"
                raise UsageError(f"the token {token!r} cannot be added", why, "choose another, such as '<my-style>'")
            taken.add(normalise(token))
        return self._backend.add_tokens(tokens)

    def added_tokens(self) -> dict[str, int]:
        """{token: id} of what `add_tokens` appended, in the order of the ids; special tokens are not among them."""
        decoder = self._backend.get_added_tokens_decoder()
        return {decoder[i].content: i for i in sorted(decoder) if not decoder[i].special}

    def remove_tokens(self, tokens: list[str]) -> None:
        """Takes tokens away that were added; those behind them move up, so that ids have no gap."""
        from tokenizers import Tokenizer

        added = self.added_tokens()
        if unknown := [token for token in tokens if token not in added]:
            raise UsageError(f"{unknown[0]!r} is no added token", f"added are: {', '.join(added) or 'none'}", "choose one of them")
        description = json.loads(self._backend.to_str())
        kept = [token for token in description["added_tokens"] if token["content"] not in set(tokens)]
        number = min(added.values(), default=0)
        for token in kept:
            if token["content"] in added:
                token["id"], number = number, number + 1
        self._backend = Tokenizer.from_str(json.dumps({**description, "added_tokens": kept}))

    def find_tokens(self, prompt: str, tokens) -> list[tuple[str, int, int]]:
        """Where the given added tokens stand in a prompt: (token, begin, end) in characters, from left to right."""
        encoding = self._backend.encode(prompt, add_special_tokens=False)
        names = {number: token for token, number in self.added_tokens().items() if token in tokens}
        return [(names[number], *span) for number, span in zip(encoding.ids, encoding.offsets) if number in names]

    @property
    def vocab_size(self) -> int:
        """The number of tokens in vocab.json, without added ones."""
        return self._backend.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        """The number of all tokens: the rows that the token embedding must have."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def __repr__(self) -> str:
        return f"CLIPTokenizer({len(self):,} tokens, {self.model_max_length} positions, padded with {self.pad_token!r})"

    def _declare(self, names: dict, added_tokens: dict) -> None:
        """Tells the backend which tokens to cut out of a prompt before it is split, in transformers' order."""
        named = {_content(token) for token in names.values()}
        declared = {_content(token): number for number, token in sorted(added_tokens.items())}
        tokens = [_added_token(added_tokens[number], named) for number in declared.values()]
        # Named twice, a token keeps the last flags: SD 1's <|endoftext|> is a dict as eos, then a string as pad.
        tokens += [_added_token(token, named) for token in names.values() if _content(token) not in declared]
        self._backend.add_tokens(tokens)
        for token, number in declared.items():
            if (got := self._backend.token_to_id(token)) != number:
                what = f"the added token {token!r} has id {number} in its file, but gets {got}"
                raise ModelFileError(what, "the files of the tokenizer folder belong to different models", REFETCH)


def _backend(vocab: dict, merges: list, unk_token: str):
    """Normalise, split, spell and merge, in the compiled `tokenizers` library."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    try:
        bpe = models.BPE(vocab, merges, unk_token=unk_token, continuing_subword_prefix="", end_of_word_suffix="</w>")
    except Exception as error:  # the library raises no narrower class
        raise ModelFileError("merges.txt does not fit vocab.json", f"`tokenizers` says: {error}", REFETCH) from error
    backend = Tokenizer(bpe)
    blanks = normalizers.Replace(Regex(r"\s+"), " ")
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), blanks, normalizers.Lowercase()])
    split = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    return backend


def _refuse_cut_merges(vocab: dict, merges: list, special: set) -> None:
    """Cut at the end of a line, merges.txt looks whole. But CLIP numbers merge r as 512 + r, and special tokens follow."""
    follower = next((token for token, i in vocab.items() if i == 512 + len(merges)), None)
    if vocab.get("".join(merges[-1])) == 511 + len(merges) and follower is not None and follower not in special:
        raise ModelFileError("merges.txt is cut short", f"after {len(merges):,} merges none makes {follower!r}", REFETCH)


def _content(token) -> str:
    """The text of a token that is given as a string or as a dict with flags."""
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str) or not content:
        raise ModelFileError(f"{token!r} is no token", "it is a string, or an object whose `content` is one", REFETCH)
    return content


def _added_token(token, named: set):
    """A string is a special token; a dict says so itself, or is one because the tokenizer names it."""
    from tokenizers import AddedToken

    given = token if isinstance(token, dict) else {"special": True}
    flags = {flag: bool(given[flag]) for flag in ("lstrip", "rstrip", "single_word", "normalized") if flag in given}
    return AddedToken(_content(token), special=_content(token) in named or given.get("special", False), **flags)


def _plain(ids):
    """NumPy arrays and integers as Python lists and ints; anything else as it is."""
    return ids.tolist() if isinstance(ids, (np.ndarray, np.generic)) else ids


def _checked_texts(text, what: str) -> list[str]:
    """A string or a list of strings, as a list."""
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, (list, tuple)) or not texts:
        why = f"a {what} is a string; several are a list of at least one"
        raise UsageError(f"{text!r:.60} is no {what}", why, 'give "" for an empty one')
    for i, text in enumerate(texts):
        name = what if len(texts) == 1 else f"{what} {i}"
        if not isinstance(text, str):
            raise UsageError(f"{name} is no string: {text!r:.60}", fix="turn it into a string first")
        if len(text) > MAX_CHARACTERS:
            raise UsageError(f"{name} has {len(text):,} characters", f"the limit is {MAX_CHARACTERS:,}", "shorten it")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            why = f"{text[error.start]!r} is half of a surrogate pair: a byte that was no UTF-8 when it was read"
            fix = "type it again, or read its file with the right encoding"
            raise UsageError(f"{name} is not valid Unicode at position {error.start}", why, fix) from None
    return list(texts)


def _read_vocabulary(folder: Path) -> tuple[dict, list]:
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


def _read_settings(folder: Path, pad_token: str | None) -> tuple[dict, dict, int]:
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
    named = set(map(_content, special.values()))
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
