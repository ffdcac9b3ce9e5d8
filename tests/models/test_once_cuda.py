"""A step on the GPU as one CUDA graph: a toy UNet on the stand-in that records, by the GPU's own kernels in the simulator."""

import logging

import numpy as np
import pytest

from minisd import StableDiffusionPipeline, ops, trace
from minisd.config import UNetConfig
from minisd.models import Once, UNet2DConditionModel
from minisd.params import Params
from tests.cudasim.recorder import State, recorder
from tests.cudasim.simulator import needs_simulator
from tests.models.test_models_cuda import draw, model
from tests.numerics import relative_l2
from tests.tiny_folder import write_tiny_sd2

pytestmark = needs_simulator
CONFIG = UNetConfig(
    block_out_channels=(40,), down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), cross_attention_dim=24,
    attention_head_dim=(1,), norm_num_groups=4, layers_per_block=1,
)  # fmt: skip


@pytest.fixture
def gpu():
    with recorder() as gpu:
        yield gpu


@pytest.fixture
def unet(gpu):
    unet = model(UNet2DConditionModel, CONFIG, "float16")
    unet.params = uploaded(unet.params, gpu)
    return unet


def uploaded(params, gpu) -> Params:
    """On the GPU, convolutions channels-last as before."""
    return params.map(lambda w: gpu.put(np.ascontiguousarray(w.transpose(2, 3, 1, 0))).transpose(3, 2, 0, 1) if w.ndim == 4 else gpu.put(w))


def step(gpu, t=17.0, seed=0, context=None):
    """An image, a timestep, and the two prompts of guidance."""
    image = np.random.RandomState(seed).standard_normal((1, 4, 3, 4)).astype("float16")
    return gpu.put(image), t, gpu.put(draw(2, 7, 24) if context is None else context)


def recorded(gpu, unet, once):
    """The graph of a step: the first one is launched, the second recorded."""
    for _ in range(2):
        unet(*step(gpu), once)
    return unet.replay.graph


def test_the_replayed_steps_are_the_launched_ones(gpu, unet):
    """Other latents, timesteps and prompts, to the last bit; Python launches nothing and brings nothing but the arguments."""
    once = Once([17.0, 925.25])
    graph = recorded(gpu, unet, once)
    for arguments in (step(gpu, 925.25, 1), step(gpu, 17.0, 2, 0.5 * draw(2, 7, 24))):
        before = len(gpu.launches), State.uploads
        y = unet(*arguments, once)
        assert (len(gpu.launches), State.uploads) == before
        np.testing.assert_array_equal(y.get(), unet(*arguments).get())
    assert unet.replay.graph is graph and graph.graph.launches == 3  # with the step that was recorded


def test_the_result_is_near_the_truth(gpu, unet):
    sample, t, context = step(gpu)
    exact = model(UNet2DConditionModel, CONFIG, "float64")(sample.get().astype("float64"), t, context.get().astype("float64"))
    assert relative_l2(unet(sample, t, context, Once()).get(), exact) <= 2e-3


def test_other_weights_drop_the_graph_and_another_run_does_not(gpu, unet):
    graph = recorded(gpu, unet, Once([17.0]))
    first = unet(*step(gpu), Once([17.0])).get()
    assert unet.replay.graph is graph and graph.graph.launches == 2
    unet.params = unet.params.replace({"conv_out.bias": gpu.put(np.ones(4, "float16"))})
    assert unet.replay is None
    assert relative_l2(unet(*step(gpu), Once([17.0])).get(), first) > 0.1


def test_another_choice_of_rungs_is_recorded_anew(gpu, unet):
    recorded(gpu, unet, Once([17.0]))
    launched = len(gpu.launches)
    with ops.using(layer_norm="warp"):
        unet(*step(gpu), Once([17.0]))
    assert any("layer_norm_warp" in name for name in gpu.launches[launched:])


@pytest.mark.parametrize("why", ["switched off", "listened to", "several timesteps"])
def test_where_there_is_no_graph(gpu, unet, why):
    once = Once()
    if why == "switched off":
        unet.replay, unet.cuda_graph = "a graph", False
        unet(*step(gpu), once)
    elif why == "listened to":
        with trace("unet.*.attn2.to_k") as seen:
            unet(*step(gpu), once)
        assert {len(seen[name]) for name in seen} == {2}
    else:
        sample, _, context = step(gpu)
        unet(np.concatenate((sample, sample)), np.array([17.0, 3.0]), context)
        unet(sample, [17.0], context, once)
    assert unet.replay is None


def test_a_step_that_cannot_be_recorded_is_launched(gpu, unet, caplog):
    """Here because the product asked for is the reference's, which is CuPy's @."""
    with caplog.at_level(logging.DEBUG, "minisd"), ops.using(linear="reference"):
        once = Once()
        ys = [unet(*step(gpu), once).get() for _ in range(3)]
    assert len(caplog.messages) == 1 and "cuBLAS" in caplog.messages[0]
    assert all(np.array_equal(y, ys[0]) for y in ys)


def test_a_picture_is_replayed(gpu, tmp_path):
    """The whole loop: two steps launch and record, the others bring one array, the latents, and launch one graph, which the next picture finds again."""
    wide = dict(block_out_channels=(40,), down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), layers_per_block=1,
                attention_head_dim=(1,), transformer_layers_per_block=1, norm_num_groups=4)  # fmt: skip
    pipe = StableDiffusionPipeline.from_pretrained(write_tiny_sd2(tmp_path, unet=wide))
    pipe.unet.params = uploaded(pipe.unet.params.map(lambda w: w.astype("float16")), gpu)
    options, seen = dict(height=8, width=12, seed=3, num_inference_steps=4), []
    for step in pipe.steps("a red apple", **options):
        seen.append((len(gpu.launches), State.uploads))
    assert seen[3] == (seen[2][0], seen[2][1] + 1)
    pictures = [step.latents, pipe("a red apple", output_type="latent", **options).images]
    assert pipe.unet.replay.graph.graph.launches == 3 + 4
    pipe.unet.cuda_graph = False
    for picture in pictures:
        np.testing.assert_array_equal(picture, pipe("a red apple", output_type="latent", **options).images)
