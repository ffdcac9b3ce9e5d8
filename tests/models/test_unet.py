"""The UNet: its blocks and the whole against diffusers; its wiring, sizes and refusals."""

import numpy as np
import pytest

from minisd import trace
from minisd.errors import ContractError
from minisd.params import record_reads
from tests.goldens import check, every_record_of, golden
from tests.numerics import assert_close_f64, assert_faithful, relative_l2
from tests.tiny_models import build, make_inputs

KINDS = (
    "CrossAttnDownBlock2D", "DownBlock2D", "UNetMidBlock2DCrossAttn", "CrossAttnUpBlock2D", "UpBlock2D", "UNet2DConditionModel",
)  # fmt: skip
UNETS = ("unet_sd1", "unet_sd2", "unet_inpainting")
every_unet = pytest.mark.parametrize("name", UNETS)


def run(name, inputs, dtype="float32"):
    """The whole UNet on `inputs`, in this dtype."""
    sample, context = (inputs[key].astype(dtype) for key in ("sample", "encoder_hidden_states"))
    return golden(name).model(dtype)(sample, inputs["timestep"], context)


@every_record_of(*KINDS)
def test_computes_what_the_reference_computes(name, path):
    check(golden(name), path)


@every_unet
def test_one_forward_reads_every_tensor(name):
    with record_reads() as reads:
        run(name, make_inputs(name))
    assert reads == {f"unet.{tensor}" for tensor in golden(name).shapes}


@every_unet
@pytest.mark.parametrize("size", [(9, 13), (24, 40), (1, 1)])
def test_any_size_works(name, size):
    """Odd sizes come down by rounding up, and must come up again to what they were."""
    inputs = {**make_inputs(name, size, batch=1), "timestep": 1}  # small, because float32 rounds the phase of the timestep embedding
    y = run(name, inputs)
    assert y.shape == (1, 4, *size) and y.dtype == np.float32
    assert relative_l2(y, run(name, inputs, "float64")) <= 5e-6


@every_unet
def test_a_batch_is_its_samples(name):
    """Guidance doubles the batch: the two halves are what two single runs give, within the rounding of either."""
    inputs = make_inputs(name, (6, 10), batch=2)
    for i in range(2):
        one = {key: value[i : i + 1] for key, value in inputs.items()}
        truth = run(name, one, "float64")
        assert_close_f64(run(name, inputs, "float64")[i : i + 1], truth, name=f"{name}, sample {i}", tolerance=1e-12)
        assert_faithful(run(name, one), truth, run(name, inputs)[i : i + 1], name=f"{name}, sample {i} alone")
        assert_faithful(run(name, inputs)[i : i + 1], truth, run(name, one), name=f"{name}, sample {i} in the batch")


def test_a_number_as_timestep_is_for_the_whole_batch():
    inputs = make_inputs("unet_sd1")
    expected = run("unet_sd1", {**inputs, "timestep": np.array([501.25, 501.25])})
    for timestep in (501.25, np.float32(501.25), np.array(501.25), np.array([501.25], dtype="float32")):
        assert np.array_equal(run("unet_sd1", {**inputs, "timestep": timestep}), expected)


@every_unet
@pytest.mark.parametrize("timestep", [501.25, [7.0, 999.0]])
def test_guidance_takes_each_image_once(name, timestep):
    """Two images and four prompts, the negative ones first: what four images give, whose first layers are computed twice."""
    once, prompts = make_inputs(name), make_inputs(name, batch=4)["encoder_hidden_states"]
    once = {**once, "timestep": np.array(timestep), "encoder_hidden_states": prompts}
    twice = {**once, "sample": np.concatenate((once["sample"],) * 2), "timestep": np.tile(timestep, 1 if np.ndim(timestep) == 0 else 2)}
    truth = run(name, twice, "float64")
    assert_close_f64(run(name, once, "float64"), truth, name=name, tolerance=1e-12)
    assert_faithful(run(name, once), truth, run(name, twice), name=name)


@every_unet
def test_who_listens_sees_both_halves_of_guidance_everywhere(name):
    prompts = make_inputs(name, batch=4)["encoder_hidden_states"]
    with trace() as seen:
        y = run(name, {**make_inputs(name), "timestep": 7.0, "encoder_hidden_states": prompts})
    assert y.shape[0] == 4 and {len(seen[path]) for path in seen} == {4}


@every_unet
def test_being_watched_changes_no_bit(name):
    inputs = make_inputs(name)
    plain = run(name, inputs)
    with trace() as seen:
        watched = run(name, inputs)
    assert np.array_equal(watched, plain)
    assert {tensor.rpartition(".")[0] for tensor in golden(name).shapes} <= {path.removeprefix("unet.") for path in seen}
    assert {seen[path].dtype for path in seen} == {np.dtype("float32")}


def test_the_inputs_are_not_touched():
    inputs = make_inputs("unet_sd1")
    before = {key: value.copy() for key, value in inputs.items()}
    run("unet_sd1", inputs)
    assert all(np.array_equal(inputs[key], before[key]) for key in before)


def test_the_u_at_64_latents():
    """The table of S3's slides, from the official topology at a fortieth of its widths and half its size."""
    unet = build(
        "unet", dict(block_out_channels=(8, 16, 32, 32), norm_num_groups=4, attention_head_dim=4, cross_attention_dim=8)
    )
    random = np.random.RandomState(0)
    sample, context = (random.standard_normal(shape).astype("float32") for shape in ((2, 4, 32, 32), (2, 3, 8)))
    with trace("unet.conv_in", "unet.down_blocks.?", "unet.mid_block", "unet.up_blocks.?", "unet.conv_out") as seen:
        unet(sample, 1, context)
    rows = [(name.removeprefix("unet."), seen[name].shape) for name in seen]
    assert [(name, (B, C if name == "conv_out" else 40 * C, 2 * H, 2 * W)) for name, (B, C, H, W) in rows] == UNET_TABLE


UNET_TABLE = [
    ("conv_in", (2, 320, 64, 64)),
    ("down_blocks.0", (2, 320, 32, 32)),
    ("down_blocks.1", (2, 640, 16, 16)),
    ("down_blocks.2", (2, 1280, 8, 8)),
    ("down_blocks.3", (2, 1280, 8, 8)),
    ("mid_block", (2, 1280, 8, 8)),
    ("up_blocks.0", (2, 1280, 16, 16)),
    ("up_blocks.1", (2, 1280, 32, 32)),
    ("up_blocks.2", (2, 640, 64, 64)),
    ("up_blocks.3", (2, 320, 64, 64)),
    ("conv_out", (2, 4, 64, 64)),
]


@pytest.mark.parametrize(
    "change, complaint",
    [
        (lambda x: dict(sample=x["sample"][:, :3]), r"sample has the shape \[2, 3, 9, 14\], not \[any, 4, any, any\]"),
        (lambda x: dict(sample=x["sample"][0]), r"sample has the shape \[4, 9, 14\]"),
        (lambda x: dict(sample=x["sample"].transpose(0, 2, 3, 1)), r"sample has the shape \[2, 9, 14, 4\]"),
        (lambda x: dict(sample=x["sample"].astype("float64")), "sample is float64, the weights are float32"),
        (lambda x: dict(encoder_hidden_states=x["encoder_hidden_states"][:1]), r"hidden_states has the shape \[1, 11, 20\], not \[2, any, 20\]"),
        (lambda x: dict(encoder_hidden_states=x["encoder_hidden_states"][[0, 1, 1]]), r"hidden_states has the shape \[3, 11, 20\], not \[2, any, 20\]"),
        (lambda x: dict(encoder_hidden_states=x["encoder_hidden_states"][..., :19]), r"encoder_hidden_states has the shape \[2, 11, 19\]"),
        (lambda x: dict(encoder_hidden_states=x["encoder_hidden_states"].astype("float16")), "encoder_hidden_states is float16"),
        (lambda x: dict(timestep=np.array([1.0, 2.0, 3.0])), "3 timesteps for 2 samples"),
    ],
)
def test_wrong_inputs_are_refused_by_name(change, complaint):
    inputs = make_inputs("unet_sd1")
    with pytest.raises(ContractError, match=complaint):
        golden("unet_sd1").model("float32")(**{**inputs, **change(inputs)})
