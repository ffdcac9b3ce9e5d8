"""Attention in its four surroundings: the UNet's transformer, the VAE's single head, CLIP's causal layer, and the function they share."""

import math

import numpy as np

from .. import ops
from ..backend import array_module
from ..tracing import layer, listening, tap
from .basic import conv2d, group_norm, layer_norm, linear, then_adds
from .ready import project

# Transformer2DModel builds its group norm with this constant; the config's norm_eps (1e-5) is for the resnets only.
TRANSFORMER_GROUP_NORM_EPS = 1e-6
TRANSFORMER_LAYER_NORM_EPS = 1e-5


def split_heads(x, heads):
    """Cuts the channels into heads.        [B, S, C] -> [B, N, S, D] with D = C / N, without a copy"""
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def multi_head(q, k, v, *, heads, causal=False):
    """Cuts the channels into heads, attends, and joins the heads: softmax(Q Kᵀ / √D) V.

    q [B, S, C], k and v [B, T, C] -> [B, S, C]. The softmax is computed in float32 or wider always, which is what `upcast_attention`
    of SD 2.1 asks for.
    """
    q_heads, k_heads, v_heads = (split_heads(x, heads) for x in (q, k, v))
    y = ops.attention(q_heads, k_heads, v_heads, scale=1.0 / math.sqrt(q_heads.shape[-1]), causal=causal)
    return y.transpose(0, 2, 1, 3).reshape(q.shape)


def probabilities(q, k, *, heads):
    """softmax(Q Kᵀ / √D), how much each query looks at each key.        q [B, S, C], k [B, T, C] -> [B, N, S, T], rows sum to 1

    The scores of float16 vectors are float32, as in `ops.attention`: those of SD 2.1 are beyond float16.
    """
    q_heads, k_heads = (split_heads(x.astype(np.result_type(x.dtype, "float32"), copy=False), heads) for x in (q, k))
    return ops.softmax(q_heads @ k_heads.swapaxes(-1, -2) * (1.0 / math.sqrt(q_heads.shape[-1]))).astype(q.dtype, copy=False)


def for_both(x, other):
    """x for each half of guidance: [B, …] -> [2B, …] where `other` has 2B rows; x itself where it has as many."""
    return x if len(x) == len(other) else array_module(x).concatenate((x,) * (len(other) // len(x)))


@then_adds
@layer
def attention(p, x, context=None, *, heads, skip=None):
    """softmax(Q Kᵀ / √D) V, then + skip: queries from x; keys and values from the prompt, or from x itself where there is none.

    x [B, S, C], context [B, T, C_text], or Ready, or None -> [B, S, C]        Vaswani et al., arXiv:1706.03762; diffusers `Attention`
    """
    context = x if context is None else context
    q, k, v = linear(p.to_q, x), project(p.to_k, context), project(p.to_v, context)
    q = for_both(q, k)  # here the two halves of guidance part: until now they were one
    tap(p, "probs", lambda: probabilities(q, k, heads=heads))  # computed only for who asks for it
    return linear(p.to_out[0], multi_head(q, k, v, heads=heads), skip=skip)


@layer
def geglu(p, x):
    """h · GELU(g) with [h, g] = x Wᵀ + b; the exact GELU.        x [B, S, C] -> [B, S, 4C]        diffusers `GEGLU`"""
    return ops.geglu(linear(p.proj, x))


@then_adds
@layer
def feed_forward(p, x, *, skip=None):
    """GEGLU to four times the width, and back, then + skip.        x [B, S, C] -> [B, S, C]        diffusers `FeedForward`"""
    if listening():  # a listener sees the modules one by one
        return linear(p.net[2], geglu(p.net[0], x))  # net.1 is the dropout of training
    w, w_out = p.net[0].proj, p.net[2]
    return ops.feed_forward(x, w.weight, w.bias, w_out.weight, w_out.bias, skip=skip)


@layer
def transformer_block(p, x, context, *, heads):
    """Self-attention, cross-attention, feed-forward, each as x + f(norm(x)).

    x [B, S, C], or half of it, context [B, T, C_text] or Ready -> [B, S, C]        diffusers `BasicTransformerBlock`
    """
    eps = TRANSFORMER_LAYER_NORM_EPS
    x = attention(p.attn1, layer_norm(p.norm1, x, eps=eps), heads=heads, skip=x)
    x = attention(p.attn2, layer_norm(p.norm2, x, eps=eps), context, heads=heads, skip=for_both(x, context))
    return feed_forward(p.ff, layer_norm(p.norm3, x, eps=eps), skip=x)


@layer
def spatial_transformer(p, x, context, *, heads, groups):
    """norm → project → transformer over all pixels as tokens → project → add the skip.

    x [B, H, W, C], or half of it, context [B, T, C_text] or Ready -> [B, H, W, C]        LDM, arXiv:2112.10752; diffusers `Transformer2DModel`
    """
    B, H, W, C = x.shape
    h = group_norm(p.norm, x, groups=groups, eps=TRANSFORMER_GROUP_NORM_EPS)
    if p.proj_in.weight.ndim == 4:  # SD 1.x projects by a 1×1 convolution of the image,
        h = conv2d(p.proj_in, h).reshape(B, H * W, C)
    else:  # SD 2.x by a linear layer on the tokens: the same numbers under another name
        h = linear(p.proj_in, h.reshape(B, H * W, C))
    for block in p.transformer_blocks:
        h = transformer_block(block, h, context, heads=heads)
    x = for_both(x, h)
    if p.proj_out.weight.ndim == 4:
        return conv2d(p.proj_out, h.reshape(x.shape), skip=x)
    return linear(p.proj_out, h, skip=x.reshape(h.shape)).reshape(x.shape)


@layer
def vae_attention(p, x, *, groups, eps):
    """One head over all pixels, with its own norm and skip: x + out(attend(norm(x))).

    x [B, H, W, C] -> [B, H, W, C]        LDM `AttnBlock`; diffusers `Attention(residual_connection=True)`
    """
    B, H, W, C = x.shape
    h = group_norm(p.group_norm, x, groups=groups, eps=eps).reshape(B, H * W, C)
    q, k, v = linear(p.to_q, h), linear(p.to_k, h), linear(p.to_v, h)
    return linear(p.to_out[0], multi_head(q, k, v, heads=1), skip=x.reshape(B, H * W, C)).reshape(B, H, W, C)


@then_adds
@layer
def clip_attention(p, x, *, heads, skip=None):
    """Causal self-attention, then + skip: a token sees itself and those before it.

    x [B, T, C] -> [B, T, C]        Radford et al., arXiv:2103.00020; transformers `CLIPAttention`
    """
    q, k, v = linear(p.q_proj, x), linear(p.k_proj, x), linear(p.v_proj, x)
    return linear(p.out_proj, multi_head(q, k, v, heads=heads, causal=True), skip=skip)


CLIP_ACTIVATIONS = {"quick_gelu": ops.quick_gelu, "gelu": ops.gelu}  # ViT-L/14 of SD 1.x; OpenCLIP-H of SD 2.x


@then_adds
@layer
def clip_mlp(p, x, *, act, skip=None):
    """linear → act → linear, then + skip.        x [B, T, C] -> [B, T, C], act "quick_gelu" or "gelu"        transformers `CLIPMLP`"""
    return linear(p.fc2, CLIP_ACTIVATIONS[act](linear(p.fc1, x)), skip=skip)


@layer
def clip_layer(p, x, *, heads, act, eps):
    """Causal self-attention, then the MLP, each as x + f(norm(x)).

    x [B, T, C] -> [B, T, C]        transformers `CLIPEncoderLayer`
    """
    x = clip_attention(p.self_attn, layer_norm(p.layer_norm1, x, eps=eps), heads=heads, skip=x)
    return clip_mlp(p.mlp, layer_norm(p.layer_norm2, x, eps=eps), act=act, skip=x)
