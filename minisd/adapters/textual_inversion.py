"""Textual inversion: a new word whose vector was learned from pictures (Gal et al., arXiv:2208.01618).

The model stays as it is; the tokenizer gets one more token, the table of token embeddings one more row, E[id] = v. Where several vectors
were learned for one word, they become the tokens `<cat>`, `<cat>_1`, `<cat>_2`, … as in diffusers, and a prompt that says `<cat>` is read
as "<cat> <cat>_1 <cat>_2".

Files: diffusers' learned_embeds.bin or .safetensors, {word: [C] or [N, C]}; A1111's .pt, {"name", "string_to_param": {"*": [N, C]}, …};
its .safetensors, {"emb_params": [N, C]}, whose word is the name of the file. Files of torch are read by `checkpoint/torch_file.py`,
which runs nothing.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..backend import array_module, beside, like, to_numpy
from ..checkpoint.report import FLOATS, shorten, some
from ..errors import ModelFileError, NumericError, UsageError
from .file import locate, read_contents

FILES = ("learned_embeds.safetensors", "learned_embeds.bin")
TABLE = "text_model.embeddings.token_embedding.weight"
MAX_VECTORS = 75  # what a prompt has room for
ANOTHER = "get the embedding for this model's text encoder"


@dataclass(frozen=True)
class TextualInversion:
    """A learned word. vectors [N, C]; tokens: N names, the first one is what a prompt says; source: the file, or ""."""

    tokens: tuple[str, ...]
    vectors: np.ndarray
    source: str = ""


def read_textual_inversion(path, token: str | None = None) -> TextualInversion:
    """Reads a file of any of the forms above; `token` is the word to use instead of the file's own.

    Raises ModelFileError for a file of another kind or an unsafe one, NumericError for NaN.
    """
    path = locate(path, FILES)
    contents, _ = read_contents(path)
    word, vectors = _word_and_vectors(contents, path)
    word = token or word
    if word is None:
        raise UsageError(f"{path} does not say its word", "it holds vectors only", "give one: token='<my-word>'")
    vectors = vectors.read() if hasattr(vectors, "read") else vectors
    return make_textual_inversion(word, vectors, str(path))


def make_textual_inversion(word: str, vectors, source: str = "") -> TextualInversion:
    """One word from its vectors [C] or [N, C]."""
    where = source or "the embedding"
    vectors = to_numpy(vectors) if hasattr(vectors, "dtype") else np.asarray(vectors)
    vectors = vectors[None] if vectors.ndim == 1 else vectors
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or not 1 <= len(vectors) <= MAX_VECTORS:
        what = f"{where}: the embedding is {vectors.dtype} {list(vectors.shape)}"
        raise ModelFileError(what, f"it must be floating numbers [C], or [N, C] with N up to {MAX_VECTORS}, the length of a prompt", ANOTHER)
    if not np.isfinite(vectors).all():
        raise NumericError(f"{where}: the embedding holds NaN or Inf", "it would spread over the whole picture", "train or fetch it again")
    return TextualInversion((word, *(f"{word}_{i}" for i in range(1, len(vectors)))), vectors, source)


def _word_and_vectors(contents, path: Path) -> tuple:
    """What diffusers takes from the same file."""
    if _is_tensor(contents):
        return None, contents
    if not isinstance(contents, dict) or not contents:
        raise ModelFileError(f"{path} is no textual inversion", f"it holds {type(contents).__name__}", ANOTHER)
    if "string_to_param" in contents:
        params, word = contents["string_to_param"], contents.get("name")
        if not isinstance(params, dict) or not params or not (word is None or isinstance(word, str)):
            raise ModelFileError(f"{path} is broken", "string_to_param must hold a tensor, and name a text", ANOTHER)
        vectors = params.get("*", next(iter(params.values())))
        return _checked(word or path.stem, vectors, path)
    if {"clip_l", "clip_g"} & set(contents):
        raise ModelFileError(f"{path} is an embedding for SDXL", f"it holds {some(list(map(str, contents)))}", ANOTHER)
    if len(contents) != 1:
        raise ModelFileError(f"{path} is no textual inversion", f"it holds {some(list(map(str, contents)))}; one word has one entry", ANOTHER)
    ((word, vectors),) = contents.items()
    return _checked(path.stem if word == "emb_params" else word, vectors, path)


def _checked(word, vectors, path: Path) -> tuple:
    if not isinstance(word, str) or not _is_tensor(vectors):
        raise ModelFileError(f"{path} is no textual inversion", f"{shorten(str(word))} is no floating tensor", ANOTHER)
    return word, vectors


def _is_tensor(value) -> bool:
    return isinstance(value, np.ndarray) or getattr(value, "dtype", None) in FLOATS


# ----- on a model ----------------------------------------------------------------------------------------------------------


def check_textual_inversion(inversion: TextualInversion, width: int):
    """Refuses a word that was learned for a text encoder of another width than `width`."""
    C = inversion.vectors.shape[1]
    if C != width:
        families = {768: "SD 1.x", 1024: "SD 2.x", 1280: "the second encoder of SDXL"}
        meant = f"it was learned for {families[C]}; " if C in families else ""
        what = f"{inversion.source or inversion.tokens[0]}: vectors of {C} numbers"
        raise ModelFileError(what, f"{meant}this model's tokens have {width}", ANOTHER)


def add_textual_inversion(tokenizer, text_encoder, inversion: TextualInversion):
    """The word into the tokenizer, its vectors into the table, E[len(tokenizer) + i] = vᵢ. Both are changed in place, or neither."""
    check_textual_inversion(inversion, text_encoder.config.hidden_size)
    table = text_encoder.token_embedding
    count = len(tokenizer)
    if len(table) < count:
        why = f"the tokenizer has {count:,} tokens, the text encoder {len(table):,} vectors"
        raise UsageError("the tokenizer does not belong to the text encoder", why, "load both from one folder")
    tokenizer.add_tokens(list(inversion.tokens))
    with beside(table):
        _set_table(text_encoder, array_module(table).concatenate((table[:count], like(inversion.vectors, table))))


def remove_textual_inversion(tokenizer, text_encoder, words=None):
    """Takes these words away, each with all its vectors, or all that were added. The rows that stay keep their bits."""
    added = tokenizer.added_tokens()
    words = list(added) if words is None else [words] if isinstance(words, str) else list(words)
    tokens = list(dict.fromkeys(token for word in words for token in (word, *further_tokens(word, added))))
    rows = {added[token] for token in tokens if token in added}
    tokenizer.remove_tokens(tokens)
    table = text_encoder.token_embedding
    with beside(table):
        _set_table(text_encoder, table[[i for i in range(len(table)) if i not in rows]])


def _set_table(text_encoder, table):
    text_encoder.params = text_encoder.params.replace({TABLE: table})
    text_encoder.config = dataclasses.replace(text_encoder.config, vocab_size=len(table))


def further_tokens(word: str, added) -> list[str]:
    """`<cat>_1`, `<cat>_2`, … as far as they are among the added tokens."""
    found: list[str] = []
    while (name := f"{word}_{len(found) + 1}") in added:
        found.append(name)
    return found


def expand_words(prompt: str, tokenizer) -> str:
    """ "a <cat> toy" -> "a <cat> <cat>_1 toy" where <cat> has two vectors; diffusers `maybe_convert_prompt`.

    Capitals do not count, as for every token.
    """
    added = tokenizer.added_tokens()
    further = {word: more for word in added if (more := further_tokens(word, added))}
    for word, begin, end in reversed(tokenizer.find_tokens(prompt, further) if further else []):
        prompt = prompt[:begin] + " ".join([word, *further[word]]) + prompt[end:]
    return prompt


class TextualInversionLoaderMixin:
    """The pipeline's part; the names are those of diffusers' `TextualInversionLoaderMixin`."""

    def load_textual_inversion(self, path, token: str | None = None):
        """Teaches the prompt a word: path is a file, a folder with learned_embeds.*, or {word: array}; token renames the word.

        Raises UsageError for a word that exists, ModelFileError for a file of another kind, of another model, or an unsafe one.
        """
        if isinstance(path, dict):
            for word, vectors in path.items():
                add_textual_inversion(self.tokenizer, self.text_encoder, make_textual_inversion(token or word, vectors))
        else:
            add_textual_inversion(self.tokenizer, self.text_encoder, read_textual_inversion(path, token))

    def unload_textual_inversion(self, tokens=None):
        """Forgets these words, or all that were added."""
        remove_textual_inversion(self.tokenizer, self.text_encoder, tokens)

    def maybe_convert_prompt(self, prompt: str) -> str:
        """The prompt with every vector of a learned word written out."""
        return expand_words(prompt, self.tokenizer)
