"""The file format: every dtype exact, every quirk of old files, and every broken file refused with its path, its fault and a way out."""

import importlib.util
import json
import random
import sys

import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file

from minisd.checkpoint import safetensors_file
from minisd.checkpoint.safetensors_file import bfloat16_to_float32, read_header, read_metadata
from minisd.errors import ModelFileError, ResourceError
from tests.checkpoint.synthetic import encode, safetensors_bytes, with_length

A = np.arange(12, dtype="float32").reshape(3, 4) - 5.5
F32 = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


def header_bytes(header) -> bytes:
    return with_length(header if isinstance(header, bytes) else json.dumps(header).encode())


def read_all(path) -> dict:
    return {name: tensor.read() for name, tensor in read_header(path).items()}


# ----- reading -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("residue", range(8))
@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "I64", "I32"])
def test_every_dtype_at_every_alignment(tmp_path, dtype, residue):
    values = A.round() if dtype.startswith("I") else A
    path = tmp_path / "x.safetensors"
    path.write_bytes(
        safetensors_bytes(
            {"pad": ("U8", [1]), "a": values, "scalar": values[0, 0]}, dtype, residue=residue, metadata=None
        )
    )
    tensors = read_header(path)
    assert tensors["a"].offset % 8 == (residue + 1) % 8  # the data really is unaligned
    for name, expected in (("a", values), ("scalar", values[0, 0])):
        x = tensors[name].read()
        assert np.array_equal(x, expected) and x.shape == np.shape(expected)
        assert x.flags.aligned and x.flags.c_contiguous and x.flags.owndata or x.base.flags.owndata
        assert (
            x.dtype.name
            == {
                "F64": "float64",
                "F32": "float32",
                "F16": "float16",
                "BF16": "float32",
                "I64": "int64",
                "I32": "int32",
            }[dtype]
        )


def test_bfloat16_is_the_upper_half_of_a_float32():
    bits = np.arange(1 << 16, dtype="uint16")
    x = bfloat16_to_float32(bits)
    assert x.dtype == np.float32
    finite = np.isfinite(x)
    assert np.array_equal(x[finite].view("uint32"), bits[finite].astype("uint32") << 16)
    assert x[0x3F80] == 1.0 and x[0xC049] == -3.140625 and x[0x7F80] == np.inf and np.isnan(x[0x7FC0])
    assert finite.sum() == 2 * 255 * 128
    assert (
        encode(np.float32([1.00390625, 1.01171875]), "BF16") == np.array([0x3F80, 0x3F82], dtype="<u2").tobytes()
    )  # the writer, ties to even


def test_order_of_the_data_is_not_that_of_the_names(tmp_path):
    weights = {f"{i}": np.full((i + 1,), i, dtype="float32") for i in range(40)}
    (tmp_path / "x.safetensors").write_bytes(safetensors_bytes(weights, shuffle=True))
    tensors = read_header(tmp_path / "x.safetensors")
    assert sorted(tensors, key=lambda name: tensors[name].offset) != list(weights)
    assert all(np.array_equal(tensors[name].read(), x) for name, x in weights.items())


@pytest.mark.parametrize("shape", [[], [0], [3, 0, 2]])
def test_scalars_and_empty_tensors(tmp_path, shape):
    (tmp_path / "x.safetensors").write_bytes(safetensors_bytes({"a": np.zeros(shape, dtype="float32")}))
    assert list(read_all(tmp_path / "x.safetensors")["a"].shape) == shape


@pytest.mark.parametrize("header", [
    b' {"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
    b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16],"extra":{"x":[1]}}}',
    b'{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}      ',
])  # fmt: skip
def test_harmless_oddities_are_read(tmp_path, header):
    (tmp_path / "x.safetensors").write_bytes(header_bytes(header) + A.tobytes()[:16])
    assert np.array_equal(read_all(tmp_path / "x.safetensors")["a"], A.ravel()[:4])


@pytest.mark.parametrize("name", ["../../etc/passwd", "a\0b", "\u202e\n", "x" * 100_000, "", "C:\\x"])
def test_a_name_is_never_a_path(tmp_path, name):
    (tmp_path / "x.safetensors").write_bytes(safetensors_bytes({name: A}))
    assert list(read_header(tmp_path / "x.safetensors")) == [name]


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "U8"])
def test_other_dtypes_are_refused_by_name(tmp_path, dtype):
    (tmp_path / "x.safetensors").write_bytes(safetensors_bytes({"conv_in.weight": (dtype, [1, 2])}))
    with pytest.raises(ModelFileError, match=rf"x\.safetensors: conv_in\.weight is {dtype}"):
        read_all(tmp_path / "x.safetensors")


# ----- refusing ------------------------------------------------------------------------------------------------------------

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 3438167534\n"
BODY = b"\0" * 16
REFUSED = {
    "empty file": (b"", "has 0 bytes", "fetch"),
    "7 bytes": (b"1234567", "has 7 bytes", "fetch"),
    "LFS pointer": (LFS, "Git LFS pointer; the file itself, 3.44 GB", "git lfs pull"),
    "LFS pointer of nonsense": (LFS.replace(b"3438167534", b"9" * 320), "Git LFS pointer; the file itself was", "git lfs pull"),
    "HTML": (b"\n<!DOCTYPE html><html><body>404</body></html>", "a web page", "minisd fetch"),
    "pickle": (b"\x80\x02}q\0(X\x0e\0\0\0conv_in.weight", "a pickle", "torch.load"),
    "zip": (b"PK\x03\x04\0\0\0\0\0\0archive/data.pkl", "a zip archive", "weights_only=True"),
    "something else": (b"GGUF\x03\0\0\0" + BODY, "its header claims 14,064,895,815", "fetch"),
    "header past the end": (
        (1000).to_bytes(8, "little") + b"{}",
        "the file has 10 bytes, its header claims 1,000",
        "fetch",
    ),
    "header 2^63": ((2**63).to_bytes(8, "little") + b"{}", "header claims 9,223,372,036,854,775,808", "fetch"),
    "header 2^64-1": (b"\xff" * 8 + b"{}", "header too large", "fetch"),
    "header over 100 MB": ((200_000_000).to_bytes(8, "little") + b"{}", "header too large", "fetch"),
    "no JSON": (header_bytes(b"nonsense"), "invalid JSON", "fetch"),
    "no UTF-8": (header_bytes(b'{"\xff":1}'), "invalid UTF-8", "fetch"),
    "a list": (header_bytes([1]), "invalid JSON", "fetch"),
    "nested": (header_bytes(b'{"a":' + b"[" * 5000), "recursion", "fetch"),
    "body one byte short": (
        header_bytes({"a": F32}) + BODY[:-1],
        "its tensors take 16 bytes, it holds 15: an interrupted copy",
        "fetch",
    ),
    "body one byte long": (header_bytes({"a": F32}) + BODY + b"\0", "its tensors take 16 bytes, it holds 17", "fetch"),
    "hole": (
        header_bytes({"a": F32, "b": {**F32, "data_offsets": [20, 36]}}) + BODY * 3,
        "bytes of b begin at 20, but those before it end at 16",
        "fetch",
    ),
    "overlap": (
        header_bytes({"a": F32, "b": {**F32, "data_offsets": [8, 24]}}) + BODY * 2,
        "bytes of b begin at 8",
        "fetch",
    ),
    "same range twice": (
        header_bytes({"a": F32, "b": F32}) + BODY,
        "begin at 0, but those before it end at 16",
        "fetch",
    ),
    "end before begin": (
        header_bytes({"a": {**F32, "data_offsets": [16, 0]}}) + BODY,
        "bytes of a begin at 16",
        "fetch",
    ),
    "negative offset": (header_bytes({"a": {**F32, "data_offsets": [-1, 15]}}) + BODY, "integer `-1`", "fetch"),
    "float offset": (header_bytes({"a": {**F32, "data_offsets": [0.0, 16.0]}}) + BODY, "floating point", "fetch"),
    "shape and size differ": (
        header_bytes({"a": {**F32, "shape": [5]}}) + BODY,
        "a is F32 [5], 20 bytes, but it is given 16",
        "fetch",
    ),
    "shape overflow": (
        header_bytes({"a": {**F32, "shape": [2**62, 2**62]}}) + BODY,
        "a is F32 [4611686018427387904, 4611686018427387904], more than 2^64 bytes, but it is given 16",
        "fetch",
    ),
    "shape without end": (header_bytes({"a": {**F32, "shape": [3] * 9999}}) + BODY, "more than 2^64 bytes", "fetch"),
    "unknown dtype": (header_bytes({"a": {**F32, "dtype": "Q9"}}) + BODY, "unknown variant `Q9`", "fetch"),
    "no dtype": (header_bytes({"a": {"shape": [4], "data_offsets": [0, 16]}}) + BODY, "missing field `dtype`", "fetch"),
    "metadata no text": (header_bytes({"__metadata__": {"a": 1}, "a": F32}) + BODY, "expected a string", "fetch"),
    "no tensors": (header_bytes({}), "holds no tensors", "fetch"),
    "only metadata": (header_bytes({"__metadata__": {"format": "pt"}}), "holds no tensors", "fetch"),
    "a name twice": (
        header_bytes(
            b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
        )
        + BODY,
        "a stands there twice",
        "fetch",
    ),
    "metadata twice": (
        header_bytes(b'{"__metadata__":{"x":"1","x":"2"},"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}')
        + BODY,
        "x stands there twice",
        "fetch",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_broken_file_is_refused(tmp_path, case):
    data, fault, fix = REFUSED[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(ModelFileError) as caught:
        read_header(path)
    error = caught.value
    assert str(path) in error.what and fault in f"{error.what} {error.why}" and fix in error.fix
    assert error.exit_code == 3 and error.why


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ModelFileError, match="missing.safetensors cannot be read"):
        read_header(tmp_path / "missing.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(ModelFileError, match="folder.safetensors cannot be read"):
        read_header(tmp_path / "folder.safetensors")


def test_a_name_is_printed_safely(tmp_path):
    name = "\x1b[31m\n" + "x" * 100_000
    header = {name: {**F32, "shape": [5]}}
    (tmp_path / "x.safetensors").write_bytes(header_bytes(header) + BODY)
    with pytest.raises(ModelFileError) as caught:
        read_header(tmp_path / "x.safetensors")
    assert "\x1b" not in str(caught.value) and r"\x1b[31m\nxxx" in str(caught.value) and len(str(caught.value)) < 1000


def test_a_file_cut_while_it_is_read_is_an_error_and_no_crash(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_bytes({"a": A, "b": A}))
    tensors = read_header(path)
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - 10)
    assert np.array_equal(tensors["a"].read(), A)
    with pytest.raises(ModelFileError, match="ends 10 bytes before the end of b"):
        tensors["b"].read()


def test_a_big_endian_machine_is_refused(monkeypatch):
    spec = importlib.util.spec_from_file_location("minisd.checkpoint.elsewhere", safetensors_file.__file__)
    monkeypatch.setattr(sys, "byteorder", "big")
    with pytest.raises(ResourceError, match="little-endian"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


# ----- mutants -------------------------------------------------------------------------------------------------------------


def mutant(data: bytes, rng: random.Random) -> bytes:
    """One to three pieces of a file changed, cut out, doubled or swapped; mostly in the header, whose length is then put right again."""
    length = int.from_bytes(data[:8], "little")
    whole = rng.random() < 0.25
    text = bytearray(data if whole else data[8 : 8 + length])
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(text))
        match rng.randrange(6):
            case 0:
                text[at] ^= 1 << rng.randrange(8)
            case 1:
                text[at] = rng.choice(b'0123456789-.e,:[]{}" abcdF')
            case 2:
                text[at : at + rng.choice((1, 2, 8))] = b""
            case 3:
                text[at:at] = text[at : at + rng.randrange(1, 60)]
            case 4:  # a name, a number or a dtype becomes another one of the file
                one, other = rng.choice(
                    (
                        (b'"a"', b'"b"'),
                        (b'"c"', b'"d"'),
                        (b"F32", b"I32"),
                        (b"F16", b"I16"),
                        (b"[3,4]", b"[4,3]"),
                        (b"48", b"47"),
                    )
                )
                text = text.replace(one, other, rng.randint(1, 2))
            case 5:  # a tensor once more
                text = text.replace(b'},"c"', b'},"b":{"dtype":"F16","shape":[3,4],"data_offsets":[48,72]},"c"', 1)
        if not text:
            break
    return bytes(text) if whole else with_length(bytes(text)) + data[8 + length :]


def library_accepts(path) -> bool:
    try:
        with safetensors.safe_open(path, framework="np"):
            return True
    except safetensors.SafetensorError:
        return False


def test_mutants_are_refused_or_read_exactly_as_the_library_does(tmp_path):
    """3000 mutants of a small file: ours is the library's verdict, but for names that stand twice and files without tensors."""
    rng = random.Random(2208)
    seed = safetensors_bytes({"a": A, "b": ("F16", A), "c": ("BF16", A[0]), "d": ("I64", 7)}, residue=5)
    counts = {"read": 0, "refused": 0, "stricter": 0}
    for i in range(3000):
        data = mutant(seed, rng)
        path = tmp_path / f"{i}.safetensors"  # a new file each time: overwriting one waits for the disk
        path.write_bytes(data)
        accepted = library_accepts(path)
        try:
            tensors = read_header(path)
        except ModelFileError as error:
            assert str(path) in error.what and error.why and error.fix
            assert not accepted or "stands there twice" in error.why or "holds no tensors" in error.what, data
            counts["stricter" if accepted else "refused"] += 1
            continue
        assert accepted, data
        counts["read"] += 1
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        for name, tensor in tensors.items():
            begin, end = header[name]["data_offsets"]
            if tensor.dtype in ("F32", "F16", "I64"):
                assert tensor.read().tobytes() == data[8 + length + begin : 8 + length + end]
    assert counts["read"] > 100 and counts["refused"] > 1000 and counts["stricter"] > 50, counts


def test_metadata_are_the_writers_texts(tmp_path):
    save_file({"x": np.zeros(2)}, tmp_path / "a.safetensors", metadata={"format": "np", "who": "é"})
    save_file({"x": np.zeros(2)}, tmp_path / "b.safetensors")
    assert read_metadata(tmp_path / "a.safetensors") == {"format": "np", "who": "é"}
    assert read_metadata(tmp_path / "b.safetensors") == {}
