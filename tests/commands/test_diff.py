"""`minisd diff`: exit codes, the page, and the model against a trace."""

import html.parser
import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

FAST = ("a cat", "--steps", "1", "-W", "32", "-H", "32")


@pytest.fixture
def ref(minisd):
    minisd("trace", *FAST, "--inputs", "-o", "ref.safetensors")
    return "ref.safetensors"


def with_change(path, name, change):
    """A copy without manifest, in which one array is changed."""
    arrays = {key: x for key, x in load_file(path).items() if "<" not in key}
    arrays[name] = change(arrays[name]).astype("float32")
    save_file(arrays, "changed.safetensors")
    return "changed.safetensors"


def test_equal_traces_exit_with_0(minisd, ref):
    code, out, _ = minisd("diff", ref, ref)
    assert code == 0 and out.startswith("no divergence in ") and len(out.splitlines()) > 300
    code, out, _ = minisd("diff", ref, ref, "-q")
    assert code == 0 and len(out.splitlines()) == 1


def test_a_difference_exits_with_1_and_is_named(minisd, ref):
    changed = with_change(ref, "vae.decoder.mid_block", lambda x: x * 1.001)
    code, out, _ = minisd("diff", changed, ref)
    assert code == 1 and out.startswith("first divergence, free running: vae.decoder.mid_block (mid_block): relative L2 1.00e-03")
    code, out, _ = minisd("diff", changed, ref, "--rtol", "0.01", "-q")
    assert code == 0
    code, out, _ = minisd("diff", changed, ref, "--json")
    assert code == 1 and json.loads(out)["first_divergence"]["name"] == "vae.decoder.mid_block"


def test_the_page_is_whole_and_static(minisd, ref):
    code, _, _ = minisd("diff", with_change(ref, "unet.mid_block", np.negative), ref, "--html", "d.html", "-q")
    text = Path("d.html").read_text(encoding="utf-8")
    assert code == 1 and "<h1>First divergence: unet.mid_block</h1>" in text and "<script" not in text and "http" not in text
    html.parser.HTMLParser().feed(text)


def test_the_model_against_a_trace(minisd, ref):
    code, out, _ = minisd("diff", "--teacher", ref, "-q")
    assert code == 0 and out.startswith("no divergence in ") and "teacher forced" in out and "closeness r" in out


@pytest.mark.parametrize(
    "args, what",
    [(("a", "b", "c"), "3 files given"), (("a",), "1 files given"), (("--teacher", "a", "b"), "2 files given"), (("a", "b", "--html", "no/d.html"), "folder")],
)
def test_arguments_that_cannot_be_meant(minisd, args, what):
    code, _, err = minisd("diff", *args)
    assert code == 2 and what in err and os.listdir(".") == []


def test_a_missing_file(minisd):
    code, _, err = minisd("diff", "a.safetensors", "b.safetensors")
    assert code == 3 and "b.safetensors cannot be read" in err
