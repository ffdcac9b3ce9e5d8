"""LoRA on a model: the equation, weights, fusing, and the way back to the last bit; layout and dtype stay."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from minisd import StableDiffusionPipeline
from minisd.adapters.lora import add_lora
from minisd.adapters.lora_file import LoraLayer
from minisd.errors import ModelFileError, UsageError
from tests.tiny_folder import write_tiny_sd2

from .lora_bytes import kohya, matrices, peft
from .test_lora_file import BLOCK, LAYER, MODULES, SHAPES

OTHER = {"unet": [f"{BLOCK}.attn1.to_q", "conv_in"]}
PAIRS, PAIRS_B = matrices(SHAPES, MODULES), matrices(SHAPES, OTHER, rank=3)
Q, CONV, FC1 = ("unet", f"{BLOCK}.attn1.to_q"), ("unet", "down_blocks.0.resnets.0.conv1"), ("text_encoder", f"{LAYER}.mlp.fc1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_tiny_sd2(tmp_path_factory.mktemp("model"))
    save_file(peft(PAIRS), folder / "a.safetensors")
    save_file(kohya(PAIRS_B, alpha=6.0), folder / "b.safetensors")  # scale 2
    return folder


@pytest.fixture(scope="module")
def original(folder):
    return StableDiffusionPipeline.from_pretrained(folder)


@pytest.fixture
def pipe(folder):
    return StableDiffusionPipeline.from_pretrained(folder)


def weight(pipe, key):
    part, module = key
    return dict(getattr(pipe, part).params.items())[f"{module}.weight"]


def delta(pairs, key) -> np.ndarray:
    a, b = (x.astype("float64") for x in pairs[key])
    return np.einsum("or...,ri...->oi...", b, a)


def assert_changed(pipe, original, key, change):
    np.testing.assert_allclose(weight(pipe, key), weight(original, key) + change, rtol=1e-5, atol=1e-6)


def assert_original(pipe, original):
    """Every array of both models is the same to the last bit, and lies in the same order."""
    for part in ("unet", "text_encoder"):
        for (name, ours), (_, theirs) in zip(getattr(pipe, part).params.items(), getattr(original, part).params.items()):
            assert np.array_equal(ours, theirs) and ours.strides == theirs.strides, name


def test_the_weights_are_w_plus_b_a(pipe, original, folder):
    pipe.load_lora_weights(folder / "a.safetensors", adapter_name="a")
    for key in PAIRS:
        assert_changed(pipe, original, key, delta(PAIRS, key))
    touched = {f"{part}.{module}.weight" for part, module in PAIRS}
    for part in ("unet", "text_encoder"):
        for (name, ours), (_, theirs) in zip(getattr(pipe, part).params.items(), getattr(original, part).params.items()):
            assert ours.dtype == theirs.dtype and ours.strides == theirs.strides  # convolutions stay channels-last
            assert np.array_equal(ours, theirs) == (f"{part}.{name}" not in touched), name


def test_unloading_gives_every_bit_back(pipe, original, folder):
    before = weight(pipe, Q)
    for name in "ab":
        pipe.load_lora_weights(folder / f"{name}.safetensors", adapter_name=name)
    pipe.set_adapters(["a", "b"], [0.3, -1.7])
    pipe.unload_lora_weights()
    assert_original(pipe, original)
    assert weight(pipe, Q) is before and pipe.unet.adapters is None and pipe.get_list_adapters() == {}


def test_the_last_loaded_is_the_active_one_and_weights_add_up(pipe, original, folder):
    pipe.load_lora_weights(folder / "a.safetensors", adapter_name="a")
    pipe.load_lora_weights(folder / "b.safetensors")
    assert pipe.get_list_adapters() == {"unet": ["a", "default_1"], "text_encoder": ["a"]}
    assert pipe.get_active_adapters() == ["default_1", "a"]  # b leaves the text encoder alone, and a stays active there
    assert_changed(pipe, original, Q, 2.0 * delta(PAIRS_B, Q))
    pipe.set_adapters(["a", "default_1"], [0.5, 0.25])
    assert_changed(pipe, original, Q, 0.5 * delta(PAIRS, Q) + 0.5 * delta(PAIRS_B, Q))
    assert_changed(pipe, original, FC1, 0.5 * delta(PAIRS, FC1))
    pipe.set_adapters("a", {"unet": 0.0, "text_encoder": 2.0})
    assert_changed(pipe, original, FC1, 2.0 * delta(PAIRS, FC1))
    assert np.array_equal(weight(pipe, Q), weight(original, Q)) and np.array_equal(weight(pipe, ("unet", "conv_in")), weight(original, ("unet", "conv_in")))


def test_disabled_is_the_original_to_the_last_bit(pipe, original, folder):
    pipe.load_lora_weights(folder / "a.safetensors")
    changed = weight(pipe, Q)
    pipe.disable_lora()
    assert_original(pipe, original)
    assert pipe.get_active_adapters() == ["default_0"]  # as in diffusers
    pipe.enable_lora()
    assert np.array_equal(weight(pipe, Q), changed)


def test_fuse_and_unfuse(pipe, original, folder):
    pipe.load_lora_weights(folder / "a.safetensors", adapter_name="a")
    pipe.set_adapters("a", 0.5)
    plain = weight(pipe, Q)
    pipe.fuse_lora(lora_scale=0.5)
    assert_changed(pipe, original, Q, 0.25 * delta(PAIRS, Q))
    for change in (lambda: pipe.set_adapters("a", 1.0), lambda: pipe.fuse_lora(), lambda: pipe.load_lora_weights(folder / "b.safetensors"),
                   lambda: pipe.delete_adapters("a")):  # fmt: skip
        with pytest.raises(UsageError, match="are fused"):
            change()
    pipe.unfuse_lora()
    assert np.array_equal(weight(pipe, Q), plain)
    pipe.fuse_lora(components=["unet"], lora_scale=2.0, adapter_names=["a"])
    assert_changed(pipe, original, Q, delta(PAIRS, Q))
    pipe.unload_lora_weights()  # what is fused stays, the rest is given back
    assert_changed(pipe, original, Q, delta(PAIRS, Q))
    assert np.array_equal(weight(pipe, FC1), weight(original, FC1)) and pipe.unet.adapters is None


def test_an_adapter_can_be_deleted(pipe, original, folder):
    for name in "ab":
        pipe.load_lora_weights(folder / f"{name}.safetensors", adapter_name=name)
    pipe.set_adapters(["a", "b"])
    pipe.delete_adapters("a")
    assert_changed(pipe, original, Q, 2.0 * delta(PAIRS_B, Q))
    assert pipe.get_list_adapters() == {"unet": ["b"], "text_encoder": []}
    pipe.delete_adapters(["b"])
    assert_original(pipe, original)


def test_a_float64_copy_merges_in_float64(pipe, original, folder):
    pipe.load_lora_weights(folder / "a.safetensors", adapter_name="a")
    pipe.set_adapters("a", 0.7)
    truth = pipe.astype("float64")
    np.testing.assert_allclose(weight(truth, CONV), weight(original, CONV).astype("float64") + 0.7 * delta(PAIRS, CONV), rtol=1e-13)
    assert truth.get_active_adapters() == ["a"]
    truth.unload_lora_weights()
    assert np.array_equal(weight(truth, CONV), weight(original, CONV)) and pipe.get_active_adapters() == ["a"]


def test_the_picture_changes_and_comes_back(pipe, folder):
    def latents():
        return pipe("a cat", num_inference_steps=1, seed=1, output_type="latent").images

    plain = latents()
    pipe.load_lora_weights(folder / "a.safetensors")
    assert not np.array_equal(latents(), plain)
    pipe.unload_lora_weights()
    assert np.array_equal(latents(), plain)


def test_lora_and_learned_words_do_not_disturb_each_other(pipe, original, folder):
    pipe.load_textual_inversion({"<zz>": np.zeros(22, "float32")})
    pipe.load_lora_weights(folder / "a.safetensors")
    pipe.unload_textual_inversion()
    assert_changed(pipe, original, FC1, delta(PAIRS, FC1))
    pipe.load_textual_inversion({"<zz>": np.zeros(22, "float32")})
    pipe.unload_lora_weights()
    assert len(pipe.text_encoder.token_embedding) == len(original.text_encoder.token_embedding) + 1
    pipe.unload_textual_inversion()
    assert_original(pipe, original)


def test_the_report_says_what_each_weight_got(pipe, original, folder):
    for name in "ab":
        pipe.load_lora_weights(folder / f"{name}.safetensors", adapter_name=name)
    pipe.set_adapters(["a", "b"], [0.5, 0.0])
    rows = {(row.adapter, row.weight): row for row in pipe.lora_report()}
    assert len(rows) == len(PAIRS) + len(PAIRS_B)
    row = rows["a", f"unet.{Q[1]}.weight"]
    expected = 0.5 * np.linalg.norm(delta(PAIRS, Q)) / np.linalg.norm(weight(original, Q).astype("float64"))
    np.testing.assert_allclose(row.ratio, expected, rtol=1e-10)
    assert (row.rank, row.scale) == (2, 0.5) and rows["b", f"unet.{Q[1]}.weight"].ratio == 0.0
    lines = str(pipe.lora_report()).splitlines()
    assert len(lines) == 1 + len(rows) and "‖ΔW‖/‖W‖" in lines[0] and lines[-1].endswith(" b")


def test_a_file_that_does_not_fit_changes_nothing(pipe, original, folder):
    save_file({"unet.conv_in.lora_A.weight": np.zeros((1, 4, 3, 3), "float32")}, folder / "half.safetensors")
    with pytest.raises(ModelFileError, match="has no up"):
        pipe.load_lora_weights(folder / "half.safetensors")
    assert_original(pipe, original)
    assert pipe.get_list_adapters() == {}


WRONG = {
    "twice": (lambda p, f: p.load_lora_weights(f / "a.safetensors", adapter_name="a"), "there is an adapter 'a' already"),
    "unknown": (lambda p, f: p.set_adapters("c"), "no adapter 'c'\n.*loaded are: a"),
    "counts": (lambda p, f: p.set_adapters(["a"], [1.0, 2.0]), "2 weights for 1 adapters"),
    "nan": (lambda p, f: p.set_adapters("a", float("nan")), "weight of 'a' is nan"),
    "text": (lambda p, f: p.set_adapters("a", "1"), "weight of 'a' is '1'"),
    "true": (lambda p, f: p.set_adapters("a", True), "weight of 'a' is True"),
    "blocks": (lambda p, f: p.set_adapters("a", {"unet": {"down": 1.0}}), "weight of 'a' is {"),
    "part": (lambda p, f: p.set_adapters("a", {"vae": 1.0}), "names 'vae'"),
    "fuse": (lambda p, f: p.fuse_lora(adapter_names=["c"]), "no adapter 'c'"),
    "scale": (lambda p, f: p.fuse_lora(lora_scale=float("inf")), "lora_scale' is inf"),
    "delete": (lambda p, f: p.delete_adapters("c"), "no adapter 'c'"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_meant_is_refused(pipe, folder, name):
    call, message = WRONG[name]
    pipe.load_lora_weights(folder / "a.safetensors", adapter_name="a")
    before = weight(pipe, Q)
    with pytest.raises(UsageError, match=message):
        call(pipe, folder)
    assert weight(pipe, Q) is before


def test_weights_kept_as_float16_take_a_lora_and_come_back(folder):
    """Only what a LoRA touches is widened, and only as long as it is there."""
    pipe = StableDiffusionPipeline.from_pretrained("tiny", resident="float16")
    before = dict(pipe.unet.params.leaves())
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    save_file(peft({("unet", name): (np.ones((2, 192), "float32"), np.ones((192, 2), "float32"))}), folder / "half.safetensors")
    pipe.load_lora_weights(folder / "half.safetensors")
    during = dict(pipe.unet.params.leaves())
    assert [n for n in before if during[n] is not before[n]] == [f"{name}.weight"]
    assert np.allclose(during[f"{name}.weight"], before[f"{name}.weight"].read() + 2.0, atol=1e-5)
    pipe.unload_lora_weights()
    after = dict(pipe.unet.params.leaves())
    assert all(after[n] is before[n] for n in before)


def test_a_float16_weight_is_summed_in_float32_and_rounded_once():
    """Ten small changes of one weight: each alone would be lost in float16."""
    w = np.ones((3, 2), "float16")
    layer = LoraLayer(np.full((1, 2), 1e-2, "float32"), np.full((3, 1), 1e-2, "float32"), 1.0)
    merged = add_lora(w, [(layer, 1.0)] * 10)
    assert merged.dtype == np.float16 and (merged == np.float16(1.001)).all() and (w == 1).all()
    assert add_lora(w, []) is w
