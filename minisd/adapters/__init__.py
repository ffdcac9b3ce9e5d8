"""What changes a loaded model: textual inversion gives the prompt new words, LoRA adds a small matrix to chosen weights.

    file.py                which file is meant, its hash, and its tensors
    textual_inversion.py   learned words: reading, adding, taking away
    lora_names.py          the dialects of LoRA files -> the names of the weights
    lora_file.py           a LoRA file, checked against a model's weights
    plans.py               adapters named on the command line, checked before weights are read
    lora.py                W′ = W + scale · B A: merging, weighing, taking away
"""

from .lora import LoraLoaderMixin, LoraReport
from .lora_file import check_lora
from .plans import Plans
from .textual_inversion import TextualInversionLoaderMixin, read_textual_inversion

__all__ = ["LoraLoaderMixin", "LoraReport", "Plans", "TextualInversionLoaderMixin", "check_lora", "read_textual_inversion"]
