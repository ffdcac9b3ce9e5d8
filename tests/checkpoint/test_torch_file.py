"""Files of torch.save in both formats, without torch; and the ways in which a zip or an old file can lie."""

import struct
import zipfile

import numpy as np
import pytest

from minisd.checkpoint.safetensors_file import StoredTensor
from minisd.checkpoint.torch_file import locate_tensors, read_torch_file
from minisd.errors import ModelFileError

from .torch_bytes import MAGIC, encode, program, storage_address, tensor, write_legacy, write_zip

X = np.arange(12, dtype="float32").reshape(3, 4)
VALUE = {"<cat>": X, "half": X[0].astype("float16"), "ids": np.array([265]), "transposed": X.T, "name": "cat", "step": 5000}
WRITERS = {"zip": write_zip, "legacy": write_legacy}


@pytest.mark.parametrize("kind", WRITERS)
def test_what_torch_wrote_comes_back(tmp_path, kind):
    found = read_torch_file(WRITERS[kind](tmp_path / "a.bin", VALUE))
    assert list(found) == list(VALUE) and (found["name"], found["step"]) == ("cat", 5000)
    for name in ("<cat>", "half", "ids", "transposed"):
        assert found[name].dtype == VALUE[name].dtype and found[name].flags.c_contiguous
        np.testing.assert_array_equal(found[name], VALUE[name])


@pytest.mark.parametrize("kind", WRITERS)
def test_bfloat16_is_read_exactly(tmp_path, kind):
    bits = np.array([0x3F80, 0xBF00, 0x7F80, 0x0001], dtype="uint16")
    found = read_torch_file(WRITERS[kind](tmp_path / "a.bin", {"x": bits}))["x"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array([1.0, -0.5, np.inf, 2.0**-133], dtype="float32"))


def test_views_of_a_storage_are_arrays_of_their_own(tmp_path):
    storages = {}
    code = b"\x80\x02](" + tensor(X, storages, key="0", offset=4, shape=(4,), stride=(1,)) + tensor(X, storages, key="0", offset=1, shape=(3,), stride=(4,))
    rows, column = read_torch_file(write_zip(tmp_path / "a.bin", code=code + b"e.", storages=storages))
    np.testing.assert_array_equal(rows, X[1])
    np.testing.assert_array_equal(column, X[:, 1])
    rows[:] = 0
    np.testing.assert_array_equal(column, X[:, 1])


def test_empty_and_scalar_tensors(tmp_path):
    empty, scalar = np.zeros((0, 4), dtype="float32"), np.array(7.0)
    found = read_torch_file(write_zip(tmp_path / "a.bin", [empty, scalar]))
    assert found[0].shape == (0, 4) and found[1].shape == () and found[1] == 7.0


def overlapping(path):
    """Two entries of the directory for one storage of a megabyte."""
    big = np.zeros(1 << 18, dtype="float32")
    write_zip(path, [big, big])
    data = bytearray(path.read_bytes())
    entries = [i for i in range(len(data)) if data[i : i + 4] == b"PK\x01\x02" and b"archive/data/" in data[i : i + 80]]
    (first,) = struct.unpack_from("<I", data, entries[0] + 42)
    struct.pack_into("<I", data, entries[1] + 42, first)
    second = data.rindex(b"PK\x03\x04")
    directory = data.index(b"PK\x01\x02")
    end = data.rindex(b"PK\x05\x06")
    struct.pack_into("<I", data, end + 16, second)
    path.write_bytes(bytes(data[:second] + data[directory:]))


def wrong_checksum(path):
    write_zip(path, [X])
    data = bytearray(path.read_bytes())
    data[data.index(X.tobytes()) + 5] ^= 1
    path.write_bytes(bytes(data))


def encrypted(path):
    write_zip(path, [X])
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(data))


def cut(path):
    write_zip(path, [X])
    path.write_bytes(path.read_bytes()[:-30])


def two_of_a_name(path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        write_zip(path, [X], more=[("archive/data.pkl", b"\x80\x02N.")])


def all_of_one_storage(path):
    """A thousand tensors, each the whole of one storage."""
    code = b"\x80\x02](" + b"".join(tensor(X, {}, key="0") for _ in range(1000)) + b"e."
    write_zip(path, code=code, storages={"0": X})


HOSTILE = {
    "code in it": (lambda p: write_zip(p, code=b"\x80\x02cos\nsystem\n(" + encode("touch owned", {}) + b"tR."), "the name os.system"),
    "code in the old format": (lambda p: p.write_bytes(b"\x80\x02cos\nsystem\n(" + encode("touch owned", {}) + b"tR."), "the name os.system"),
    "code behind the magic": (lambda p: p.write_bytes(MAGIC + b"\x80\x02cos\nsystem\n(" + encode("x", {}) + b"tR."), "the name os.system"),
    "a path": (lambda p: write_zip(p, [X], more=[("../../.ssh/authorized_keys", b"x")]), "a member called ../../.ssh"),
    "a root": (lambda p: write_zip(p, [X], more=[("/etc/passwd", b"x")]), "a member called /etc/passwd"),
    "a drive": (lambda p: write_zip(p, [X], more=[("C:evil", b"x")]), "a member called C:evil"),
    "a control character": (lambda p: write_zip(p, [X], more=[("archive/\x1b[2J", b"x")]), r"a member called archive/\\x1b"),
    "a bomb": (lambda p: write_zip(p, [np.zeros(1 << 20)], compression=zipfile.ZIP_DEFLATED), "compressed or encrypted"),
    "overlapping members": (overlapping, "members that overlap"),
    "encrypted": (encrypted, "compressed or encrypted"),
    "two of a name": (two_of_a_name, "two members of one name"),
    "no program": (lambda p: write_zip(p, [X], stem="a/b"), "0 programs data.pkl"),
    "two programs": (lambda p: write_zip(p, [X], more=[("other/data.pkl", b"\x80\x02N.")]), "2 programs"),
    "big-endian": (lambda p: write_zip(p, [X], byteorder=b"big"), "big-endian"),
    "a storage that is missing": (lambda p: write_zip(p, code=program([X])), "no storage 0 of 48 bytes"),
    "a short storage": (lambda p: write_zip(p, code=program([X]), storages={"0": X[:2]}), "no storage 0 of 48 bytes"),
    "a storage elsewhere": (lambda p: write_zip(p, code=b"\x80\x02" + tensor(X, {}, key="../byteorder") + b".", storages={"0": X}), "no storage ../byteorder"),
    "a storage without a tensor": (
        lambda p: write_zip(p, code=b"\x80\x02" + storage_address("FloatStorage", "0", 12) + b".", storages={"0": X}),
        "a storage without a tensor",
    ),
    "deep": (lambda p: write_zip(p, code=b"\x80\x02" + b"]" * 3000 + b"a" * 2999 + b"."), "nested too deeply"),
    "a thousand whole storages": (all_of_one_storage, "more bytes than the file"),
    "a broken sum": (wrong_checksum, "Bad CRC"),
    "a cut zip": (cut, "zip archive cannot be read"),
    "a cut old file": (lambda p: write_legacy(p, [X], cut=1), "no storage 0 of 48 bytes"),
    "no magic": (lambda p: p.write_bytes(program({"a": 1}) * 5), "no file of torch"),
    "an old file of a big-endian machine": (lambda p: write_legacy(p, [X], little_endian=False), "big-endian"),
    "a list of other storages": (lambda p: write_legacy(p, [X], keys=["7"]), "a list of storages"),
    "a list of two": (lambda p: write_legacy(p, [X], keys=["0", "0"]), "a list of storages"),
    "a web page": (lambda p: p.write_text("<!DOCTYPE html><html>"), "a web page"),
    "a pointer": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"), "Git LFS pointer"),
    "text": (lambda p: p.write_text("hello"), "it begins with b'hello'"),
    "nothing": (lambda p: p.write_bytes(b""), "it begins with b''"),
    "a folder": (lambda p: p.mkdir(), "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_and_broken_files_are_refused(name, tmp_path, monkeypatch):
    make, message = HOSTILE[name]
    (tmp_path / "in").mkdir()
    make(tmp_path / "in" / "evil.pt")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelFileError, match=message) as caught:
        read_torch_file(tmp_path / "in" / "evil.pt")
    assert "evil.pt" in caught.value.what and caught.value.fix
    assert [p.name for p in tmp_path.rglob("*")] == ["in", "evil.pt"], "something was written"


def test_a_program_of_many_megabytes_is_refused_unread(tmp_path):
    with pytest.raises(ModelFileError, match="a program of 16,000,006 bytes"):
        read_torch_file(write_zip(tmp_path / "a.pt", code=b"\x80\x02" + b"N0" * 8_000_000 + b"N.0."))


# ----- places instead of arrays --------------------------------------------------------------------------------------------


def test_located_tensors_are_read_where_they_lie(tmp_path):
    storages, bits = {}, np.array([0x3F80, 0xBF00], dtype="uint16")
    rest = {"half": X[0].astype("float16"), "ids": np.array([[265, 7]]), "brain": bits, "scalar": np.array(7.0), "empty": np.zeros((0, 4), "float32")}
    code = b"\x80\x02}(" + encode("rows", {}) + tensor(X, storages, key="a", offset=4, shape=(2, 4), stride=(4, 1))
    for name, x in rest.items():
        code += encode(name, {}) + tensor(x, storages)
    found = locate_tensors(write_zip(tmp_path / "a.ckpt", code=code + encode("step", {}) + encode(3, {}) + b"u.", storages=storages))
    assert found.pop("step") == 3 and all(isinstance(x, StoredTensor) for x in found.values())
    assert [x.dtype for x in found.values()] == ["F32", "F16", "I64", "BF16", "F64", "F32"]
    np.testing.assert_array_equal(found["rows"].read(), X[1:])
    np.testing.assert_array_equal(found["brain"].read(), np.array([1.0, -0.5], "float32"))
    for name in ("half", "ids", "scalar", "empty"):
        np.testing.assert_array_equal(found[name].read(), rest[name])
    legacy = locate_tensors(write_legacy(tmp_path / "b.ckpt", {"x": X}))
    np.testing.assert_array_equal(legacy["x"], X)


def test_what_cannot_be_located(tmp_path):
    path = tmp_path / "a.ckpt"
    with pytest.raises(ModelFileError, match="not contiguous"):
        locate_tensors(write_zip(path, {"x": X.T}))
    overlapping(path)
    with pytest.raises(ModelFileError, match="overlap|broken"):
        locate_tensors(path)
    write_zip(path, {"x": X})
    data = bytearray(path.read_bytes())
    at = data.index(b"archive/data/") - 30
    data[at : at + 4] = b"PK\x07\x08"
    path.write_bytes(bytes(data))
    with pytest.raises(ModelFileError, match="no member where the archive says"):
        locate_tensors(path)
    write_zip(path, {"x": X})
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, at + 28, 0xFFFF)  # the member's own header claims to reach beyond the data
    path.write_bytes(bytes(data))
    with pytest.raises(ModelFileError, match="overlap"):
        locate_tensors(path)
