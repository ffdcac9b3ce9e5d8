"""Adapters that are named on the command line: checked against the configs of a model before its weights are read, then applied."""

import math
import re
from dataclasses import dataclass

from ..errors import UsageError
from .file import sha256
from .lora_file import LoraFile, check_lora
from .textual_inversion import TABLE, TextualInversion, add_textual_inversion, check_textual_inversion, read_textual_inversion


@dataclass(frozen=True)
class Plans:
    """loras: (what was typed, the checked file, its scale)        words: (what was typed, the learned word)"""

    loras: tuple[tuple[str, LoraFile, float], ...]
    words: tuple[tuple[str, TextualInversion], ...]

    @classmethod
    def check(cls, loras, embeddings, shapes: dict, layers_per_block) -> "Plans":
        """loras: "FILE" or "FILE:SCALE"; embeddings: "FILE"; shapes: {"unet": {tensor: shape}, "text_encoder": {…}}."""
        typed = [(text, *split_scale(text)) for text in loras]
        words = tuple((text, read_textual_inversion(text)) for text in embeddings)
        for _, word in words:
            check_textual_inversion(word, shapes["text_encoder"][TABLE][1])
        return cls(tuple((text, check_lora(file, shapes, layers_per_block), scale) for text, file, scale in typed), words)

    def expect_new_words(self, tokenizer):
        """Raises UsageError for a word that the tokenizer has already; it learns the others, so give one that is not used further."""
        for _, word in self.words:
            tokenizer.add_tokens(list(word.tokens))

    def touched(self, shapes: dict) -> int:
        """How many numbers the weights have that the LoRAs change."""
        names = {(part, name) for _, file, _ in self.loras for part, layers in file.layers.items() for name in layers}
        return sum(math.prod(shapes[part][name]) for part, name in names)

    def apply(self, pipe):
        """Adds the words, and merges the LoRAs for good: their original weights are given up."""
        for _, word in self.words:
            add_textual_inversion(pipe.tokenizer, pipe.text_encoder, word)
        if self.loras:
            names = [str(i) for i in range(len(self.loras))]
            for name, (_, file, _) in zip(names, self.loras):
                pipe.load_lora_weights(file, adapter_name=name)
            pipe.set_adapters(names, [scale for _, _, scale in self.loras])
            pipe.fuse_lora()
            pipe.unload_lora_weights()

    def recipe(self) -> dict:
        """What a recipe records: files with their hashes, and scales or words. Nothing, where there are none."""
        loras = [{"file": str(file.path), "scale": scale, "sha256": sha256(file.path)} for _, file, scale in self.loras]
        words = [{"file": word.source, "token": word.tokens[0], "sha256": sha256(word.source)} for _, word in self.words]
        return {**({"loras": loras} if loras else {}), **({"embeddings": words} if words else {})}


def split_scale(text: str) -> tuple[str, float]:
    """"ink.safetensors:0.8" -> ("ink.safetensors", 0.8); without a number behind the last colon the scale is 1."""
    file, colon, scale = text.rpartition(":")
    if not colon or not re.fullmatch(r"[\w.+-]+", scale) or scale.lower().endswith((".safetensors", ".bin", ".pt")):
        return text, 1.0
    try:
        number = float(scale)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"--lora {text}: {scale!r} is no scale", "it must be a finite number", "write FILE or FILE:0.8")
    return file, number
