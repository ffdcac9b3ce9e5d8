"""The command line as a person meets it: pictures, refusals with exit codes, and Ctrl-C."""

import json
import os
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from minisd import cli, image, request
from minisd.checkpoint.safetensors_file import read_header

from .conftest import GOLDEN
from .tiny_folder import EMBEDDED

PROMPT = "a cat on a blue background"
FAST = ["--steps", "2", "--seed", "32"]


@pytest.fixture(autouse=True)
def in_an_empty_folder_without_a_gpu(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "cupy", None)  # importing it fails: what is expected below is float32's


def run(capsys, *args):
    """(exit code, stdout, stderr) of `minisd ARGS`."""
    code = 0
    try:
        cli.main(list(args))
    except SystemExit as exit:
        code = exit.code or 0
    out, err = capsys.readouterr()
    return code, out, err


def test_a_prompt_makes_a_picture_and_prints_its_path(capsys):
    code, out, err = run(capsys, PROMPT, *FAST)
    assert (code, out) == (0, "minisd.png\n")
    assert "64×64 · 2 steps of DDIMScheduler · guidance 7.5 · seed 32" in err
    with Image.open("minisd.png") as picture:
        assert picture.size == (64, 64)


def test_the_picture_is_diffusers_picture(capsys):
    run(capsys, PROMPT, "--steps", "10", "--seed", "32", "--scheduler", "lms")
    with np.load(GOLDEN / "pictures.npz") as golden, Image.open("minisd.png") as picture:
        difference = np.abs(np.asarray(picture).astype(int) - golden["embedded-LMSDiscrete-10"][0])
    assert difference.max() <= 1


def test_weights_kept_as_float16_make_the_same_picture(capsys):
    for name, options in (("plain.png", ()), ("kept.png", ("--resident", "float16"))):
        assert run(capsys, PROMPT, *FAST, "-o", name, *options)[0] == 0
    with Image.open("plain.png") as plain, Image.open("kept.png") as kept:
        np.testing.assert_array_equal(np.asarray(plain), np.asarray(kept))
    code, _, err = run(capsys, PROMPT, *FAST, "--resident", "float16", "--dtype", "float64")
    assert code == 2 and "do not go with" in err


def test_the_recipe_in_the_png_makes_the_same_picture_again(capsys):
    run(capsys, PROMPT, "--steps", "3", "--cfg-scale", "4", "--scheduler", "ddim", "--eta", "0.5", "-n", "red", "-o", "first.png")
    r = image.read_recipe("first.png")
    run(capsys, r["prompt"], "-n", r["negative_prompt"], "-s", str(r["seed"]), "--steps", str(r["steps"]), "--cfg-scale", str(r["cfg_scale"]),
        "--eta", str(r["eta"]), "--scheduler", "ddim", "-W", str(r["width"]), "-H", str(r["height"]), "-o", "second.png")  # fmt: skip
    with Image.open("first.png") as first, Image.open("second.png") as second:
        np.testing.assert_array_equal(np.asarray(first), np.asarray(second))


def test_generate_is_the_default_command(capsys):
    run(capsys, PROMPT, *FAST, "-o", "a.png")
    run(capsys, "generate", PROMPT, *FAST, "-o", "b.png")
    run(capsys, *FAST, "-o", "c.png", PROMPT)  # options may come first
    with Image.open("a.png") as a, Image.open("b.png") as b, Image.open("c.png") as c:
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
        np.testing.assert_array_equal(np.asarray(a), np.asarray(c))


def test_random_seeds_are_printed_and_differ(capsys):
    seeds = {json.loads(run(capsys, PROMPT, "--steps", "1", "--json", "-q")[1])["seed"] for _ in range(2)}
    assert len(seeds) == 2


def test_json_is_one_object_on_success_and_on_failure(capsys):
    code, out, _ = run(capsys, PROMPT, *FAST, "--json")
    assert code == 0 and json.loads(out)["path"] == "minisd.png"
    code, out, _ = run(capsys, PROMPT, "--steps", "0", "--json")
    assert code == 2 and json.loads(out)["error"]["what"] == "num_inference_steps is 0"
    code, out, _ = run(capsys, PROMPT, "--steps", "many", "--json")
    assert code == 2 and json.loads(out)["error"]["exit_code"] == 2


def test_quiet_is_quiet(capsys):
    code, out, err = run(capsys, PROMPT, *FAST, "-q")
    assert (code, out, err) == (0, "minisd.png\n", "")


@pytest.mark.parametrize("frames", ["steps.gif", "steps.webp", "steps.png", "steps"])
def test_frames_show_every_step(capsys, frames):
    preview = ["--preview"] if frames == "steps.webp" else []
    code, _, _ = run(capsys, PROMPT, "--steps", "3", "--seed", "32", "--frames", frames, *preview)
    assert code == 0
    if frames == "steps":
        assert sorted(os.listdir(frames)) == ["0000.png", "0001.png", "0002.png"]
        with Image.open("steps/0002.png") as last, Image.open("minisd.png") as picture:  # x | x0
            np.testing.assert_array_equal(np.asarray(last)[:, :64], np.asarray(picture))
    else:
        with Image.open(frames) as opened:
            assert opened.n_frames == 3 and opened.size == (128, 64)


def test_nothing_is_overwritten_without_force(capsys):
    assert run(capsys, PROMPT, *FAST)[1] == "minisd.png\n"
    assert run(capsys, PROMPT, *FAST)[1] == "minisd-1.png\n"
    assert run(capsys, PROMPT, *FAST, "--force")[1] == "minisd.png\n"


def test_no_metadata(capsys):
    run(capsys, PROMPT, *FAST, "--no-metadata")
    assert image.read_recipe("minisd.png") is None


def test_exact_profile_and_float64(capsys):
    assert run(capsys, PROMPT, *FAST, "--exact", "--dtype", "float64")[0] == 0
    recipe = image.read_recipe("minisd.png")
    assert (recipe["profile"], recipe["dtype"]) == ("exact", "float64")


REFUSED = {
    "steps": (["--steps", "0"], 2, "num_inference_steps is 0"),
    "too many steps": (["--steps", "1001"], 2, "1 … 1000"),
    "size": (["-W", "66"], 2, "use 64 or 68"),
    "no size": (["-H", "0"], 2, "height is 0"),
    "seed": (["--seed", str(2**64)], 2, "seed is 18446744073709551616"),
    "negative seed": (["--seed", "-2"], 2, "seed is -2"),
    "guidance": (["--cfg-scale", "nan"], 2, "guidance_scale is nan"),
    "eta": (["--eta", "2"], 2, "eta is 2.0"),
    "scheduler": (["--scheduler", "eular"], 2, "ddim, lms, pndm"),
    "device": (["--device", "gpu"], 2, "there is no device 'gpu'"),
    "suffix": (["-o", "a.exe"], 2, "cannot write .exe"),
    "folder": (["-o", "no/such/a.png"], 2, "mkdir -p no/such"),
    "frames": (["--frames", "a.avi"], 2, "cannot write .avi"),
    "preview": (["--preview"], 2, "--preview without --frames"),
    "option": (["--stepz", "3"], 2, "--steps"),
    "no model": (["-m", "no-such-folder"], 2, "no-such-folder"),
    "too big": (["-W", "524288", "-H", "524288"], 4, "TB of memory"),
}


def assert_refused(capsys, monkeypatch, options: list, code: int, message: str):
    """Exit code and text on stderr, before any weights are read, and nothing is left behind."""
    before = sorted(os.listdir("."))
    monkeypatch.setattr(cli.Plan, "load", lambda plan: pytest.fail("weights were read"))
    got, out, err = run(capsys, PROMPT, *options)
    assert got == code and message in err and out == ""
    assert sorted(os.listdir(".")) == before


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_meant_is_refused_before_weights_are_read(capsys, monkeypatch, name):
    assert_refused(capsys, monkeypatch, *REFUSED[name])


def test_bytes_that_are_no_text_are_refused(capsys):
    code, _, err = run(capsys, "a cat \udce9")
    assert code == 2 and "not valid Unicode at position 6" in err


def test_memory_is_checked_with_the_weights(capsys, monkeypatch):
    monkeypatch.setattr(request, "available_bytes", lambda: 40_000_000)
    code, _, err = run(capsys, PROMPT)
    assert code == 4 and "for the weights" in err


def test_a_bug_is_said_to_be_one(capsys, monkeypatch):
    monkeypatch.setattr(cli.Plan, "load", lambda plan: 1 / 0)
    code, _, err = run(capsys, PROMPT)
    assert code == 70 and "a bug in minisd: ZeroDivisionError" in err and "Traceback" not in err


def test_ctrl_c_keeps_what_there_is(capsys, monkeypatch):
    steps = cli.run_steps

    def interrupted(pipe, plan, stop, quiet):
        os.kill(os.getpid(), signal.SIGINT)
        return steps(pipe, plan, stop, quiet)

    monkeypatch.setattr(cli, "run_steps", interrupted)
    code, out, err = run(capsys, PROMPT, "--steps", "5", "--seed", "32")
    assert (code, out) == (130, "minisd.partial.png\n")
    assert "interrupted after 1 steps" in err
    assert os.listdir(".") == ["minisd.partial.png"]


def test_a_second_ctrl_c_stops_at_once(capsys, monkeypatch):
    def twice(pipe, plan, stop, quiet):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(cli, "run_steps", twice)
    code, _, err = run(capsys, PROMPT)
    assert code == 130 and err.endswith("interrupted\n") and not os.listdir(".")


def test_help_waits_for_no_library():
    """`minisd --help` in under 0.15 s is a matter of what it imports."""
    program = "import sys; sys.argv = ['minisd', '--help']\nfrom minisd.cli import main\ntry: main()\nexcept SystemExit: pass\nprint('LOADED', *sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    text, _, loaded = done.stdout.partition("LOADED ")
    loaded = set(loaded.split())
    assert "Usage:" in text and "minisd.cli" in loaded
    assert not loaded & {"numpy", "PIL", "tokenizers", "safetensors", "huggingface_hub", "tqdm"}


def test_module_and_version(capsys):
    done = subprocess.run([sys.executable, "-m", "minisd", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("minisd, version ")


def test_a_folder_that_is_no_model_is_said_to_be_none(capsys, tmp_path):
    (tmp_path / "photos").mkdir()
    code, _, err = run(capsys, PROMPT, "-m", "photos")
    assert code == 3 and "model_index.json" in err


@pytest.fixture
def adapters(tmp_path):
    """A LoRA and a learned word for the embedded model."""
    from safetensors.numpy import save_file

    module = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v"
    shape = [tensor.shape for name, tensor in read_header(EMBEDDED / "unet" / "diffusion_pytorch_model.safetensors").items() if f"unet.{name}" == f"{module}.weight"][0]
    save_file({f"{module}.lora_A.weight": np.full((1, shape[1]), 0.1, "float32"), f"{module}.lora_B.weight": np.full((shape[0], 1), 0.1, "float32")}, "a.safetensors")
    for word, name in (("<zz>", "w"), ("x", "x")):
        save_file({word: np.full((2, 128), 0.1, "float32")}, f"{name}.safetensors")
    return ["--lora", "a.safetensors:0.5", "--embedding", "w.safetensors", "--clip-skip", "1", "--prompt-weights", "a1111"]


def test_adapters_make_another_picture_and_stand_in_the_recipe(capsys, adapters):
    prompt = "a <zz> cat on a (blue:1.2) background"
    assert run(capsys, prompt, *FAST, *adapters, "-o", "first.png")[0] == 0
    assert run(capsys, prompt, *FAST, "-o", "plain.png")[0] == 0
    recipe = image.read_recipe("first.png")
    assert recipe["loras"][0]["scale"] == 0.5 and len(recipe["loras"][0]["sha256"]) == 64 and recipe["embeddings"][0]["token"] == "<zz>"
    assert (recipe["clip_skip"], recipe["prompt_weights"]) == (1, "a1111")
    _, generate, *options = shlex.split(run(capsys, "inspect", "first.png")[1].splitlines()[1])
    assert run(capsys, generate, "-o", "second.png", *options)[0] == 0
    first, second, plain = (np.asarray(Image.open(f"{name}.png")) for name in ("first", "second", "plain"))
    assert np.array_equal(first, second) and not np.array_equal(first, plain)


@pytest.mark.parametrize("options, code, message", [
    (["--lora", "none.safetensors"], 2, "there is no file none.safetensors"),
    (["--lora", "a.safetensors:strong"], 2, "'strong' is no scale"),
    (["--embedding", "none.bin"], 2, "there is no file none.bin"),
    (["--embedding", "x.safetensors"], 2, "the token 'x' cannot be added"),
    (["--embedding", "w.safetensors", "--embedding", "w.safetensors"], 2, "the token '<zz>' cannot be added"),
    (["--clip-skip", "99"], 2, "clip_skip is 99"),
    (["--prompt-weights", "comfy"], 2, "'comfy' is not"),
])  # fmt: skip
def test_adapters_are_refused_before_weights_are_read(capsys, monkeypatch, adapters, options, code, message):
    monkeypatch.setattr(cli.Plan, "load", lambda plan: pytest.fail("weights were read"))
    got, out, err = run(capsys, PROMPT, *options)
    assert got == code and message in err and out == ""
