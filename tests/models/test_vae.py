"""The autoencoder: its blocks, encode, decode and posterior against diffusers; its sizes and refusals."""

import numpy as np
import pytest

from minisd import Generator, trace
from minisd.errors import ContractError
from minisd.models.vae import DiagonalGaussian
from minisd.params import record_reads
from tests.goldens import check, every_record_of, golden
from tests.numerics import assert_close_f64, assert_faithful, relative_l2
from tests.tiny_models import build, make_inputs

KINDS = (
    "DownEncoderBlock2D", "UpDecoderBlock2D", "UNetMidBlock2D", "Encoder", "Decoder", "AutoencoderKL.encode", "AutoencoderKL.decode",
    "DiagonalGaussianDistribution",
)  # fmt: skip


@every_record_of(*KINDS)
def test_computes_what_the_reference_computes(name, path):
    check(golden(name), path)


def test_encode_and_decode_read_every_tensor():
    vae, inputs = golden("vae").model("float32"), make_inputs("vae")
    with record_reads() as encoding:
        vae.encode(inputs["x"])
    with record_reads() as decoding:
        vae.decode(inputs["z"])
    assert encoding | decoding == {f"vae.{tensor}" for tensor in golden("vae").shapes}
    assert {tensor.split(".")[1] for tensor in encoding} == {"encoder", "quant_conv"}
    assert {tensor.split(".")[1] for tensor in decoding} == {"decoder", "post_quant_conv"}


@pytest.mark.parametrize("size", [(9, 13), (24, 40), (5, 64)])
def test_any_size_works(size):
    """Encoding drops what is no multiple of 4 (8 in official models); decoding multiplies the size of the latents exactly."""
    vae, oracle, inputs = golden("vae").model("float32"), golden("vae").model("float64"), make_inputs("vae", size)
    mean, picture = vae.encode(inputs["x"]).mode(), vae.decode(inputs["z"])
    assert mean.shape == (2, 4, size[0] // 4, size[1] // 4)
    assert picture.shape == (2, 3, 4 * inputs["z"].shape[2], 4 * inputs["z"].shape[3])
    assert relative_l2(mean, oracle.encode(inputs["x"].astype("float64")).mode()) <= 5e-6
    assert relative_l2(picture, oracle.decode(inputs["z"].astype("float64"))) <= 5e-6


def test_the_border_is_padded_below_and_to_the_right():
    """LDM trained the encoder with one row of zeros below and one column at the right: a pixel there sees the zeros, one above does not."""
    vae, x = golden("vae").model("float64"), np.zeros((1, 3, 24, 24))
    with trace("vae.encoder.down_blocks.0.downsamplers.0.conv") as seen:
        vae.encode(x)
    (y,) = (seen[name] for name in seen)
    inner = y[:, :, 3:-3, 3:-3]  # far from the padding of the resnets' own convolutions
    assert np.ptp(inner, axis=(2, 3)).max() <= 1e-12
    assert np.ptp(y[:, :, -1, 3:-3], axis=-1).max() <= 1e-12
    assert np.abs(y[:, :, -1, 5] - inner[:, :, 0, 0]).max() > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_batch_is_its_pictures(dtype):
    vae, oracle, inputs = golden("vae").model(dtype), golden("vae").model("float64"), make_inputs("vae")
    runs = [(lambda model, x: model.encode(x).mode(), inputs["x"]), (lambda model, x: model.decode(x), inputs["z"])]
    for run, x in runs:
        truth, batch = run(oracle, x.astype("float64"))[1:], run(vae, x.astype(dtype))[1:]
        single = run(vae, x[1:].astype(dtype))
        if dtype == "float64":
            assert_close_f64(single, truth, name="one picture of two", tolerance=1e-12)
        else:
            assert_faithful(single, truth, batch, name="one picture alone")
            assert_faithful(batch, truth, single, name="one picture of two")


# ------------------------------------------------------------------------------------------------------- posterior


def test_sample_is_what_diffusers_draws():
    extras = golden("vae").extras
    seed = int(extras["seed"])
    sample = DiagonalGaussian(extras["moments"]).sample(seed)
    assert_faithful(sample, extras["sample_truth"], extras["sample"], name="sample in float32")
    assert np.array_equal(sample, DiagonalGaussian(extras["moments"]).sample(Generator().manual_seed(seed)))
    in_float64 = DiagonalGaussian(extras["moments"].astype("float64")).sample(seed)
    assert_close_f64(in_float64, extras["sample_float64"], name="sample in float64", tolerance=1e-14)


def test_each_picture_may_have_a_generator_of_its_own():
    moments = golden("vae").extras["moments"]
    both = DiagonalGaussian(moments).sample([Generator().manual_seed(seed) for seed in (7, 8)])
    for i, seed in enumerate((7, 8)):
        assert np.array_equal(both[i : i + 1], DiagonalGaussian(moments[i : i + 1]).sample(seed))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logvar_is_clamped(dtype):
    logvar = np.array([-1e30, -31.0, -30.0, 0.0, 20.0, 21.0, 1e30], dtype=dtype).reshape(1, 1, 1, 7)
    posterior = DiagonalGaussian(np.concatenate([np.ones_like(logvar), logvar], axis=1))
    assert posterior.logvar.ravel().tolist() == [-30, -30, -30, 0, 20, 20, 20]
    assert posterior.std.ravel() == pytest.approx(np.exp([-15, -15, -15, 0, 10, 10, 10]), rel=4 * float(np.finfo(dtype).eps), abs=0)
    assert posterior.mode() is posterior.mean and posterior.mean.tolist() == np.ones_like(logvar).tolist()
    assert {a.dtype.name for a in (posterior.mean, posterior.logvar, posterior.std, posterior.sample(0))} == {dtype}


# ------------------------------------------------------------------------------------------------- shapes, refusals


def test_the_ladder_of_the_decoder():
    """The table of S3's slides, from the official topology at a thirty-second of its widths."""
    blocks = dict(down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
    vae = build("vae", dict(block_out_channels=(4, 8, 16, 16), norm_num_groups=2, layers_per_block=2, **blocks))
    with trace("vae.decoder.conv_in", "vae.decoder.mid_block", "vae.decoder.up_blocks.?") as seen:
        assert vae.decode(np.random.RandomState(0).standard_normal((1, 4, 64, 64)).astype("float32")).shape == (1, 3, 512, 512)
    widened = [(1, 32 * C, H, W) for _, C, H, W in (seen[name].shape for name in seen)]
    assert widened == DECODER_TABLE


DECODER_TABLE = [(1, 512, 64, 64), (1, 512, 64, 64), (1, 512, 128, 128), (1, 512, 256, 256), (1, 256, 512, 512), (1, 128, 512, 512)]


def test_wrong_inputs_are_refused_by_name():
    vae, inputs = golden("vae").model("float32"), make_inputs("vae")
    with pytest.raises(ContractError, match=r"x has the shape \[2, 4, .*\], not \[any, 3, any, any\]"):
        vae.encode(np.concatenate([inputs["x"], inputs["x"][:, :1]], axis=1))
    with pytest.raises(ContractError, match=r"x has the shape \[3, 15, 22\]"):
        vae.encode(inputs["x"][0])
    with pytest.raises(ContractError, match="x is float64, the weights are float32"):
        vae.encode(inputs["x"].astype("float64"))
    with pytest.raises(ContractError, match=r"z has the shape \[2, 3, .*\], not \[any, 4, any, any\]"):
        vae.decode(inputs["z"][:, :3])
    with pytest.raises(ContractError, match="z is float16, the weights are float32"):
        vae.decode(inputs["z"].astype("float16"))
