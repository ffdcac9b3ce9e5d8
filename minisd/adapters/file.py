"""Which file a user means by an adapter, the hash that names it for ever, and what is in it."""

import hashlib
from pathlib import Path

from ..checkpoint.safetensors_file import read_header, read_metadata
from ..checkpoint.torch_file import read_torch_file
from ..errors import UsageError

TORCH_BEGINNINGS = (b"PK\x03\x04", b"\x80")


def locate(path, names: tuple) -> Path:
    """The file itself, or the first of `names` in the folder. Raises UsageError."""
    path = Path(path).expanduser()
    if path.is_dir():
        for name in names:
            if (path / name).is_file():
                return path / name
        raise UsageError(f"{path} holds no adapter", f"a folder must hold {' or '.join(names)}", "name the file itself")
    if not path.is_file():
        why = "adapters are read from files; hub ids are not resolved"
        raise UsageError(f"there is no file {path}", why, "download it and give its path")
    return path


def sha256(path) -> str:
    """The hash of a file's bytes, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_contents(path: Path) -> tuple[object, dict]:
    """safetensors: {name: StoredTensor}, and the header's texts; a file of torch: whatever it holds, with arrays, and {}."""
    with open(path, "rb") as file:
        head = file.read(4)
    if path.suffix != ".safetensors" and head.startswith(TORCH_BEGINNINGS):
        return read_torch_file(path), {}
    return read_header(path), read_metadata(path)
