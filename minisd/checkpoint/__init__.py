"""Where weights come from: a folder or a hub model in diffusers' layout, or a single file, checked, renamed and laid out as `Params`.

    hub.py                what a user calls a model -> a folder
    folder.py             what the folder holds, and loading one component of it
    single_file.py        one file with everything, under LDM's names
    families.py           which model such a file holds, and its configs
    variants.py           which of its files have the weights
    safetensors_file.py   the file format
    torch_file.py         files of torch.save: learned words, LoRAs, .ckpt
    pickles.py            the machine that reads them and can run nothing
    names.py  shapes.py   the names and shapes that the weights must have
    weights.py            comparing, reading, layout in memory
    contradiction.py      which field of the config does not fit the weights
    report.py             what was done
"""

from .folder import (
    Component, component_bytes, load_component, read_component_config, read_json, read_model_index, read_scheduler_config, tokenizer_files,
)  # fmt: skip
from .hub import resolve
from .report import LoadReport
from .shapes import clip_text_shapes, component_shapes, unet_shapes, vae_shapes
from .single_file import SingleFile, file_sha256, open_single_file
from .weights import params_from_state_dict

__all__ = [
    "Component", "LoadReport", "SingleFile", "clip_text_shapes", "component_bytes", "component_shapes", "file_sha256", "load_component",
    "open_single_file", "params_from_state_dict", "read_component_config", "read_json", "read_model_index", "read_scheduler_config", "resolve",
    "tokenizer_files", "unet_shapes", "vae_shapes",
]  # fmt: skip
