"""From stored tensors to Params: compared with the config before anything is read, exact after any cast, in the kernels' layout."""

import tracemalloc

import numpy as np
import pytest

from minisd.checkpoint import params_from_state_dict
from minisd.checkpoint.safetensors_file import StoredTensor, read_header
from minisd.checkpoint.weights import assemble, count_nonfinite, lay_out
from minisd.errors import ModelFileError, NumericError, UsageError
from tests.checkpoint.synthetic import (
    config,
    encode,
    make_weights,
    old_vae_names,
    position_ids,
    safetensors_bytes,
    without_prefix,
)

COMPONENTS = ("unet", "vae", "text_encoder")


def load(tmp_path, component: str, data: bytes, **options):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    changes = options.pop("changes", {})
    return assemble(
        list(read_header(path).values()), component, config(component, **changes), source=f"{component}/x", **options
    )


# ----- values and layout ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("stored", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("component", COMPONENTS)
def test_values_are_those_of_the_file_in_every_dtype(tmp_path, component, stored, dtype):
    weights = make_weights(component)
    params, report = load(tmp_path, component, safetensors_bytes(weights, stored, shuffle=True, residue=3), dtype=dtype)
    loaded = dict(params.items())
    assert sorted(loaded) == sorted(weights) and params.path == component
    for name, w in weights.items():
        data = encode(w, stored)
        if stored == "BF16":
            exact = (np.frombuffer(data, dtype="<u2").astype("uint32") << 16).view("float32")
        else:
            exact = np.frombuffer(data, dtype={"F64": "<f8", "F32": "<f4", "F16": "<f2"}[stored])
        assert loaded[name].dtype == dtype and np.array_equal(loaded[name], exact.reshape(w.shape).astype(dtype)), name
    label = f"({stored} → {dtype})"
    assert report.source_dtypes == {stored: len(weights)} and report.headline.endswith(label)
    assert report.cast == (
        {} if (stored, dtype) in (("F32", "float32"), ("F64", "float64")) else {stored: len(weights)}
    )
    assert (
        report.tensors == len(weights)
        and report.bytes == sum(w.size for w in weights.values()) * np.dtype(dtype).itemsize
    )


@pytest.mark.parametrize("component", COMPONENTS)
def test_the_layout_is_the_one_the_kernels_want(tmp_path, component):
    from_file, _ = load(tmp_path, component, safetensors_bytes(make_weights(component), "F16", residue=5))
    from_memory, _ = params_from_state_dict(make_weights(component), component, config(component))
    for params in (from_file, from_memory):
        for name, w in params.items():
            assert w.flags.aligned and w.flags.writeable, name
            memory = w.transpose(2, 3, 1, 0) if w.ndim == 4 else w  # [KH, KW, I, O]
            assert memory.flags.c_contiguous, name
    if component != "text_encoder":
        assert any(w.ndim == 4 and w.shape[2] == 3 for _, w in params.items())


def test_parameters_keep_the_order_of_the_architecture(tmp_path):
    params, _ = load(tmp_path, "unet", safetensors_bytes(make_weights("unet"), shuffle=True))
    assert list(dict(params.items())) == list(make_weights("unet"))
    assert params.conv_in.path == "unet.conv_in" and params.down_blocks[0].resnets[0].conv1.weight.shape == (8, 8, 3, 3)


def test_the_file_is_read_from_front_to_back(tmp_path, monkeypatch):
    offsets, read = [], StoredTensor.read
    monkeypatch.setattr(StoredTensor, "read", lambda tensor: offsets.append(tensor.offset) or read(tensor))
    weights = make_weights("unet")
    load(tmp_path, "unet", safetensors_bytes(weights, shuffle=True))
    assert len(offsets) == len(weights) and offsets == sorted(offsets)


def test_an_array_in_memory_is_copied():
    weights = make_weights("vae")
    params, report = params_from_state_dict(weights, "vae", config("vae"))
    for w in weights.values():
        w[...] = np.nan
    assert all(np.isfinite(w).all() for _, w in params.items())
    assert report.files == [] and "from memory" in str(report)


def test_lay_out_casts_and_permutes_exactly():
    x = np.random.RandomState(0).standard_normal((5, 3, 2, 4)).astype("float16")
    y = lay_out(x, "float32")
    assert y.shape == x.shape and y.dtype == np.float32 and np.array_equal(x, y)
    assert y.strides == (4, 5 * 4, 4 * 3 * 5 * 4, 3 * 5 * 4)  # O runs fastest, then I, KW, KH


def test_other_dtypes_to_compute_in_are_refused():
    for dtype in ("float16", "bfloat16", "int8", np.float32):
        with pytest.raises(UsageError, match="cannot be loaded"):
            params_from_state_dict(make_weights("vae"), "vae", config("vae"), dtype)


@pytest.mark.parametrize(
    ("stored", "dtype"),
    [("F16", "float32"), ("F32", "float32"), ("BF16", "float32"), ("F32", "float64"), ("F64", "float32")],
)
def test_beside_the_weights_there_is_one_tensor_in_memory(tmp_path, stored, dtype):
    """The largest tensor is read last, when all others are there already. The file itself is never held."""
    changes = {"block_out_channels": [96, 96], "cross_attention_dim": 768, "attention_head_dim": 4}
    weights = dict(sorted(make_weights("unet", **changes).items(), key=lambda item: item[1].size))
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_bytes(weights, stored, residue=2))
    tensors = list(read_header(path).values())
    tracemalloc.start()
    params, report = assemble(tensors, "unet", config("unet", **changes), dtype=dtype)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    largest = max(np.dtype(dtype).itemsize, {"F64": 8, "F32": 4}.get(stored, 2)) * max(w.size for w in weights.values())
    assert report.bytes > 10 * largest
    assert report.bytes < peak <= report.bytes + 1.25 * largest + 150_000, (peak - report.bytes) / largest


# ----- quirks --------------------------------------------------------------------------------------------------------------


def test_old_vae_names_and_one_by_one_convolutions(tmp_path):
    weights = make_weights("vae")
    convolutions = {
        name: x[:, :, None, None] if ".attentions." in name and x.ndim == 2 else x for name, x in weights.items()
    }
    for tensors, renamed in ((old_vae_names(weights), 16), (old_vae_names(convolutions), 16), (convolutions, 0)):
        params, report = load(tmp_path, "vae", safetensors_bytes(tensors))
        assert all(
            np.array_equal(w, weights[name]) and w.flags.c_contiguous | (w.ndim == 4) for name, w in params.items()
        )
        assert sum(map(len, report.renamed.values())) == renamed
    assert report.unexpected == report.missing == []


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("stored", ["F32", "F16"])
def test_text_encoder_with_and_without_prefix(tmp_path, stored, prefix):
    weights = make_weights("text_encoder")
    at = "text_model." if prefix else ""
    tensors = {**(weights if prefix else without_prefix(weights)), f"{at}embeddings.position_ids": position_ids()}
    params, report = load(tmp_path, "text_encoder", safetensors_bytes(tensors, stored, shuffle=True, residue=3))
    assert params.text_model.final_layer_norm.path == "text_encoder.text_model.final_layer_norm"
    assert sorted(name for name, _ in params.items()) == sorted(weights)
    assert report.dropped == {"position_ids, a constant": [f"{at}embeddings.position_ids"]} and not report.unexpected
    assert {reason: len(names) for reason, names in report.renamed.items()} == (
        {} if prefix else {"text_model. prefix": len(weights)}
    )


def test_training_averages_are_left_out_in_silence(tmp_path, caplog):
    extra = {"model_ema.decay": ("F32", 0.9999), "model_ema.num_updates": ("I32", 3)}
    _, report = load(tmp_path, "unet", safetensors_bytes({**make_weights("unet"), **extra}))
    assert report.dropped == {"training averages": list(extra)} and not report.unexpected and not caplog.records


def test_unexpected_tensors_are_reported_and_left_out(tmp_path, caplog):
    extra = {"text_projection.weight": np.ones((2, 2)), "\x1b[31mred": np.ones(1), "x" * 100_000: ("U8", [1])}
    params, report = load(tmp_path, "text_encoder", safetensors_bytes({**make_weights("text_encoder"), **extra}))
    assert report.unexpected == list(extra) and "text_projection" not in params
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    message = caplog.text
    assert (
        "3 unexpected tensors are left out: text_projection.weight, \\x1b[31mred, xxx" in message
        and len(message) < 1000
    )
    assert "unexpected, left out: text_projection.weight" in str(report)


# ----- refusals ------------------------------------------------------------------------------------------------------------


def refused(tmp_path, component, tensors, stored="F32", **options) -> ModelFileError:
    with pytest.raises(ModelFileError) as caught:
        load(tmp_path, component, safetensors_bytes(tensors, stored), **options)
    return caught.value


def test_a_missing_tensor_is_named_with_its_likely_misspelling(tmp_path):
    weights = make_weights("unet")
    weights["conv_in.weigth"] = weights.pop("conv_in.weight")
    error = refused(tmp_path, "unet", weights)
    assert error.what == f"unet/x: 1 of {len(weights)} tensors are missing: conv_in.weight"
    assert (
        f"the file holds {len(weights)} tensors; conv_in.weigth may be conv_in.weight" == error.why
        and "fetch" in error.fix
    )


def test_of_many_missing_tensors_five_are_named(tmp_path):
    weights = make_weights("unet")
    names = [name for name in weights if name.startswith("mid_block.resnets")]
    error = refused(tmp_path, "unet", {name: w for name, w in weights.items() if name not in names})
    assert (
        all(name in error.what for name in names[:5])
        and names[5] not in error.what
        and f"and {len(names) - 5} more" in error.what
    )


@pytest.mark.parametrize("component", COMPONENTS)
def test_no_single_tensor_may_be_missing(tmp_path, component):
    weights = make_weights(component)
    for name in list(weights)[:: max(1, len(weights) // 25)]:
        with pytest.raises(ModelFileError, match="1 of .* tensors are missing"):
            params_from_state_dict({key: w for key, w in weights.items() if key != name}, component, config(component))


def test_a_wrong_shape_names_both_shapes_and_the_field(tmp_path):
    error = refused(tmp_path, "unet", make_weights("unet", in_channels=9))
    assert error.what == "unet/x: conv_in.weight is [8, 9, 3, 3], config.json describes [8, 4, 3, 3]"
    assert error.why == "config.json says in_channels = 4, the weights say 9" and "config.json" in error.fix


def test_a_wrong_shape_that_no_field_explains(tmp_path):
    weights = {**make_weights("vae"), "encoder.conv_norm_out.weight": np.ones(5)}
    error = refused(tmp_path, "vae", weights)
    assert (
        "encoder.conv_norm_out.weight is [5], config.json describes [6]" in error.what
        and "no field" in error.why
        and "fetch" in error.fix
    )


@pytest.mark.parametrize(
    ("asked", "given", "kind"),
    [("unet", "vae", "a VAE"), ("vae", "unet", "a UNet"), ("unet", "text_encoder", "a text encoder")],
)
def test_the_weights_of_another_component(tmp_path, asked, given, kind):
    error = refused(tmp_path, asked, make_weights(given))
    assert error.what == f"{asked}/x holds no {asked}" and kind in error.why


def test_other_kinds_of_files(tmp_path):
    ldm = {
        "model.diffusion_model.input_blocks.0.0.weight": np.ones(1),
        "first_stage_model.decoder.conv_in.weight": np.ones(1),
    }
    assert "LDM" in refused(tmp_path, "unet", ldm).why
    assert "a LoRA" in refused(tmp_path, "unet", {"lora_unet_mid_block_attentions_0_proj_in.alpha": np.ones(1)}).why
    assert "its first name is emb_params" in refused(tmp_path, "text_encoder", {"emb_params": np.ones((2, 10))}).why


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "I8", "U8", "I32", "I64"])
def test_quantised_weights_are_refused_by_name_before_any_is_read(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr("minisd.checkpoint.weights.read_weight", None)
    weights = make_weights("unet")
    tensors = {
        **weights,
        "mid_block.resnets.0.conv1.weight": (dtype, np.zeros(weights["mid_block.resnets.0.conv1.weight"].shape)),
    }
    error = refused(tmp_path, "unet", tensors)
    assert (
        error.what == f"unet/x: mid_block.resnets.0.conv1.weight is stored as {dtype}, which is not supported"
        and "F16" in error.fix
    )


def test_integers_in_memory_are_refused_too():
    weights = make_weights("vae")
    weights["decoder.conv_in.weight"] = weights["decoder.conv_in.weight"].astype("int64")
    with pytest.raises(ModelFileError, match="decoder.conv_in.weight is stored as int64"):
        params_from_state_dict(weights, "vae", config("vae"))


def test_two_names_for_one_tensor(tmp_path):
    weights = make_weights("vae")
    weights["encoder.mid_block.attentions.0.query.weight"] = weights["encoder.mid_block.attentions.0.to_q.weight"]
    error = refused(tmp_path, "vae", weights)
    assert "two tensors for encoder.mid_block.attentions.0.to_q.weight" in error.what
    assert (
        "attentions.0.to_q.weight in x.safetensors and" in error.why
        and "attentions.0.query.weight in x.safetensors both" in error.why
    )


# ----- NaN and Inf ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, stored, value):
    weights = make_weights("unet")
    w = weights["mid_block.resnets.0.conv1.weight"]
    w[1, 2, 0, 1], w[3, 0, 2, 2] = value, np.nan
    w = w.copy()
    if stored == "BF16":  # rounding could carry a NaN over
        w = (w.view("uint32") & 0xFFFF0000).view("float32")
        weights["mid_block.resnets.0.conv1.weight"] = w
    data = safetensors_bytes(weights, stored)
    with pytest.raises(NumericError) as caught:
        load(tmp_path, "unet", data)
    error = caught.value
    assert error.what == "unet/x: mid_block.resnets.0.conv1.weight holds NaN or Inf: 2 of 1,296 values"
    assert error.layer == "unet.mid_block.resnets.0.conv1" and error.exit_code == 5 and "allow_nonfinite" in error.fix

    params, report = load(tmp_path, "unet", data, allow_nonfinite=True)
    assert report.nonfinite == {
        "mid_block.resnets.0.conv1.weight": 2
    } and "NaN or Inf in: mid_block.resnets.0.conv1.weight (2)" in str(report)
    assert np.count_nonzero(~np.isfinite(params.mid_block.resnets[0].conv1.weight)) == 2


def test_a_float64_beyond_float32_is_refused_and_no_warning(tmp_path):
    weights = {**make_weights("unet"), "conv_in.bias": np.full(8, 1e300)}
    with pytest.raises(NumericError, match="conv_in.bias holds NaN or Inf: 8 of 8"):
        load(tmp_path, "unet", safetensors_bytes(weights, "F64"))
    params, _ = load(tmp_path, "unet", safetensors_bytes(weights, "F64"), dtype="float64")
    assert params.conv_in.bias[0] == 1e300


def test_every_float16_is_told_apart():
    bits = np.arange(1 << 16, dtype="uint16").view("float16")
    assert count_nonfinite(bits) == 2 * 1024 == np.count_nonzero(~np.isfinite(bits))
    assert [count_nonfinite(bits[i : i + 1]) for i in (0x7BFF, 0x7C00, 0x7C01, 0xFBFF, 0xFC00, 0x0001)] == [
        0,
        1,
        1,
        0,
        1,
        0,
    ]
