"""Every module of tiny random models, live against torch in both dtypes: the same table as the golden tests, without exception.

Odd and even sizes, and configs that no golden file has: first blocks without attention, a list for every field that may be one,
kernels of other widths, the sine first.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from minisd import ops, trace  # noqa: E402
from tests.goldens import cast  # noqa: E402
from tests.layer_table import NOT_LAYERS, TABLE, compute  # noqa: E402
from tests.numerics import assert_close_f64, assert_faithful  # noqa: E402
from tests.reference.record import exact, record_run, tiny_reference, truth  # noqa: E402
from tests.tiny_models import CONFIGS, build, make_inputs  # noqa: E402

pytestmark = pytest.mark.reference

UNUSUAL = {
    "unet_lists": dict(
        in_channels=5,
        out_channels=3,
        block_out_channels=(10, 20, 30),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=(1, 2, 1),
        norm_num_groups=5,
        norm_eps=3e-5,
        cross_attention_dim=(14, 14, 14),
        attention_head_dim=(1, 4, 6),
        transformer_layers_per_block=(1, 1, 2),
        time_embedding_dim=26,
        flip_sin_to_cos=False,
        freq_shift=1,
        conv_in_kernel=5,
        conv_out_kernel=1,
    ),
    "vae_plain": dict(
        block_out_channels=(10, 20),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=3,
        norm_num_groups=5,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    ),
    "clip_eps": {**CONFIGS["clip_gelu"], "layer_norm_eps": 1e-3, "max_position_embeddings": 31},
}
RUNS = [
    *[(name, size) for name in ("unet_sd1", "unet_sd2", "unet_inpainting", "unet_lists") for size in ((9, 13), (16, 16), (24, 40))],
    *[(name, size) for name in ("vae", "vae_plain") for size in ((13, 18), (24, 40), (31, 9))],
    *[(name, size) for name in ("clip_quick_gelu", "clip_gelu") for size in ((1,), (13,), (77,))],
    ("clip_eps", (31,)),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=[pytest.param(run, id=f"{run[0]}-{'x'.join(map(str, run[1]))}") for run in RUNS])
def run(request):
    """A torch model that has run once, with its modules' calls, and ours with the same weights."""
    name, size = request.param
    config = {**CONFIGS, **UNUSUAL}[name]
    reference, shapes = tiny_reference(name, config)
    batch = 1 if size == (24, 40) else 2
    inputs = make_inputs(name, size, batch, config)
    return name, reference, record_run(name, reference, inputs), build(name, config, shapes), inputs


def test_every_layer(run):
    """Each module is fed the reference's own inputs, so that a failure is the failing layer's own."""
    name, reference, calls, ours, _ = run
    in_float64, failures = exact(reference), []
    models = {"float32": ours, "float64": ours.astype("float64")}
    for path, call in calls.items():
        true = truth(in_float64, call)
        for dtype, model in models.items():
            try:
                with ops.using(profile="exact"):  # fast rungs have bounds of their own
                    outputs = compute(model, call.kind, path, cast(call.inputs, dtype))
                assert len(outputs) == len(true), f"{len(outputs)} outputs, the reference has {len(true)}"
                for y, exactly, plain in zip(outputs, true, call.plain):
                    if dtype == "float32":
                        assert_faithful(y, exactly, plain, name=f"{name}: {call.kind} {path}")
                    else:
                        assert_close_f64(y, exactly, name=f"{name}: {call.kind} {path}")
            except Exception as failure:  # one bad layer must not hide the others
                failures.append(f"{path}: {failure}")
    assert not failures, f"{len(failures)} of {len(calls)} layers differ:\n" + "\n".join(failures)


def test_the_table_knows_every_module_and_a_trace_names_every_layer(run):
    name, reference, calls, ours, inputs = run
    modules = {path: type(module).__name__ for path, module in reference.named_modules() if path}
    unknown = {kind for kind in modules.values()} - set(TABLE) - NOT_LAYERS
    assert not unknown, f"no layer of ours answers for {unknown}"
    assert {path for path, kind in modules.items() if kind not in NOT_LAYERS} == {path for path in calls if path in modules}

    with trace() as seen:
        if name.startswith("vae"):
            ours.encode(inputs["x"]), ours.decode(inputs["z"])
        else:
            ours(**inputs)
    prefix = "text_encoder.text_model." if name.startswith("clip") else f"{ours.component}."
    ours_by_path = {path.removeprefix(prefix): y for path, y in seen.items() if path != ours.component}
    theirs = {path: calls[path].plain[0] for path, kind in modules.items() if kind not in NOT_LAYERS and kind != "Timesteps"}
    assert ours_by_path.keys() == theirs.keys()
    for path, y in ours_by_path.items():  # errors have accumulated here: only the order of their size is asked for
        expected = theirs[path]
        if path.endswith((".group_norm", ".position_embedding")):  # [B, C, S] and [1, T, C] there; ours are [B, C, H, W] and [T, C]
            expected = expected.reshape(y.shape)
        assert y.shape == expected.shape, path
        assert np.linalg.norm(y - expected) <= 1e-4 * np.linalg.norm(expected), path
