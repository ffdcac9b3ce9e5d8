"""Which file is meant, its hash, and what is in it by its first bytes and its name."""

import hashlib

import numpy as np
import pytest
from safetensors.numpy import save_file

from minisd.adapters.file import locate, read_contents, sha256
from minisd.errors import ModelFileError, UsageError
from tests.checkpoint.torch_bytes import write_legacy, write_zip

X = {"<cat>": np.arange(3, dtype="float32")}


def test_a_folder_stands_for_the_first_of_its_files(tmp_path):
    for name in ("b.bin", "a.safetensors"):
        (tmp_path / name).write_bytes(b"x")
    assert locate(tmp_path, ("a.safetensors", "b.bin")) == tmp_path / "a.safetensors"
    assert locate(str(tmp_path / "b.bin"), ()) == tmp_path / "b.bin"
    with pytest.raises(UsageError, match="holds no adapter.*\n.*c.bin or d.bin"):
        locate(tmp_path, ("c.bin", "d.bin"))
    with pytest.raises(UsageError, match="there is no file.*\n.*hub ids"):
        locate("somebody/cat-toy", ())


def test_the_hash_is_of_the_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"minisd")
    assert sha256(tmp_path / "x") == hashlib.sha256(b"minisd").hexdigest()


def test_both_formats(tmp_path):
    save_file(X, tmp_path / "a.safetensors", metadata={"who": "me"})
    tensors, metadata = read_contents(tmp_path / "a.safetensors")
    assert metadata == {"who": "me"} and np.array_equal(tensors["<cat>"].read(), X["<cat>"])
    for write in (write_zip, write_legacy):
        value, metadata = read_contents(write(tmp_path / "a.bin", X))
        assert metadata == {} and np.array_equal(value["<cat>"], X["<cat>"])


def test_a_pickle_under_the_name_of_safetensors_is_refused(tmp_path):
    with pytest.raises(ModelFileError, match="is a zip archive"):
        read_contents(write_zip(tmp_path / "a.safetensors", X))
