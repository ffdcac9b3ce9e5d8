"""Traces as files: what is written while a run goes on, and what is read back."""

import json
import math
import os

import numpy as np
import pytest

from minisd.errors import MinisdError, ModelFileError, ResourceError, UsageError
from minisd.params import Params
from minisd.tracefile import Recorder, TraceFile, key, read_manifest, split_key, table
from minisd.tracing import Event, layer, tap, trace

P = Params.from_state_dict({"conv.weight": np.ones((5, 4, 3, 3), "float32"), "block.w": np.float32(2)}, path="net")


@layer
def conv2d(p, x, *, stride=1):
    return x * np.float32(3)


@layer
def block(p, x, skips, *, size=(1, 2)):
    skips.pop()
    return tap(p, "probs", conv2d(P.conv, x))


def image(*shape, dtype="float32"):
    return np.arange(math.prod(shape), dtype=dtype).reshape(shape)


def test_every_call_is_written_with_its_manifest(tmp_path):
    path = tmp_path / "run.safetensors"
    x = image(1, 2, 3, 4)
    with trace(to=path, recipe={"prompt": "ein Füchslein"}) as recorder:
        for step in range(3):
            conv2d(P.conv, x + np.float32(step))
        assert not path.exists(), "nothing appears under the name before the run is complete"
    assert os.listdir(tmp_path) == ["run.safetensors"]
    file = TraceFile(path)
    assert [row["key"] for row in file.rows] == ["net.conv", "net.conv@1", "net.conv@2"] == list(file.tensors)
    assert file.recipe == {"prompt": "ein Füchslein"} and set(file.versions) == {"minisd", "numpy", "python"}
    for step, row in enumerate(file.rows):
        y = file[row["key"]]
        np.testing.assert_array_equal(y, 3 * (x + np.float32(step)).transpose(0, 3, 1, 2))
        assert (row["name"], row["call"], row["kind"], row["shape"], row["dtype"]) == ("net.conv", step, "conv2d", [1, 4, 2, 3], "float32")
        assert row["bytes"] == y.nbytes and row["seconds"] >= 0.0 and row["reduction"] == 4 * 3 * 3
        assert (row["min"], row["max"], row["mean"]) == (float(y.min()), float(y.max()), pytest.approx(float(y.mean())))
        assert row["std"] == pytest.approx(float(y.std()), rel=1e-6) and (row["nan"], row["inf"]) == (0, 0)
    assert recorder.rows == file.rows


def test_other_programs_can_read_it(tmp_path):
    from safetensors.numpy import load_file

    with trace(to=tmp_path / "run.safetensors"):
        conv2d(P.conv, image(1, 2, 3, 4))
        conv2d(P.conv, image(5, dtype="float64"))
        conv2d(P.conv, image(0, 3))
    arrays = load_file(tmp_path / "run.safetensors")
    assert {name: (y.shape, y.dtype.name) for name, y in arrays.items()} == {
        "net.conv": ((1, 4, 2, 3), "float32"), "net.conv@1": ((5,), "float64"), "net.conv@2": ((0, 3), "float32"),
    }  # fmt: skip


@pytest.mark.parametrize("gap, once", [(1 << 11, True), (1 << 6, False), (1 << 24, False)], ids=["large", "header too long", "small"])
def test_the_arrays_of_a_large_trace_are_written_once(tmp_path, monkeypatch, gap, once):
    """Its header is put into a gap in front of them; where it does not fit, or the trace is small, they are copied behind it."""
    copied = []
    monkeypatch.setattr("minisd.tracefile.GAP", gap)
    monkeypatch.setattr("minisd.tracefile.shutil.copyfileobj", lambda a, b, size: copied.append(b.write(a.read())))
    x = np.random.RandomState(0).standard_normal((2, 9, 11, 130)).astype("float32")
    with trace(to=tmp_path / "run.safetensors"):
        conv2d(P.conv, x)
    assert bool(copied) is not once and os.listdir(tmp_path) == ["run.safetensors"]
    np.testing.assert_array_equal(TraceFile(tmp_path / "run.safetensors")["net.conv"], 3 * x.transpose(0, 3, 1, 2))
    assert once == ((tmp_path / "run.safetensors").stat().st_size == gap + x.nbytes)


def test_inputs_are_kept_once_and_as_they_were_before_the_call(tmp_path):
    x, skip = image(1, 2, 3, 4), image(1, 2, 3, 1)
    with trace(to=tmp_path / "run.safetensors", inputs=True):
        block(P.block, x, [skip, x], size=(4, 6))
        conv2d(P.conv, x, stride=2)
    file = TraceFile(tmp_path / "run.safetensors")
    rows = {row["key"]: row for row in file.rows}
    assert list(rows) == ["net.conv", "net.block/probs", "net.block", "net.conv@1"]
    assert "inputs" not in rows["net.block/probs"]
    assert rows["net.conv"]["inputs"] == {"x": "net.conv<x"} == rows["net.conv@1"]["inputs"], "equal inputs are stored once"
    assert rows["net.conv@1"]["options"] == {"stride": 2} and rows["net.block"]["options"] == {"size": [4, 6]}
    assert rows["net.block"]["inputs"] == {"x": "net.conv<x", "skips": ["net.block<skips.0", "net.conv<x"]}, "the block took one of its skips"
    np.testing.assert_array_equal(file["net.conv<x"], x.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(file["net.block<skips.0"], skip.transpose(0, 3, 1, 2))


def test_nothing_is_kept_in_memory(tmp_path):
    """A recorder that held the arrays would keep them alive."""
    import weakref

    alive = []

    @layer
    def make(p, x):
        y = np.zeros(1000, dtype="float32")
        alive.append(weakref.ref(y))
        return y

    with trace(to=tmp_path / "run.safetensors", inputs=True):
        for _ in range(3):
            make(P.conv, image(3))
        assert [ref() for ref in alive] == [None] * 3


def test_statistics_only_writes_no_arrays(tmp_path):
    with trace("net.conv", to=tmp_path / "run.json", stats=True) as recorder:
        conv2d(P.conv, image(1, 2, 3, 4))
        block(P.block, image(1, 2), [1])
    manifest = json.loads((tmp_path / "run.json").read_text())
    assert [row["key"] for row in manifest["rows"]] == ["net.conv", "net.conv@1"] and manifest["format"] == 1
    assert os.listdir(tmp_path) == ["run.json"]
    with trace(stats=True) as in_memory:
        conv2d(P.conv, image(1, 2, 3, 4))
    assert {**in_memory.rows[0], "seconds": 0} == {**recorder.rows[0], "seconds": 0}
    in_memory.save(tmp_path / "later.json")
    assert len(json.loads((tmp_path / "later.json").read_text())["rows"]) == 1
    with pytest.raises(UsageError, match="statistics only"):
        TraceFile(tmp_path / "run.json")


def test_a_run_that_fails_leaves_no_file(tmp_path):
    with pytest.raises(ZeroDivisionError), trace(to=tmp_path / "run.safetensors"):
        conv2d(P.conv, image(2))
        1 / 0
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name, stats", [("run.npz", False), ("run.json", False), ("run.safetensors", True), ("no/run.safetensors", False)])
def test_paths_that_cannot_be_meant(tmp_path, name, stats):
    with pytest.raises(UsageError):
        Recorder(("*",), tmp_path / name, stats=stats)


def test_a_full_disk_is_our_error(tmp_path):
    class Full:
        def write(self, data):
            raise OSError(28, "No space left on device")

        def close(self):
            pass

    with pytest.raises(ResourceError, match="run.safetensors: could not be written"):
        with trace(to=tmp_path / "run.safetensors") as recorder:
            recorder._data.close()
            recorder._data = Full()
            conv2d(P.conv, image(2))
    assert os.listdir(tmp_path) == []


def test_a_block_that_hands_on_an_array_is_measured_once(monkeypatch):
    """attn1 returns what its to_out returned; an equal array elsewhere is another one."""
    measured = []
    monkeypatch.setattr("minisd.tracefile.statistics", lambda y: measured.append(y.sum()) or {"min": 0.0})
    recorder, y = Recorder(), image(3)
    for array in (y, y, y.copy(), y):
        recorder(Event("a", "linear", (), array, 0.0))
    assert len(measured) == 3 and [row["min"] for row in recorder.rows] == [0.0] * 4


def test_keys():
    for name, call in (("unet.conv_in", 0), ("unet.conv_in", 12), ("unet.a/probs", 3)):
        assert split_key(key(name, call)) == (name, call)
    assert key("unet.conv_in", 0) == "unet.conv_in"
    assert split_key("weird@name") == ("weird@name", 0)


def test_table_is_the_ladder_of_shapes():
    recorder = Recorder()
    for name, shape in (("vae.decoder.up_blocks.0", (1, 2, 3, 8)), ("vae.decoder.up_blocks.1", (1, 4, 6, 4))):
        recorder(Event(name, "up_decoder_block", (), image(*shape), 0.5))
    recorder(Event("bad", "tap", (), np.array([np.nan], "float32"), 0.0))
    lines = table(recorder.rows).splitlines()
    assert lines[0].split() == ["name", "step", "kind", "shape", "dtype", "min", "max", "mean", "std", "seconds"]
    assert [line.split()[3] for line in lines[1:]] == ["1×8×2×3", "1×4×4×6", "1"]
    assert lines[3].endswith("1 nan")


# ----- reading what others wrote -------------------------------------------------------------------------------------------


def write(path, arrays, metadata=None):
    from safetensors.numpy import save_file

    save_file(arrays, path, metadata=metadata)
    return path


def test_any_safetensors_file_is_a_trace(tmp_path):
    file = TraceFile(write(tmp_path / "foreign.safetensors", {"unet.conv_in": image(2, 3), "unet.conv_in@4": image(2)}))
    assert {(row["name"], row["call"], row["kind"]) for row in file.rows} == {("unet.conv_in", 0, ""), ("unet.conv_in", 4, "")}
    assert read_manifest(file.path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 2, "rows": []}', '{"format": 1, "rows": [{"key": 3}]}', '{"format": 1, "rows": 7}',
                                  '{"format": 1, "rows": [{"key": "a", "name": "a", "call": "x"}]}'])  # fmt: skip
def test_a_broken_manifest_is_refused(tmp_path, text):
    path = write(tmp_path / "broken.safetensors", {"a": image(1)}, {"minisd": text})
    with pytest.raises(ModelFileError, match="manifest is broken"):
        TraceFile(path)


def test_a_manifest_that_promises_too_much(tmp_path):
    rows = [{"key": "b", "name": "b", "call": 0, "kind": "conv2d", "shape": [1]}]
    file = TraceFile(write(tmp_path / "cut.safetensors", {"a": image(1)}, {"minisd": json.dumps({"format": 1, "rows": rows})}))
    with pytest.raises(ModelFileError, match="there is no b"):
        file["b"]


def test_what_is_no_safetensors_file_is_our_error(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"hello")
    with pytest.raises(MinisdError):
        TraceFile(tmp_path / "x.safetensors")
