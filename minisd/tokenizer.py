"""CLIP's tokenizer: a prompt becomes 77 integers, which are all that the text encoder ever sees of it.

Byte-pair encoding as in OpenAI's CLIP (Radford et al. 2021, arXiv:2103.00020; the merging is Sennrich et al. 2016, arXiv:1508.07909).
It matches transformers' `CLIPTokenizer`, number by number. "A  Café!" goes this way:

    normalise   Unicode NFC; every run of white space becomes one blank; lower case, character by character    a café!
    split       into words: 's 't 're 've 'm 'll 'd | a run of letters | ONE digit | a run of other signs      a · café · !
    spell       each UTF-8 byte is written as one visible letter (so no byte is ever unknown), and the last
                one of a word carries </w>: "cat" as a word and "cat" in "catalogue" are different tokens      c a f Ã ©</w>
    merge       join the two neighbours that stand highest in merges.txt, leftmost first, until no pair of
                neighbours stands there any more                                                               cafÃ©</w>
    look up     vocab.json numbers the 256 bytes, the 256 bytes with </w>, one token per line of merges.txt
                in that order, and last <|startoftext|> and <|endoftext|>                                      320 15304 256
    frame       <|startoftext|> + at most 75 tokens + <|endoftext|>, then padding up to 77: the text encoder
                has 77 position embeddings, the longest caption CLIP was trained on

Traps. SD 1 pads with <|endoftext|>, SD 2 and the turbo models with "!" (id 0), and the text encoder does not mask its padding, so
the wrong one changes the picture. SD 2's tokenizer_config.json names the wrong one; special_tokens_map.json wins. And because "!" is
then a special token, it is cut out of the prompt before anything else: "hello!" ends with 0 in SD 2, with 256 in SD 1. Lower case
is not `str.lower()`: a final Σ stays σ. A prompt that spells <|endoftext|> really ends there, as in diffusers.
"""

import json
import logging
import operator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import ModelFileError, UsageError

log = logging.getLogger("minisd")

MAX_CHARACTERS = 1_000_000
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
SPECIAL_TOKENS = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}
POSITIONS = 77  # of every CLIP text encoder in Stable Diffusion; used where tokenizer_config.json gives none


@dataclass(frozen=True, eq=False)
class Tokens:
    """What the tokenizer returns: `.input_ids` and `.attention_mask` (1 = prompt, 0 = padding), also as `tokens["input_ids"]`.

    Both int64 [B, T]; lists of lists where `padding=False` or `truncation=False` leaves rows of different lengths.
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
    """Prompt -> ids [B, 77] int64. Matches transformers' `CLIPTokenizer`; the algorithm stands at the top of this file."""

    def __init__(self, vocab: dict, merges: list, special_tokens: dict = {}, added_tokens: dict = {}, model_max_length: int = POSITIONS):
        """vocab {token: id}; merges [(left, right)] in rank order; special_tokens {"pad_token": …} where they differ from
        SPECIAL_TOKENS; added_tokens {id: token}. Those two give a token as a string or as an object of the JSON files."""
        names = SPECIAL_TOKENS | special_tokens
        for name in ("bos_token", "eos_token", "unk_token"):
            if _content(names[name]) not in vocab:
                raise ModelFileError(
                    f"the vocabulary has no {name} {_content(names[name])!r}",
                    "it is not the vocabulary of a CLIP text encoder, or it is incomplete",
                    "take vocab.json and special_tokens_map.json from one and the same model",
                )
        self._backend = _backend(vocab, merges, _content(names["unk_token"]))
        self._add_declared(names, added_tokens)
        self.model_max_length = model_max_length
        self.bos_token, self.eos_token, self.unk_token, self.pad_token = (_content(names[name]) for name in SPECIAL_TOKENS)
        self.bos_token_id, self.eos_token_id, self.unk_token_id, self.pad_token_id = map(
            self._backend.token_to_id, (self.bos_token, self.eos_token, self.unk_token, self.pad_token)
        )

    @classmethod
    def from_pretrained(cls, folder, subfolder: str | None = None) -> "CLIPTokenizer":
        """Reads vocab.json, merges.txt, special_tokens_map.json and tokenizer_config.json, or the tokenizer.json of newer folders."""
        folder = Path(folder, subfolder or "")
        vocab, merges = _read_vocabulary(folder)
        return cls(vocab, merges, *_read_settings(folder))

    def __call__(self, text, padding="max_length", truncation=True, max_length: int | None = None, return_tensors="np") -> Tokens:
        """One prompt or a list of prompts -> ids and mask, int64 [B, T].

        `padding`: "max_length", "longest" (= True) or False. `truncation=False` keeps every token of a long prompt.
        `max_length` counts both ends; by default `model_max_length`, 77.
        """
        prompts = _checked_prompts(text)
        limit = self.model_max_length if max_length is None else _checked_length(max_length)
        if return_tensors != "np":
            raise UsageError(
                f"return_tensors={return_tensors!r} is not supported", "minisd computes with NumPy arrays", 'use return_tensors="np"'
            )
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
                raise UsageError(f"padding={padding!r} is unknown", "", 'use "max_length", "longest" or False')
        masks = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
        rows = [row + [self.pad_token_id] * (width - len(row)) for row in rows]
        if len({len(row) for row in rows}) > 1:
            return Tokens(rows, masks)
        return Tokens(np.array(rows, dtype=np.int64), np.array(masks, dtype=np.int64))

    def _frame(self, prompt: str, limit: int | None) -> list[int]:
        """bos + the prompt's ids + eos, cut to `limit` ids with a warning that says what is lost."""
        # Ends, limit and padding are ours, not the backend's: it keeps such settings between calls, and threads share it.
        encoding = self._backend.encode(prompt, add_special_tokens=False)
        ids = encoding.ids
        room = len(ids) if limit is None else limit - 2
        if (lost := len(ids) - room) > 0:
            start = encoding.offsets[room][0]
            rest = " ".join(prompt[start : start + 100].split())
            rest = rest if len(rest) <= 24 and len(prompt) <= start + 100 else rest[:24].rstrip() + "..."
            are = "token is" if lost == 1 else "tokens are"
            log.warning("%d-token limit: the last %s %s ignored, from %r", limit, f"{lost:,}", are, rest)
        return [self.bos_token_id, *ids[:room], self.eos_token_id]

    def table(self, prompt: str) -> list[tuple[int, str]]:
        """The whole prompt as (id, token) with both ends: [(49406, "<|startoftext|>"), (320, "a</w>"), …]; not cut, not padded."""
        (prompt,) = _checked_prompts(prompt)
        ids = self._frame(prompt, None)
        return list(zip(ids, self.convert_ids_to_tokens(ids)))

    def decode(self, ids, skip_special_tokens: bool = False) -> str | list[str]:
        """ids (one, [T], or [B, T] for a list of texts) -> the text, lower case and with one blank behind every word."""
        if np.ndim(ids) == 2:
            return [self.decode(row, skip_special_tokens) for row in ids]
        ids = [operator.index(i) for i in np.atleast_1d(ids)]
        self.convert_ids_to_tokens(ids)  # refuses ids that the backend would skip in silence
        text = self._backend.decode(ids, skip_special_tokens=skip_special_tokens)
        return text.replace("</w>", " ").strip()

    def convert_ids_to_tokens(self, ids) -> str | list[str]:
        """Ids -> tokens in the byte alphabet: 6829 -> "puppy</w>", 15304 -> "cafÃ©</w>"."""
        if np.ndim(ids) > 0:
            return [self.convert_ids_to_tokens(i) for i in ids]
        token = self._backend.id_to_token(operator.index(ids)) if ids >= 0 else None
        if token is None:
            raise UsageError(f"token id {ids} does not exist", f"the vocabulary has the ids 0 to {len(self) - 1}")
        return token

    def convert_tokens_to_ids(self, tokens) -> int | list[int]:
        """Tokens as `table` shows them -> ids; what is no token gets `unk_token_id`, as in transformers."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        found = self._backend.token_to_id(tokens)
        return self.unk_token_id if found is None else found

    def add_tokens(self, tokens: str | list[str]) -> int:
        """Appends new tokens behind the vocabulary, in order, and returns how many.

        They are found anywhere in the normalised prompt, also inside a word: "<Cat>" is the same as "<cat>".
        """
        tokens = _checked_prompts(tokens)
        normal = self._backend.normalizer.normalize_str
        taken = {normal(token.content) for token in self._backend.get_added_tokens_decoder().values()}
        for token in tokens:
            if not token.strip() or normal(token) in taken or self._backend.token_to_id(token) is not None:
                raise UsageError(
                    f"the token {token!r} cannot be added",
                    "it is empty, or it is in the vocabulary already (capitals do not count)",
                    f"choose another name, for example {f'<my-{token.strip()}>'!r}",
                )
            taken.add(normal(token))
        return self._backend.add_tokens(tokens)

    @property
    def vocab_size(self) -> int:
        """How many tokens vocab.json has: 49,408 in CLIP."""
        return self._backend.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        """The tokens of vocab.json and the added ones: the rows that the embedding table must have."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def __repr__(self) -> str:
        return f"CLIPTokenizer({len(self)} tokens, model_max_length={self.model_max_length}, pad_token={self.pad_token!r})"

    def _add_declared(self, names: dict, added_tokens: dict) -> None:
        """Makes the backend cut special and added tokens out of a prompt before it splits words, in transformers' order."""
        named = {_content(value) for value in names.values()}
        declared = {_content(value) for value in added_tokens.values()}
        tokens = [_added_token(value, named) for _, value in sorted(added_tokens.items())]
        # A token that is named twice takes the flags of the last name: SD 1's <|endoftext|> is an object as eos, a string as pad.
        tokens += [_added_token(value, named) for value in names.values() if _content(value) not in declared]
        self._backend.add_tokens(tokens)
        for number, value in added_tokens.items():
            if (actual := self._backend.token_to_id(_content(value))) != number:
                raise ModelFileError(
                    f"the added token {_content(value)!r} should have id {number}, but it gets {actual}",
                    "tokenizer_config.json (or added_tokens.json) does not belong to this vocab.json",
                    "take all files of the tokenizer folder from one model",
                )
