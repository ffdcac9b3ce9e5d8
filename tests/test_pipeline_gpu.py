"""The whole pipeline on a GPU, with a stand-in for CuPy whose arrays meet no NumPy array: pictures, edits, adapters, words, traces, errors.

The plain tests let the reference compute every op; those marked `kernels` run every launch of the CUDA kernels in the simulator.
"""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from minisd import Generator, StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionPipeline, prompts, trace, vjp
from minisd.commands import doctor, verify
from minisd.compare import diff
from minisd.errors import ContractError, MinisdError, ResourceError, UsageError
from minisd.gpu import choose
from minisd.image import read_recipe
from minisd.ops import RUNGS
from minisd.ops.cuda.device import on_device
from minisd.tracefile import TraceFile
from minisd.viz import fit_preview, frames, word_maps

from .adapters.lora_bytes import matrices, peft
from .adapters.test_lora_file import MODULES, SHAPES
from .cudasim.cupy_stand_in import OutOfMemoryError, StandInSimulator, reference_gpu, stand_in
from .cudasim.simulator import needs_simulator
from .numerics import relative_l2
from .test_cli import run as command_line
from .tiny_folder import write_tiny_sd2

PROMPT = "a red apple"
SIZE = dict(height=16, width=16)
RUN = dict(num_inference_steps=2, seed=3, output_type="np")
BOUND = 1e-2  # relative L2 of a picture in 0 … 1 after two steps in float16; float32 is 1e-6 away, a wrong layer 1e-1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_tiny_sd2(tmp_path_factory.mktemp("sd2"))
    save_file(peft(matrices(SHAPES, MODULES)), folder / "ink.safetensors")
    return folder


@pytest.fixture
def host(folder):
    return StableDiffusionPipeline.from_pretrained(folder)


@pytest.fixture
def gpu():
    with reference_gpu() as cupy:
        yield cupy


@pytest.fixture
def pipe(gpu, folder):
    return StableDiffusionPipeline.from_pretrained(folder, device="cuda")


def paint(pipe, prompt=PROMPT, **options):
    return pipe(prompt, **{**RUN, **SIZE, **options}).images


PHOTO = Image.fromarray((np.random.RandomState(0).rand(16, 16, 3) * 255).astype("uint8"))
MASK = np.pad(np.ones((5, 9), "float32"), ((4, 7), (3, 4)))


# ----- pictures ------------------------------------------------------------------------------------------------------------


def test_the_picture_is_that_of_the_cpu(pipe, host):
    """Noise, latents, prompt vectors and pixels are float32 on the host: the same seed begins with the same numbers."""
    assert (pipe.device, pipe.dtype, pipe.host_dtype) == ("cuda:0", np.float16, np.float32)
    picture, truth = paint(pipe), paint(host)
    assert type(picture) is np.ndarray and picture.dtype == np.float32
    assert 0.0 < relative_l2(picture, truth) <= BOUND
    for ours, theirs in zip(pipe.steps(PROMPT, num_inference_steps=2, seed=3, **SIZE), host.steps(PROMPT, num_inference_steps=2, seed=3, **SIZE)):
        for name in ("latents", "noise_pred", "pred_original_sample"):
            x = getattr(ours, name)
            assert type(x) is np.ndarray and x.dtype == np.float32 and relative_l2(x, getattr(theirs, name)) <= 3 * BOUND, name  # guidance magnifies


def test_float32_and_float64_on_the_gpu(gpu, folder, host):
    for dtype, bound in (("float32", 1e-5), ("float64", 1e-5)):
        pipe = StableDiffusionPipeline.from_pretrained(folder, device="cuda", dtype=dtype)
        noise = Generator(3).randn((1, 4, 4, 4))
        y, truth = (paint(p, latents=noise, seed=None) for p in (pipe, host))
        assert pipe.dtype == pipe.host_dtype == y.dtype == np.dtype(dtype) and relative_l2(y, truth) <= bound


def test_moving_equals_loading(gpu, pipe, host):
    there = paint(pipe)
    assert host.to("cuda", "float16") is host and host.device == "cuda:0" and repr(host).endswith("float16, cuda:0)")
    np.testing.assert_array_equal(paint(host), there)
    with pytest.raises(UsageError, match="float16 cannot be computed on the CPU"):
        host.to("cpu")
    back = paint(host.to("cpu", "float32"))
    assert host.device == "cpu" and relative_l2(back, there) <= BOUND


def test_the_second_gpu(folder, host):
    """Every array is made where the model is, though CuPy's current device is another one."""
    with reference_gpu(count=2):
        pipe = StableDiffusionPipeline.from_pretrained(folder, device="cuda:1")
        assert pipe.device == "cuda:1" and relative_l2(paint(pipe), paint(host)) <= BOUND
        pipe.load_lora_weights(folder / "ink.safetensors")
        pipe.load_textual_inversion({"<ink>": np.ones(22, "float32")})
        paint(pipe, "an <ink> apple")
        prompts.mix(pipe.text_encoder, {1: 0.5, 2: 0.5})


@pytest.mark.parametrize(
    "options",
    [dict(guidance_scale=1.0), dict(two_passes=True), dict(num_images_per_prompt=2, seed=[1, 2]), dict(clip_skip=1, prompt_weights="a1111")],
    ids=lambda options: next(iter(options)),
)
def test_the_options_of_a_run(pipe, host, options):
    assert relative_l2(paint(pipe, "a (red:1.3) apple", **options), paint(host, "a (red:1.3) apple", **options)) <= BOUND


def test_arrays_of_the_caller_may_be_on_the_device(gpu, pipe):
    """Noise and prompt vectors as the text encoder gives them there."""
    noise = Generator(3).randn((1, 4, 4, 4))
    cond, uncond = (pipe.encode_prompt([text]) for text in (PROMPT, ""))
    given = dict(seed=None, latents=gpu.asarray(noise), prompt_embeds=gpu.asarray(cond), negative_prompt_embeds=gpu.asarray(uncond.astype("float16")))
    np.testing.assert_array_equal(paint(pipe, None, **given), paint(pipe))


@pytest.mark.parametrize(
    "kind, options", [(StableDiffusionImg2ImgPipeline, dict(strength=0.9)), (StableDiffusionInpaintPipeline, dict(mask_image=MASK, **SIZE))],
    ids=["img2img", "inpaint"],
)  # fmt: skip
def test_pictures_of_pictures(pipe, host, kind, options):
    ours, theirs = (kind.from_pipe(p)(PROMPT, image=PHOTO, **RUN, **options).images for p in (pipe, host))
    assert relative_l2(ours, theirs) <= 2 * BOUND  # the encoder's part comes first


def test_an_inpainting_model(gpu, tmp_path):
    folder = write_tiny_sd2(tmp_path, in_channels=9)
    options = dict(image=PHOTO, mask_image=MASK, **RUN, **SIZE)
    ours, theirs = (StableDiffusionInpaintPipeline.from_pretrained(folder, device=d)(PROMPT, **options).images for d in ("cuda", "cpu"))
    assert relative_l2(ours, theirs) <= 2 * BOUND


# ----- prompts and adapters ------------------------------------------------------------------------------------------------


def test_edited_and_mixed_prompts(pipe, host):
    ids = pipe.tokenizer([PROMPT]).input_ids
    token = int(ids[0][2])
    results = []
    for p in (pipe, host):
        text = p.text_encoder
        x = prompts.embed(text, ids, {token: text.token_embedding[5]})
        y = prompts.embed(text, ids, {token: prompts.mix(text, {5: 0.5, 6: 0.5})})
        results.append((x, y, prompts.slerp(text.encode_embeddings(x), text.encode_embeddings(y), 0.3)))
        np.testing.assert_array_equal(prompts.embed(text, ids), text.embeddings(ids))
    for ours, theirs in zip(*results):
        assert type(ours) is np.ndarray and ours.dtype == np.float32 and relative_l2(ours, theirs) <= BOUND


def test_a_learned_word(pipe, host):
    vectors = 0.01 * np.random.RandomState(1).randn(2, 22).astype("float32")
    for p in (pipe, host):
        p.load_textual_inversion({"<cat>": vectors})
    assert relative_l2(paint(pipe, "a <cat>"), paint(host, "a <cat>")) <= BOUND
    for p in (pipe, host):
        p.unload_textual_inversion()
    assert relative_l2(paint(pipe), paint(host)) <= BOUND


def weights(pipe) -> dict:
    return {name: w if isinstance(w, np.ndarray) else w.get() for name, w in pipe.unet.params.items()}


def test_a_lora_moves_along_and_comes_off_again(folder, pipe, host):
    """Merged there or before the move: the same bits, in the kernels' layout; taken off: the original ones."""
    plain = weights(pipe)
    pipe.load_lora_weights(folder / "ink.safetensors")
    host.load_lora_weights(folder / "ink.safetensors")
    changed = weights(host)
    assert relative_l2(paint(pipe), paint(host)) <= BOUND
    moved = host.to("cuda", "float16")
    for (name, a), (_, b) in zip(pipe.unet.params.items(), moved.unet.params.items()):
        np.testing.assert_array_equal(a.get(), b.get(), err_msg=name)
        assert relative_l2(a.get().astype("float32"), changed[name]) <= 5e-4, f"{name}: W and the sum are each rounded once"
        assert a.ndim != 4 or a.transpose(2, 3, 1, 0).flags.c_contiguous, name
    assert moved.lora_report()[0].ratio > 0
    for p in (pipe, moved):
        p.unload_lora_weights()
        assert all(np.array_equal(w, plain[name]) for name, w in weights(p).items())


# ----- looking ---------------------------------------------------------------------------------------------------------------


def test_a_trace_has_every_layer_of_the_device(pipe, host, tmp_path):
    with trace(pipe, to=tmp_path / "gpu.safetensors") as recorder:
        paint(pipe)
    with trace(host, to=tmp_path / "cpu.safetensors"):
        paint(host)
    ours, theirs = (TraceFile(tmp_path / f"{name}.safetensors") for name in ("gpu", "cpu"))
    assert [row["key"] for row in ours.rows] == [row["key"] for row in theirs.rows] and {row["dtype"] for row in recorder.rows} == {"float16"}
    assert all(relative_l2(ours[row["key"]].astype("float32"), theirs[row["key"]]) <= 5 * BOUND for row in ours.rows if not row["call"])
    with trace(pipe, "unet.conv_in") as seen:
        paint(pipe)
    assert seen["unet.conv_in"].dtype == np.float16 and "float16" in seen.table()


def test_diff_names_the_first_wrong_layer_of_the_gpu(pipe, host, tmp_path):
    noise, wrong = Generator(3).randn((1, 4, 4, 4)), "unet.up_blocks.1.resnets.0.conv1"
    files = {name: tmp_path / f"{name}.safetensors" for name in ("right", "wrong", "truth")}
    for name, p in (("right", pipe), ("truth", host.astype("float64")), ("wrong", pipe)):
        if name == "wrong":
            bias = pipe.unet.params.up_blocks[1].resnets[0].conv1.bias
            bias += 0.5
        with trace(p, to=files[name]):
            paint(p, latents=noise, seed=None, num_inference_steps=1)
    assert diff(files["right"], files["truth"]).first_divergence() is None
    assert diff(files["wrong"], files["truth"]).first_divergence().name == wrong


def test_the_origin_of_a_nan_is_named(pipe):
    pipe.unet.params.mid_block.resnets[0].conv1.bias[...] = float("nan")
    with pytest.raises(ArithmeticError, match=r"unet.mid_block.resnets.0.conv1 \(conv2d\)") as caught:
        paint(pipe)
    assert "limit of float16" in caught.value.why and "run in float32" in caught.value.fix


def test_pictures_of_what_happens(pipe):
    steps = list(pipe.steps(PROMPT, num_inference_steps=2, seed=3, **SIZE))
    assert len(frames(pipe, steps)) == len(frames(pipe, steps, fit_preview(pipe.vae))) == 2
    _, maps = word_maps(pipe, PROMPT, num_inference_steps=1, seed=3, **SIZE)
    assert [word for word, _ in maps] == PROMPT.split()


def test_gradients_are_refused(gpu, pipe):
    z, context = np.zeros((1, 4, 4, 4), "float32"), np.zeros((1, 5, 22), "float32")
    for call in (
        lambda: vjp.decode(pipe.vae, z), lambda: vjp.encode(pipe.vae, z[:, :3]), lambda: vjp.unet(pipe.unet, z, 1, context),
        lambda: vjp.encode_embeddings(pipe.text_encoder, context), lambda: vjp.embeddings(pipe.text_encoder, np.zeros((1, 5), int)),
    ):  # fmt: skip
        with pytest.raises(ContractError, match="gradients of the .* on cuda:0") as caught:
            call()
        assert '.to("cpu", "float32")' in caught.value.fix


# ----- memory --------------------------------------------------------------------------------------------------------------


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(folder, host):
    with reference_gpu(free=1 << 20):
        with pytest.raises(ResourceError, match="does not fit on cuda:0") as caught:
            StableDiffusionPipeline.from_pretrained(folder, device="cuda")
        assert "float16" in caught.value.fix
        with pytest.raises(ResourceError, match="does not fit on cuda:0"):
            host.to("cuda")
        assert host.device == host.unet.device == "cpu", "all of it or nothing"


def test_a_run_that_does_not_fit_is_refused_before_it_begins(folder):
    with reference_gpu(free=8 << 20):
        pipe = StableDiffusionPipeline.from_pretrained(folder, device="cuda")
        paint(pipe)
        with pytest.raises(ResourceError, match="1024×1024 × 1 needs about .* of memory on cuda:0") as caught:
            paint(pipe, height=1024, width=1024)
        assert "choose a smaller picture" in caught.value.fix


def test_running_out_of_memory_in_a_layer(pipe, monkeypatch):
    def full(*args, **kwargs):
        raise OutOfMemoryError("Out of memory allocating 1,024 bytes (allocated so far: 512 bytes).")

    monkeypatch.setattr("minisd.ops.attention", full)
    with pytest.raises(ResourceError, match="out of memory on cuda:0") as caught:
        paint(pipe)
    assert "allocating 1,024 bytes" in caught.value.why and "--two-passes" in caught.value.fix


# ----- the command line ----------------------------------------------------------------------------------------------------


@pytest.fixture
def minisd(capsys, tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    return lambda *args: command_line(capsys, *args, "-m", str(folder), "-W", "16", "-H", "16", "--steps", "2")


def test_a_picture_and_its_recipe(gpu, minisd, capsys):
    code, out, err = minisd(PROMPT, "-s", "3", "--device", "cuda", "--two-passes")
    assert (code, out) == (0, "minisd.png\n") and "float16 on cuda:0" in err
    recipe = read_recipe("minisd.png")
    assert (recipe["device"], recipe["gpu"], recipe["dtype"]) == ("cuda:0", "NVIDIA Stand-in", "float16")
    assert "14.2.0" in recipe["cupy"] and recipe["driver"] == "CUDA 13.0" and recipe["two_passes"] is True
    _, out, _ = command_line(capsys, "inspect", "minisd.png")
    assert "--device cuda:0 --dtype float16" in out and "--two-passes" in out
    code, _, err = minisd(PROMPT, "-s", "3", "-o", "auto.png")
    assert code == 0 and "float16 on cuda:0" in err, "auto takes the GPU"


def test_auto_without_a_gpu_says_so_once_and_takes_the_cpu(minisd, caplog):
    with stand_in(status=35, driver=0), caplog.at_level("INFO", logger="minisd"):
        code, _, err = minisd(PROMPT, "-s", "3")
    assert code == 0 and "float32 on cpu" in err
    assert sum("on the CPU, because there is no NVIDIA driver" in record.getMessage() for record in caplog.records) == 1
    assert read_recipe("minisd.png")["device"] == "cpu"


def test_a_lora_and_a_picture_on_the_command_line(gpu, minisd, folder):
    PHOTO.save("photo.png")
    files = ("--lora", f"{folder / 'ink.safetensors'}:0.5", "-i", "photo.png", "--frames", "steps.gif", "--preview")
    code, _, err = minisd(PROMPT, "-s", "3", "--device", "cuda", *files)
    assert code == 0 and Path("minisd.png").exists() and Path("steps.gif").exists(), err


def test_refusals_of_the_command_line(gpu, minisd, capsys):
    for options, exit_code, message in (
        (["--device", "gpu"], 2, "there is no device 'gpu'"), (["--device", "cuda:7"], 2, "there is no GPU cuda:7"),
        (["--device", "cpu", "--dtype", "float16"], 2, "float16 cannot be computed on the CPU"),
        (["--device", "cuda", "--resident", "float16"], 2, "weights cannot be resident as float16 on cuda:0"),
    ):  # fmt: skip
        code, _, err = minisd(PROMPT, *options)
        assert code == exit_code and message in err
    with stand_in(status=100, count=0):
        code, out, _ = minisd(PROMPT, "--device", "cuda", "--json")
    assert code == 4 and json.loads(out)["error"]["what"] == "no GPU is visible"


def test_trace_and_plot(gpu, minisd, capsys):
    code, out, _ = minisd("trace", PROMPT, "--device", "cuda", "--at", "unet.conv_in", "--inputs", "-o", "run.safetensors")
    file = TraceFile("run.safetensors")
    assert code == 0 and file.recipe["device"] == "cuda:0" and file.recipe["dtype"] == "float16" and file["unet.conv_in"].dtype == np.float16
    code, out, _ = minisd("trace", PROMPT, "--device", "cuda", "--at", "unet.conv_in", "--stats", "--table")
    assert code == 0 and "float16" in out
    assert minisd("plot", "attention", PROMPT, "--device", "cuda")[:2] == (0, "attention.png\n")


def test_doctor_shows_the_gpu_or_why_there_is_none(gpu):
    problems = []
    facts = doctor.graphics(problems)
    assert facts["name"] == "NVIDIA Stand-in" and facts["memory free"] == "17.2 of 25.8 GB" and not problems
    with stand_in(status=35, driver=0), pytest.MonkeyPatch.context() as patch:
        patch.setattr("minisd.gpu.installed", lambda: ["cupy-cuda13x 14.2.0"])
        text = doctor.graphics(problems)
    assert text.startswith("not used: there is no NVIDIA driver") and "fix: install the driver" in text
    assert problems == ["the GPU: there is no NVIDIA driver"], "who installed CuPy wants it used"


def test_verify_checks_both_dtypes_on_a_gpu(gpu, monkeypatch):
    record, asked = json.loads(verify.RECORD.read_text())["model"], []

    def values(dtype, device):
        asked.append((dtype, device))
        return {name: [1.001 * v for v in numbers] if dtype == "float16" else numbers for name, numbers in record.items()}

    monkeypatch.setattr(verify, "model_values", values)
    checks = verify.golden("cuda")
    assert asked == [("float32", "cuda:0"), ("float16", "cuda:0")] and len(checks) == 2 * len(record)
    halves = [check for check in checks if check["name"].startswith("float16: ")]
    assert len(halves) == len(record) and all(check["ok"] for check in halves)
    assert {check["allowed"] for check in halves} == {verify.ALLOWED_HALF, verify.ALLOWED_HALF_PICTURE}


def test_the_page_about_the_gpu_runs(gpu):
    page = Path(__file__).parents[1] / "docs" / "gpu.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    exec("".join(blocks), {})


# ----- by the kernels ------------------------------------------------------------------------------------------------------

# Heads of 40 and 80, for which there is Flash attention; the text encoder's are 11 wide.
WIDE_HEADS = dict(
    block_out_channels=(40, 80), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    attention_head_dim=(1, 1), transformer_layers_per_block=1, norm_num_groups=4,
)  # fmt: skip
LOOK_UPS = {"embedding"}


@pytest.fixture
def ran(monkeypatch):
    """{(op, rung)} of everything that ran on arrays of CuPy's stand-in."""
    found = set()

    def noting(rung):
        def run(*args, **kwargs):
            if any(isinstance(a, StandInSimulator.array_type) for a in args):
                found.add((rung.op, rung.name))
            return rung.run(*args, **kwargs)

        return dataclasses.replace(rung, run=run)

    for op, ladder in RUNGS.items():
        monkeypatch.setitem(RUNGS, op, [noting(rung) for rung in ladder])
    return found


@needs_simulator[0]
@needs_simulator[1]
def test_a_picture_by_the_kernels(tmp_path, ran):
    """Prompt, UNet and decoder: each op that has a kernel launches one, and no launch copies a weight."""
    folder = write_tiny_sd2(tmp_path, unet=WIDE_HEADS)
    options = dict(num_inference_steps=1, height=8, width=12)
    truth = paint(StableDiffusionPipeline.from_pretrained(folder), **options)
    device = StandInSimulator()
    with stand_in(), on_device(device):
        pipe = StableDiffusionPipeline.from_pretrained(folder, device="cuda")
        kernels = {w.transpose(2, 3, 1, 0).shape for part in ("unet", "vae") for _, w in getattr(pipe, part).params.items() if w.ndim == 4}
        picture = paint(pipe, **options)
    assert 0.0 < relative_l2(picture, truth) <= BOUND
    assert {op for op, rung in ran if rung == "reference"} <= LOOK_UPS, ran
    assert ("attention", "few_keys") in ran and not kernels & set(device.copies)


@needs_simulator[0]
@needs_simulator[1]
def test_a_changed_picture_by_the_kernels(tmp_path, ran):
    """The encoder, and weights that a LoRA was merged into on the device."""
    folder = write_tiny_sd2(tmp_path)
    save_file(peft(matrices(SHAPES, MODULES)), folder / "ink.safetensors")
    device, pictures = StandInSimulator(), []
    with stand_in(), on_device(device):
        for where in ("cuda", "cpu"):
            pipe = StableDiffusionImg2ImgPipeline.from_pretrained(folder, device=where)
            pipe.load_lora_weights(folder / "ink.safetensors")
            with trace(pipe, "unet.conv_out") as seen:
                pictures.append(pipe(PROMPT, image=PHOTO, strength=0.5, **RUN).images)
    assert relative_l2(*pictures) <= 2 * BOUND and seen["unet.conv_out"].dtype == np.float32
    assert {op for op, rung in ran if rung == "reference"} <= LOOK_UPS, ran
    assert not [shape for shape in device.copies if len(shape) == 4 and shape[0] == shape[1] == 3], "a kernel was copied for a launch"


@needs_simulator[0]
@needs_simulator[1]
def test_the_embedded_model_by_the_kernels(ran):
    """Trained weights of the family of SD 1: projections by convolutions, quick GELU."""
    options = dict(height=16, width=16, num_inference_steps=1, seed=1, output_type="np")
    truth = StableDiffusionPipeline.from_pretrained("tiny")(PROMPT, **options).images
    with stand_in(), on_device(StandInSimulator()):
        picture = StableDiffusionPipeline.from_pretrained("tiny", device="cuda")(PROMPT, **options).images
    assert 0.0 < relative_l2(picture, truth) <= 5e-3
    assert {op for op, rung in ran if rung == "reference"} <= LOOK_UPS, ran


# ----- on a GPU, where there is one ------------------------------------------------------------------------------------------


def test_the_embedded_model_on_this_machines_gpu():
    """The recorded values in float32 and float16, by the rungs that a user gets."""
    try:
        choose("cuda")
    except MinisdError as reason:
        pytest.skip(f"no GPU: {reason.what}")
    wrong = [check for check in verify.golden("cuda") if not check["ok"]]
    assert not wrong, wrong
