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
from .tokenizer_files import MAX_CHARACTERS, REFETCH, SPECIAL_TOKENS, content, read_settings, read_vocabulary, refuse_cut_merges

log = logging.getLogger("minisd")

WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


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
        self.bos_token, self.eos_token, self.unk_token, self.pad_token = map(content, names.values())
        for token in (self.bos_token, self.eos_token, self.unk_token):
            if token not in vocab:
                why = "it is not the vocabulary of a CLIP text encoder"
                raise ModelFileError(f"the vocabulary has no {token!r}", why, REFETCH)
        refuse_cut_merges(vocab, merges, set(map(content, [*names.values(), *added_tokens.values()])))
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
        return cls(*read_vocabulary(folder), *read_settings(folder, pad_token))

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
        named = {content(token) for token in names.values()}
        declared = {content(token): number for number, token in sorted(added_tokens.items())}
        tokens = [_added_token(added_tokens[number], named) for number in declared.values()]
        # Named twice, a token keeps the last flags: SD 1's <|endoftext|> is a dict as eos, then a string as pad.
        tokens += [_added_token(token, named) for token in names.values() if content(token) not in declared]
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


def _added_token(token, named: set):
    """A string is a special token; a dict says so itself, or is one because the tokenizer names it."""
    from tokenizers import AddedToken

    given = token if isinstance(token, dict) else {"special": True}
    flags = {flag: bool(given[flag]) for flag in ("lstrip", "rstrip", "single_word", "normalized") if flag in given}
    return AddedToken(content(token), special=content(token) in named or given.get("special", False), **flags)


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
