"""The first wrong layer is named, in both modes; a right model raises no alarm."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minisd import AutoencoderKL, UNet2DConditionModel, diff, ops, trace
from minisd.checkpoint.names import from_ldm
from minisd.compare import official_layers, own_budget
from minisd.errors import MinisdError, UsageError
from minisd.layers import attention, basic, timestep
from minisd.models import unet as unet_module
from minisd.tracefile import TraceFile
from minisd.tracing import layer

from .checkpoint.test_names import LDM
from .tiny_models import CONFIGS, build, make_inputs

REFERENCE_RUNGS = dict.fromkeys(("attention", "conv2d", "geglu", "group_norm", "layer_norm", "linear", "silu"), "reference")
TIMESTEPS = (501.25, 7.0)


def run(model, given: dict):
    """A UNet at two timesteps, a VAE both ways, or CLIP."""

    def cast(x):
        return x.astype(model.dtype)

    if isinstance(model, UNet2DConditionModel):
        for t in TIMESTEPS:
            model(cast(given["sample"]), t, cast(given["encoder_hidden_states"]))
    elif isinstance(model, AutoencoderKL):
        model.encode(cast(given["x"]))
        model.decode(cast(given["z"]))
    else:
        model(given["input_ids"])


def record(model, given: dict, path, **options):
    with trace(to=path, **options):
        run(model, given)
    return path


def record_reference(model, given: dict, path):
    """Another right computation: the textbook rungs, with other rounding errors. It takes the place of torch."""
    with ops.using(**REFERENCE_RUNGS):
        return record(model, given, path, inputs=True)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """The model with the reference's trace and the truth of its run."""
    folder = tmp_path_factory.mktemp("inpainting")
    model, inputs = build("unet_inpainting", CONFIGS["unet_inpainting"]), make_inputs("unet_inpainting", batch=1)
    ref = record_reference(model, inputs, folder / "ref.safetensors")
    truth = record(model.astype("float64"), inputs, folder / "truth.safetensors")
    return model, inputs, ref, truth


# ----- a right model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(CONFIGS))
def test_every_family_is_clean_in_every_mode(name, tmp_path):
    model, inputs = build(name, CONFIGS[name]), make_inputs(name, batch=1)
    ref = record_reference(model, inputs, tmp_path / "ref.safetensors")
    ours = record(model, inputs, tmp_path / "ours.safetensors", inputs=True)
    truth = record(model.astype("float64"), inputs, tmp_path / "truth.safetensors")
    for result in (diff(ours, ref), diff(ours, ref, truth=truth), diff(model, ref)):
        assert result.same and result.first_divergence() is None, result.headline()
        assert len(result.rows) == len(diff(ours, ours).rows) and not result.only_ours and not result.only_ref
    assert all(row.l2 == row.max_abs == row.ulp == 0.0 and row.cosine == pytest.approx(1.0) for row in diff(ours, ours).rows)


SEEDS = 200
SMALL = dict(
    CONFIGS["unet_inpainting"], in_channels=4, block_out_channels=(8,), layers_per_block=1, cross_attention_dim=10,
    down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
)  # fmt: skip


def random_model(seed: int):
    """A small UNet with weights and inputs of a seed: 1/√fan_in for matrices, 1 ± 0.2 for norms."""
    random = np.random.RandomState(seed)
    model = build("unet_inpainting", SMALL)

    def draw(w):
        scale = 1.0 / math.sqrt(w[0].size) if w.ndim > 1 else 0.2
        return (random.standard_normal(w.shape) * scale + (w.ndim == 1 and abs(w.mean() - 1.0) < 0.3)).astype("float32")

    inputs = {"sample": random.standard_normal((1, 4, 6, 5)), "encoder_hidden_states": random.standard_normal((1, 4, 10))}
    return UNet2DConditionModel(model.config, model.params.map(draw)), inputs, random.randint(1000)


def test_200_seeds_of_a_right_model_raise_no_alarm(tmp_path):
    """Free running for every seed; teacher forced, which costs three times as much, for every tenth."""
    nearest = 0.0
    for seed in range(SEEDS):
        model, inputs, t = random_model(seed)
        x, context = (inputs[name].astype("float32") for name in ("sample", "encoder_hidden_states"))
        with ops.using(**REFERENCE_RUNGS), trace(to=tmp_path / "ref.safetensors", inputs=seed % 10 == 0):
            model(x, t, context)
        with trace(to=tmp_path / "ours.safetensors"):
            model(x, t, context)
        results = [diff(tmp_path / "ours.safetensors", tmp_path / "ref.safetensors")]
        results += [diff(model, tmp_path / "ref.safetensors")] if seed % 10 == 0 else []
        for result in results:
            assert result.same, f"seed {seed}: {result.headline()}"
            nearest = max(nearest, *(row.l2 / row.allowed for row in result.rows))
    assert 0.1 < nearest, "budgets ten times too large would see nothing"


# ----- planted mistakes ----------------------------------------------------------------------------------------------------

NORM = "unet.up_blocks.1.resnets.1.norm2"
BLOCK = "unet.up_blocks.1.attentions.1.transformer_blocks.0"


def only_at(path: str, right, wrong):
    """`wrong` for the one layer of this path, `right` for all others, as a layer of the same name."""

    def choose(p, *args, **kwargs):
        return (wrong if p.path == path else right.__wrapped__)(p, *args, **kwargs)

    choose.__name__ = right.__name__
    choose.__signature__ = right.__signature__
    return layer(choose)


def wrong_eps(monkeypatch):
    def wrong(p, x, *, groups, eps, act=None):
        return ops.group_norm(x, p.weight, p.bias, groups=groups, eps=1e-6, act=act)

    monkeypatch.setattr(basic, "_group_norm", only_at(NORM, basic._group_norm, wrong))
    return f"{NORM}", 0


def tanh_gelu(monkeypatch):
    def wrong(p, x):
        h, g = np.split(basic.linear(p.proj, x), 2, axis=-1)
        return h * (0.5 * g * (1.0 + np.tanh(0.7978845608 * (g + 0.044715 * g**3))))

    monkeypatch.setattr(attention, "geglu", only_at(f"{BLOCK}.ff.net.0", attention.geglu, wrong))
    return f"{BLOCK}.ff.net.0", 0


def swapped_heads(monkeypatch):
    def wrong(p, x, context=None, *, heads, skip=None):
        context = x if context is None else context
        q, k, v = (basic.linear(w, y) for w, y in ((p.to_q, x), (p.to_k, context), (p.to_v, context)))
        y = attention.multi_head(q, k, v, heads=heads)
        return basic.linear(p.to_out[0], np.roll(y, y.shape[-1] // heads, axis=-1), skip=skip)

    layer_itself = attention.attention.__wrapped__  # without the sum that it may end in
    monkeypatch.setattr(attention, "attention", basic.then_adds(only_at(f"{BLOCK}.attn2", layer_itself, wrong)))
    return f"{BLOCK}.attn2", 0


def stale_time_embedding(monkeypatch):
    right, cache = timestep.time_embedding, {}

    def wrong(p, t_sin):
        if t_sin.dtype not in cache:
            cache[t_sin.dtype] = right.__wrapped__(p, t_sin)
        return cache[t_sin.dtype]

    stale = only_at("unet.time_embedding", right, wrong)
    monkeypatch.setattr(timestep, "time_embedding", stale)
    monkeypatch.setattr(unet_module, "time_embedding", stale)
    return "unet.time_embedding", 1


BUGS = (wrong_eps, tanh_gelu, swapped_heads, stale_time_embedding)


@pytest.mark.parametrize("plant", BUGS)
def test_free_running_names_the_wrong_layer_first(plant, case, monkeypatch, tmp_path):
    model, inputs, ref, truth = case
    name, call = plant(monkeypatch)
    ours = record(model, inputs, tmp_path / "ours.safetensors", inputs=True)
    for result in (diff(ours, ref), diff(ours, ref, truth=truth)):
        first = result.first_divergence()
        assert not result.same and (first.name, first.call) == (name, call), result.headline()
        assert result.headline().startswith(f"first divergence, free running: {first.label}")
        after = [row for row in result.rows if row.wrong]
        assert all(row.name in name for row in after if not row.call), "what comes after it inherits, but for the blocks that hold it"


@pytest.mark.parametrize("plant", BUGS)
def test_teacher_forcing_names_the_wrong_layer_first(plant, case, monkeypatch):
    model, _, ref, _ = case
    name, call = plant(monkeypatch)
    result = diff(model, ref)
    first = result.first_divergence()
    assert not result.same and (first.name, first.call) == (name, call), result.headline()
    wrong = {row.name for row in result.rows if row.wrong}
    assert name in wrong and all(f"{name}.".startswith(f"{other}.") or other == name for other in wrong), "only the blocks that hold it are off too"


def test_without_inputs_the_first_visible_layer_is_named(case, monkeypatch, tmp_path):
    """The heads are joined inside attn2; the first output that shows it is to_out's."""
    model, inputs, ref, _ = case
    swapped_heads(monkeypatch)
    ours = record(model, inputs, tmp_path / "ours.safetensors")
    assert diff(ours, ref).first_divergence().name == f"{BLOCK}.attn2.to_out.0"


def test_a_wrong_weight_is_found(case):
    model, _, ref, _ = case
    changed = UNet2DConditionModel(model.config, model.params.map(lambda w: w * np.float32(1.0 + 3e-5) if w is model.params.conv_out.weight else w))
    assert diff(changed, ref).first_divergence().name == "unet.conv_out"


# ----- what a row says -----------------------------------------------------------------------------------------------------


def save(path, **arrays):
    from safetensors.numpy import save_file

    save_file({name.replace("__", "."): np.ascontiguousarray(x) for name, x in arrays.items()}, path)
    return path


def two(tmp_path, a, b):
    """The diff of two arrays under one name."""
    return diff(save(tmp_path / "a.safetensors", unet__conv_in=a), save(tmp_path / "b.safetensors", unet__conv_in=b))


def test_a_row_measures(tmp_path):
    b = np.array([[1.0, 2.0], [3.0, 4.0]], dtype="float32")
    a = b.copy()
    a[1, 0] = 3.5
    (row,) = two(tmp_path, a, b).rows
    assert (row.name, row.shape, row.verdict) == ("unet.conv_in", (2, 2), "DIFFERS")
    assert row.l2 == pytest.approx(0.5 / math.sqrt(30)) and row.max_abs == 0.5
    assert (row.worst, row.ours, row.ref) == ((1, 0), 3.5, 3.0)
    assert row.cosine == pytest.approx((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
    assert row.ulp == 0.5 / float(np.spacing(np.float32(3.0)))


def test_one_wrong_element_of_many_is_seen(tmp_path):
    b = np.random.RandomState(0).standard_normal(1_000_000).astype("float32")
    a = b.copy()
    a[123_456] += np.float32(1e-3)
    row = two(tmp_path, a, b).first_divergence()
    assert row.l2 < row.allowed and row.worst == (123_456,), "too small for the L2 norm, not for the largest error"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_never_within_a_budget(tmp_path, bad):
    b = np.ones(4, dtype="float32")
    a = b.copy()
    a[2] = bad
    for x, y in ((a, b), (b, a), (a, a)):
        result = two(tmp_path, x, y)
        assert not result.same and result.first_divergence().verdict == "NAN"
    assert "1 NaN or Inf in ours, 0 in the reference" in two(tmp_path, a, b).headline()
    assert json.loads(json.dumps(two(tmp_path, a, b).to_dict(), allow_nan=False))["rows"][0]["l2"] is None


def test_shapes(tmp_path):
    x = np.random.RandomState(0).standard_normal((1, 4, 6)).astype("float32")
    assert two(tmp_path, x.reshape(1, 4, 2, 3), x).same, "torch flattens images in the VAE's attention"
    assert two(tmp_path, x[0], x).same
    assert two(tmp_path, x.reshape(1, 6, 4), x).first_divergence().verdict == "SHAPE"
    assert two(tmp_path, x[:, :3], x).first_divergence().note == "ours has the shape [1, 3, 6], the reference [1, 4, 6]"


def test_rtol_and_atol_take_the_place_of_the_budgets(tmp_path):
    b = np.ones(100, dtype="float32")
    a, b = save(tmp_path / "a.safetensors", x=b * np.float32(1.001)), save(tmp_path / "b.safetensors", x=b)
    assert not diff(a, b).same and not diff(a, b, rtol=5e-4).same
    assert diff(a, b, rtol=2e-3).same


def test_names_of_other_versions_meet(tmp_path):
    def official_layer(name):
        return official_layers({name})[name]

    assert official_layer("text_encoder.encoder.layers.0.mlp") == "text_encoder.text_model.encoder.layers.0.mlp"
    assert official_layer("text_encoder.embeddings") == "text_encoder.text_model.embeddings"
    assert official_layer("text_encoder.text_model.encoder") == "text_encoder.text_model.encoder"
    assert official_layer("vae.decoder.mid_block.attentions.0.query") == "vae.decoder.mid_block.attentions.0.to_q"
    assert official_layer("vae.decoder.mid_block.attentions.0.proj_attn") == "vae.decoder.mid_block.attentions.0.to_out.0"
    assert official_layer("unet.down_blocks.0.attentions.0.query") == "unet.down_blocks.0.attentions.0.query", "a rule of the VAE only"
    x = np.ones(3, dtype="float32")
    a = save(tmp_path / "a.safetensors", text_encoder__text_model__final_layer_norm=x, only__mine=x)
    b = save(tmp_path / "b.safetensors", text_encoder__final_layer_norm=x, only__theirs=x)
    result = diff(a, b)
    assert [row.name for row in result.rows] == ["text_encoder.text_model.final_layer_norm"]
    assert (result.only_ours, result.only_ref) == (["only.mine"], ["only.theirs"])


FOUR_LEVELS = {
    "unet_sd1": dict(block_out_channels=(6, 6, 12, 12), norm_num_groups=3, down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
                     up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3),
    "vae": dict(block_out_channels=(6, 6, 12, 12), norm_num_groups=3, down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4),
}  # fmt: skip


@pytest.mark.parametrize("name, layer", [("unet_sd1", "unet.up_blocks.0.upsamplers.0.conv"), ("vae", "vae.decoder.mid_block.attentions.0.to_q")])
def test_names_of_ldm_meet_ours(name, layer, tmp_path):
    """A trace of the original code, whose VAE attends with 1×1 convolutions of images, is compared, and a planted error is named."""
    model = build(name, {**CONFIGS[name], **FOUR_LEVELS[name]})
    inputs = make_inputs(name, size=(8, 8) if name == "unet_sd1" else (16, 24), batch=1)
    inputs = {**inputs, "z": inputs["z"][..., :2, :3]} if "z" in inputs else inputs
    ours = TraceFile(record(model, inputs, tmp_path / "ours.safetensors"))
    ldm = {targets[0].removesuffix(".weight"): key.removesuffix(".weight") for key, targets in from_ldm(LDM["ldm_sd1"]).items() if targets}
    theirs = {ldm[row["key"]]: ours[row["key"]] for row in ours.rows if row["key"] in ldm}
    modules = {tensor.rpartition(".")[0] for tensor, _ in model.params.items()}
    assert len(theirs) == len(modules), "every module with weights"
    for key, y in theirs.items():
        if ".attn_1." in key and y.ndim == 3:
            H, W = theirs[key.partition("attn_1")[0] + "block_1.conv1"].shape[2:]
            theirs[key] = np.ascontiguousarray(y.swapaxes(1, 2)).reshape(1, -1, H, W)
    result = diff(ours.path, save(tmp_path / "ldm.safetensors", **theirs))
    assert result.same and len(result.rows) == len(theirs) and not result.only_ref, str(result)
    theirs[ldm[layer]] = theirs[ldm[layer]] * np.float32(1.01)
    assert diff(ours.path, save(tmp_path / "wrong.safetensors", **theirs)).first_divergence().name == layer


def test_what_cannot_be_compared_is_refused(case, tmp_path):
    model, inputs, ref, truth = case
    other = save(tmp_path / "other.safetensors", something=np.ones(2, dtype="float32"))
    with pytest.raises(UsageError, match="no layer in common"):
        diff(other, ref)
    with pytest.raises(UsageError, match="no inputs"):
        diff(model, truth)
    with pytest.raises(UsageError, match="truth beside a model"):
        diff(model, ref, truth=truth)
    changed = record(model.astype("float64"), {**inputs, "sample": inputs["sample"] + 1}, tmp_path / "changed.safetensors")
    with pytest.raises(UsageError, match="not the truth of this run"):
        diff(ref, ref, truth=changed)
    with pytest.raises(MinisdError):
        diff(tmp_path / "nothing.safetensors", ref)


def test_budgets_are_numbers():
    u = 2.0**-24
    assert own_budget("Linear", 320, "float32") == pytest.approx(u * (8 + math.sqrt(320) / 2))
    assert own_budget("GroupNorm", 0, "float32") == 16 * u and own_budget("GroupNorm", 0, "float64") == 16 * 2.0**-53
    assert own_budget("Linear", 11520, "float32") < 5e-6, "the project's limit for a layer against diffusers"
    assert own_budget("ResnetBlock2D", 0, "float32") < 5e-6


def test_the_table_in_the_docs_is_current():
    tool = Path(__file__).parents[1] / "tools" / "make_numerics_table.py"
    done = subprocess.run([sys.executable, str(tool), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_text_and_json(case, monkeypatch, tmp_path):
    model, inputs, ref, truth = case
    assert "no divergence" in str(diff(ref, ref)).splitlines()[0]
    wrong_eps(monkeypatch)
    result = diff(record(model, inputs, tmp_path / "ours.safetensors", inputs=True), ref, truth=truth)
    text = str(result)
    assert text.splitlines()[0].startswith(f"first divergence, free running: {NORM} (group_norm): relative L2 ")
    assert "closeness r = err(ours) / err(ref): median" in text
    table = result.table().splitlines()
    assert table[0].split()[:4] == ["verdict", "name", "step", "shape"] and len(table) == len(result.rows) + 1
    found = json.loads(json.dumps(result.to_dict()))
    assert found["same"] is False and found["first_divergence"]["name"] == NORM and len(found["rows"]) == len(result.rows)
