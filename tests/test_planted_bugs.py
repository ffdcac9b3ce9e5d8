"""The golden comparison bites: each classic mistake is planted, and exactly the modules that have it inside must fail.

The rule in float32 has to see them (in float64 everything is visible), and must stay quiet everywhere else.
"""

import re
from dataclasses import dataclass
from typing import Callable

import numpy as np
import pytest

from minisd import ops
from minisd.errors import MinisdError, ModelFileError
from minisd.layers import attention, basic, resnet
from minisd.models import unet, vae
from tests.goldens import check, golden
from tests.tiny_models import build

UNETS = ("unet_sd1", "unet_sd2", "unet_inpainting")
CLIPS = ("clip_quick_gelu", "clip_gelu")
EVERYTHING = (*UNETS, "vae", *CLIPS)


@dataclass(frozen=True)
class Bug:
    """plant(monkeypatch) makes the mistake; exactly the modules at or above a path that matches get it wrong."""

    plant: Callable
    where: dict  # model -> regular expression


def everywhere(where: str, models: tuple) -> dict:
    return dict.fromkeys(models, where)


def swapped_eps(p, x, *, groups, eps, act=None):
    return basic.group_norm(p, x, groups=groups, eps={1e-5: 1e-6, 1e-6: 1e-5}[eps], act=act)


def tanh_gelu(x):
    """The approximation that three ports use by default; 1e-4 off."""
    return 0.5 * x * (1.0 + np.tanh(0.7978845608 * (x + 0.044715 * x**3)))


def tanh_geglu(x):
    h, gate = np.split(x, 2, axis=-1)
    return h * tanh_gelu(gate)


def tanh_in_geglu(monkeypatch):
    """In the op and in its fusion with the two linear layers around it."""
    monkeypatch.setattr(ops, "geglu", tanh_geglu)
    monkeypatch.setattr(ops, "feed_forward", lambda x, w, b, v, c, *, skip: ops.linear(tanh_geglu(ops.linear(x, w, b)), v, c, skip=skip))


def tanh_in_the_geglu(monkeypatch):
    """In the op, and in the one that fuses it with its two linear layers."""
    monkeypatch.setattr(ops, "geglu", tanh_geglu)
    monkeypatch.setattr(ops, "feed_forward", lambda x, w, b, v, c, *, skip: ops.linear(tanh_geglu(ops.linear(x, w, b)), v, c, skip=skip))


right_multi_head = attention.multi_head


def interleaved_heads(q, k, v, *, heads, causal=False):
    """Splits the channels as [D, N] instead of [N, D]."""

    def swap(x, n):
        return x.reshape(*x.shape[:2], n, -1).swapaxes(2, 3).reshape(x.shape)

    D = q.shape[-1] // heads
    return swap(right_multi_head(swap(q, D), swap(k, D), swap(v, D), heads=heads, causal=causal), heads)


def swapped_q_and_k(q, k, v, *, heads, causal=False):
    q, k = (k, q) if q.shape == k.shape else (q, k)  # in cross-attention the shapes would give it away
    return right_multi_head(q, k, v, heads=heads, causal=causal)


def symmetric_padding(p, x, *, padding):
    return resnet.downsample(p, x, padding=1)


right_timestep_embedding, right_up_block = ops.timestep_embedding, unet.up_block


def swapped_sin_and_cos(t, *, flip_sin_to_cos, **kwargs):
    return right_timestep_embedding(t, flip_sin_to_cos=not flip_sin_to_cos, **kwargs)


def first_skip_first(p, x, t_emb, context, skips, **kwargs):
    n = len(p.resnets)
    skips[-n:] = skips[-n:][::-1]
    return right_up_block(p, x, t_emb, context, skips, **kwargs)


def replace(owner, name, value):
    return lambda monkeypatch: monkeypatch.setattr(owner, name, value)


def swap_the_gelus(monkeypatch):
    right = dict(attention.CLIP_ACTIVATIONS)
    monkeypatch.setattr(attention, "CLIP_ACTIVATIONS", {"gelu": right["quick_gelu"], "quick_gelu": right["gelu"]})


def tanh_in_clip(monkeypatch):
    monkeypatch.setitem(attention.CLIP_ACTIVATIONS, "gelu", tanh_gelu)


NOWHERE, WHOLE_MODEL = "(?!)", ""
BUGS = {
    "eps 1e-6 in the UNet's resnets, 1e-5 in the VAE's": Bug(
        replace(resnet, "group_norm", swapped_eps), everywhere(r"resnets\.\d", (*UNETS, "vae"))
    ),
    "eps 1e-6 in the UNet's last norm": Bug(replace(unet, "group_norm", swapped_eps), everywhere(WHOLE_MODEL, UNETS)),
    "eps 1e-5 in the VAE's last norms": Bug(replace(vae, "group_norm", swapped_eps), {"vae": "encoder|decoder"}),
    "eps 1e-5 in the transformers' group norm": Bug(
        replace(attention, "TRANSFORMER_GROUP_NORM_EPS", 1e-5), {**everywhere(r"attentions\.\d(\.norm)?", UNETS), "vae": NOWHERE}
    ),
    "eps 1e-6 in the transformers' layer norms": Bug(
        replace(attention, "TRANSFORMER_LAYER_NORM_EPS", 1e-6),
        {**everywhere(r".*transformer_blocks\.\d(\.norm[123])?", UNETS), **everywhere(NOWHERE, CLIPS)},
    ),
    "eps 1e-5 in the VAE's group norms": Bug(
        replace(vae, "VAE_NORM_EPS", 1e-5),
        {"vae": r".*(resnets\.\d|attentions\.\d|norm1|norm2|group_norm|conv_norm_out)", **everywhere(NOWHERE, UNETS)},
    ),
    "tanh instead of erf in the GEGLU": Bug(tanh_in_the_geglu, {**everywhere(r".*ff\.net\.0", UNETS), **everywhere(NOWHERE, CLIPS)}),
    "tanh instead of erf in CLIP": Bug(tanh_in_clip, {"clip_gelu": r".*mlp", "clip_quick_gelu": NOWHERE}),
    "gelu and quick_gelu swapped": Bug(swap_the_gelus, everywhere(r".*mlp", CLIPS)),
    "heads interleaved": Bug(
        replace(attention, "multi_head", interleaved_heads),
        {**everywhere(r".*attn[12]", UNETS), **everywhere(r".*self_attn", CLIPS), "vae": NOWHERE},  # one head cannot be interleaved
    ),
    "queries and keys swapped": Bug(
        replace(attention, "multi_head", swapped_q_and_k),
        {**everywhere(r".*attn1", UNETS), **everywhere(r".*self_attn", CLIPS), "vae": r".*mid_block\.attentions\.0"},
    ),
    "symmetric padding in the VAE": Bug(
        replace(vae, "downsample", symmetric_padding), {"vae": r"encoder\.down_blocks\.[01]", **everywhere(NOWHERE, UNETS)}
    ),
    "sine and cosine swapped": Bug(replace(ops, "timestep_embedding", swapped_sin_and_cos), everywhere(r"time_proj", UNETS)),
    "skips taken in the wrong order": Bug(replace(unet, "up_block", first_skip_first), everywhere(r"up_blocks\.\d", UNETS)),
}


@pytest.mark.parametrize("bug", BUGS.values(), ids=BUGS.keys())
def test_exactly_the_modules_with_the_bug_fail(bug, monkeypatch):
    for name in bug.where:  # with nothing planted all of them pass
        assert failing(name) == set()
    bug.plant(monkeypatch)
    for name, where in bug.where.items():
        assert failing(name) == expected_to_fail(name, where), name


def failing(name: str) -> set:
    """The recorded modules whose float32 comparison fails; one that refuses its shapes fails too."""
    wrong = set()
    for path in golden(name).records:
        try:
            check(golden(name), path, dtypes=("float32",))
        except (AssertionError, MinisdError):
            wrong.add(path)
    return wrong


def expected_to_fail(name: str, where: str) -> set:
    """The recorded modules that are, or contain, a module whose path matches."""
    modules = {tensor.rsplit(".", depth)[0] for tensor in golden(name).shapes for depth in range(1, tensor.count(".") + 1)}
    sources = [path for path in modules | {"time_proj", WHOLE_MODEL} if re.search(rf"(^|\.)({where})$", path)]
    assert sources or where == NOWHERE, f"{where} matches no module of {name}"
    return {path for path in golden(name).records if any(is_within(source, path) for source in sources)}


def is_within(module: str, path: str) -> bool:
    """Whether a module is the recorded one or inside of it; the VAE's two directions are recorded under the names of its methods."""
    path = {"AutoencoderKL.encode": "encoder", "AutoencoderKL.decode": "decoder"}.get(path, path)
    return path == "" or module == path or module.startswith(f"{path}.")


@pytest.mark.parametrize("name", EVERYTHING)
def test_no_model_is_built_without_one_of_its_tensors(name):
    """The first, the last and the middle tensor in turn: the error names it, and nothing is computed."""
    shapes = golden(name).shapes
    prefix = "text_model." if name in CLIPS else ""
    for tensor in (list(shapes)[0], list(shapes)[len(shapes) // 2], list(shapes)[-1]):
        rest = {key: shape for key, shape in shapes.items() if key != tensor}
        with pytest.raises(ModelFileError, match=re.escape(prefix + tensor)):
            build(name, golden(name).config, rest)
