"""The golden files hold what the tests believe: every kind of module of every model, each looked at by one test."""

import numpy as np
import pytest

from tests.goldens import FOLDER, Golden, golden, write
from tests.layer_table import TABLE
from tests.layers import test_attention, test_basic, test_resnet, test_timestep
from tests.models import test_clip_text, test_unet, test_vae
from tests.tiny_models import CONFIGS

TESTED = [k for t in (test_basic, test_resnet, test_timestep, test_attention, test_unet, test_vae, test_clip_text) for k in t.KINDS]


def test_every_kind_of_module_is_recorded_and_tested_once():
    recorded = {record.kind for name in CONFIGS for record in golden(name).records.values()}
    assert recorded == set(TABLE) == set(TESTED)
    assert len(TESTED) == len(set(TESTED))


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("unet")])
def test_every_block_of_a_unet_is_recorded(name):
    n = len(CONFIGS[name]["block_out_channels"])
    blocks = [f"{side}_blocks.{i}" for side in ("down", "up") for i in range(n)] + ["mid_block", "conv_in", "conv_out", "conv_norm_out", ""]
    assert set(blocks) <= set(golden(name).records)


def test_the_configs_are_those_the_files_were_made_with():
    for name, config in CONFIGS.items():
        assert {key: list(v) if isinstance(v, tuple) else v for key, v in config.items()} == golden(name).config, name


def test_the_quiet_channels_are_quiet():
    """Group norms and layer norms are fed variances around 1e-5, without which a wrong ε would hide in the rounding."""
    for name in ("unet_sd1", "unet_sd2", "unet_inpainting", "vae"):
        groups = golden(name).config["norm_num_groups"]
        smallest = [
            record.inputs["input"].reshape(len(record.inputs["input"]), groups, -1).var(axis=-1).min()
            for record in golden(name).records.values()
            if record.kind == "GroupNorm"
        ]
        assert len(smallest) >= 4 and np.quantile(smallest, 0.75) < 1e-4, (name, smallest)
    for name in ("unet_sd1", "clip_gelu", "clip_quick_gelu"):
        smallest = [r.inputs["input"].var(axis=-1).min() for r in golden(name).records.values() if r.kind == "LayerNorm"]
        assert min(smallest) < 1e-3, (name, smallest)


def test_they_stay_small():
    assert sum((FOLDER / f"{name}.npz").stat().st_size for name in CONFIGS) < 4e6


def test_what_is_written_is_read(tmp_path):
    random = np.random.RandomState(0)
    x, skip = random.standard_normal((1, 2, 3, 3)).astype("float32"), random.standard_normal((1, 2)).astype("float32")
    truth = random.standard_normal((1, 30, 30))
    plain = truth.astype("float32")
    plain[0, 7, 11] += 1.0  # this element must be among those that are kept
    inputs = {"hidden_states": x, "res_hidden_states_tuple": (skip, x), "upsample_size": (3, 4), "input_ids": np.array([[1, 2]])}
    records = [("a.0", "Conv2d", inputs, [truth, truth[:, :2]], [plain, plain[:, :2]]), ("b", "Linear", {"x": x}, [truth], [plain])]
    write(tmp_path / "some.npz", note="by hand", config={"n": 1}, shapes={}, records=records, extras={"more": skip})

    read = Golden("some", tmp_path / "some.npz")
    first, second = read.records.values()
    assert (read.note, read.config, first.kind, first.shapes) == ("by hand", {"n": 1}, "Conv2d", [(1, 30, 30), (1, 2, 30)])
    assert np.array_equal(first.inputs["hidden_states"], x) and np.array_equal(read.extras["more"], skip)
    assert [np.array_equal(*pair) for pair in zip(first.inputs["res_hidden_states_tuple"], (skip, x))] == [True, True]
    assert first.inputs["upsample_size"] == (3, 4) and first.inputs["input_ids"].dtype == np.int64
    assert len(first.truth[0]) in (256, 257) and len(first.truth[1]) == 60 and len(second.truth[0]) in (512, 513)
    for record in (first, second):
        assert 7 * 30 + 11 in record.positions[0] and np.abs(record.truth[0] - record.plain[0]).max() >= 0.9
    assert np.array_equal(second.truth[0], truth.ravel()[second.positions[0]])
    assert np.array_equal(second.plain[0], plain.ravel()[second.positions[0]])
