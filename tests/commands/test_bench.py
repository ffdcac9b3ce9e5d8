"""`minisd bench`: what there is, a ladder as a table and as JSON. No time is asserted."""

import json

import pytest

from minisd import ops
from minisd.benchmark import machine
from minisd.benchmark.calls import FORMS


@pytest.fixture(autouse=True)
def small_roof(monkeypatch):
    monkeypatch.setattr(machine.Cpu, "roof", lambda self, dtype: machine.Roof(1e9, 1e9))


def test_what_there_is(minisd):
    code, out, _ = minisd("bench")
    assert code == 0
    for op, form in FORMS.items():
        assert any(line.startswith(f"{op} ") and all(r.name in line for r in ops.RUNGS[op]) for line in out.splitlines())
        assert all(name in out for name in form.presets)


def test_a_ladder_as_a_table(minisd):
    code, out, err = minisd("bench", "op", "conv2d", "--shape", "1,5,3,4", "--shape", "1,4,2,2", "--rounds", "1")
    lines = out.splitlines()
    assert code == 0 and lines[0].startswith("conv2d 1,5,3,4 (images 1, side 5, C 3, C′ 4, kernel 3, stride 1), float32: ")
    assert "roof: 1 GFLOP/s, 1 GB/s" in lines[1] and "GFLOP/s" in lines[2] and "of roof" in lines[2]
    assert lines[3].split()[0] == "reference" and "left out:" in lines and out.count("conv2d 1,") == 2
    assert len([line for line in lines if line.startswith("> ")]) == 2
    assert "conv2d by reference: error" in err
    code, out, err = minisd("bench", "op", "silu", "--shape", "3,4", "--rounds", "1", "--dtype", "float64", "-q", "--impl", "reference")
    assert code == 0 and "GB/s" in out.splitlines()[2] and "left out" not in out and err == ""


def test_a_ladder_as_json(minisd):
    code, out, _ = minisd("bench", "op", "layer_norm", "--shape", "3,8", "--rounds", "1", "--json", "--impl", "reference, blocked")
    (ladder,) = json.loads(out)["ladders"]
    assert code == 0 and ladder["preset"] is None and ladder["shape"] == "rows 3, C 8" and ladder["dtype"] == "float32"
    assert [row["rung"] for row in ladder["rows"]] == ["reference", "blocked"] and ladder["rows"][0]["error"] < 1e-6


@pytest.mark.parametrize("args, message", [
    (("convolution",), "no shapes are known of an op 'convolution'"), (("conv2d", "--shape", "x"), "conv2d has no shape 'x'"),
    (("conv2d", "--impl", "nobody"), "conv2d has no rung 'nobody'"),
])  # fmt: skip
def test_usage(minisd, args, message):
    code, _, err = minisd("bench", "op", *args)
    assert code == 2 and message in err and "fix:" in err


def test_the_gpu_is_asked_for(minisd, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "cupy", None)
    code, _, err = minisd("bench", "op", "silu", "--device", "cuda")
    assert code == 4 and "CuPy is not installed" in err and "pip install" in err
