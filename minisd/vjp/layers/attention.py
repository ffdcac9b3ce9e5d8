"""Attention in its four surroundings, backwards."""

import math

from ...layers.attention import TRANSFORMER_GROUP_NORM_EPS, TRANSFORMER_LAYER_NORM_EPS, split_heads
from .. import ops
from ..collect import of_layer
from .basic import conv2d, group_norm, layer_norm, linear


def join_heads(x):
    """The way back from `split_heads`.        [B, N, S, D] -> [B, S, N·D]"""
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


def multi_head(q, k, v, *, heads, causal=False):
    """Cuts the channels into heads, attends, joins the heads; the gradient is cut and joined in the same way.

    q [B, S, C], k and v [B, T, C] -> y [B, S, C]; pullback(dy) -> dq, dk, dv
    """
    q, k, v = (split_heads(x, heads) for x in (q, k, v))
    y, pull = ops.attention(q, k, v, scale=1.0 / math.sqrt(q.shape[-1]), causal=causal)
    return join_heads(y), lambda dy: tuple(join_heads(dx) for dx in pull(split_heads(dy, heads)))


def attention(p, x, context=None, *, heads):
    """Queries give dx; keys and values give dcontext, or join dx where x attends to itself.

    x [B, S, C], context [B, T, C_text] or None -> y [B, S, C]; pullback(dy) -> dx, dcontext; dx alone for self-attention
    """
    seen = x if context is None else context
    q, pull_q = linear(p.to_q, x)
    k, pull_k = linear(p.to_k, seen)
    v, pull_v = linear(p.to_v, seen)
    y, pull_heads = multi_head(q, k, v, heads=heads)
    y, pull_out = linear(p.to_out[0], y)

    def pullback(dy):
        dq, dk, dv = pull_heads(pull_out(dy))
        dx, dseen = pull_q(dq), pull_k(dk) + pull_v(dv)
        return dx + dseen if context is None else (dx, dseen)

    return y, pullback


def geglu(p, x):
    """Back through h · GELU(g), then through W.        x [B, S, C] -> y [B, S, 4C]"""
    h, pull_proj = linear(p.proj, x)
    y, pull_geglu = ops.geglu(h)
    return y, lambda dy: pull_proj(pull_geglu(dy))


FEED_FORWARD = ("net.0.proj.weight", "net.0.proj.bias", "net.2.weight", "net.2.bias")


def feed_forward(p, x):
    """GEGLU to four times the width and back, by rows.        x [B, S, C] -> y [B, S, C]"""
    w, w_out = p.net[0].proj, p.net[2]
    y, pullback = ops.feed_forward(x, w.weight, w.bias, w_out.weight, w_out.bias)
    return y, of_layer(p, FEED_FORWARD, pullback)


def transformer_block(p, x, context, *, heads):
    """y = x + f(norm(x)) three times    →    dx = dy + normᵀ fᵀ dy three times, from the last to the first.

    x [B, S, C], context [B, T, C_text] -> y [B, S, C]; pullback(dy) -> dx, dcontext
    """
    eps = TRANSFORMER_LAYER_NORM_EPS
    h, pull_norm1 = layer_norm(p.norm1, x, eps=eps)
    h, pull_attn1 = attention(p.attn1, h, heads=heads)
    x = x + h
    h, pull_norm2 = layer_norm(p.norm2, x, eps=eps)
    h, pull_attn2 = attention(p.attn2, h, context, heads=heads)
    x = x + h
    h, pull_norm3 = layer_norm(p.norm3, x, eps=eps)
    h, pull_ff = feed_forward(p.ff, h)

    def pullback(dy):
        dx = dy + pull_norm3(pull_ff(dy))
        dh, dcontext = pull_attn2(dx)
        dx = dx + pull_norm2(dh)
        return dx + pull_norm1(pull_attn1(dx)), dcontext

    return x + h, pullback


def spatial_transformer(p, x, context, *, heads, groups):
    """y = x + out(blocks(in(norm(x))))    →    dx = dy + normᵀ inᵀ blocksᵀ outᵀ dy; every block adds its dcontext.

    x [B, H, W, C], context [B, T, C_text] -> y [B, H, W, C]; pullback(dy) -> dx, dcontext
    """
    B, H, W, C = x.shape

    def project(p, tokens):  # a 1×1 convolution of the image in SD 1.x, a linear layer on the tokens in SD 2.x
        if p.weight.ndim == 2:
            return linear(p, tokens)
        y, pull = conv2d(p, tokens.reshape(B, H, W, -1))
        return y.reshape(B, H * W, -1), lambda dy: pull(dy.reshape(B, H, W, -1)).reshape(B, H * W, -1)

    h, pull_norm = group_norm(p.norm, x, groups=groups, eps=TRANSFORMER_GROUP_NORM_EPS)
    h, pull_in = project(p.proj_in, h.reshape(B, H * W, C))
    pulls = []
    for block in p.transformer_blocks:
        h, pull = transformer_block(block, h, context, heads=heads)
        pulls.append(pull)
    h, pull_out = project(p.proj_out, h)

    def pullback(dy):
        dh, dcontext = pull_out(dy.reshape(B, H * W, C)), 0.0
        for pull in reversed(pulls):
            dh, d = pull(dh)
            dcontext = dcontext + d
        return dy + pull_norm(pull_in(dh).reshape(B, H, W, C)), dcontext

    return x + h.reshape(B, H, W, C), pullback


def vae_attention(p, x, *, groups, eps):
    """y = x + out(attend(norm(x)))    →    dx = dy + normᵀ (Wqᵀ dq + Wkᵀ dk + Wvᵀ dv).        x [B, H, W, C] -> y [B, H, W, C]"""
    B, H, W, C = x.shape
    h, pull_norm = group_norm(p.group_norm, x, groups=groups, eps=eps)
    h, pull_attend = self_attention((p.to_q, p.to_k, p.to_v, p.to_out[0]), h.reshape(B, H * W, C), heads=1)

    def pullback(dy):
        return dy + pull_norm(pull_attend(dy.reshape(B, H * W, C)).reshape(B, H, W, C))

    return x + h.reshape(B, H, W, C), pullback


def clip_attention(p, x, *, heads):
    """Causal self-attention: a token's gradient comes from itself and those after it.        x [B, T, C] -> y [B, T, C]"""
    return self_attention((p.q_proj, p.k_proj, p.v_proj, p.out_proj), x, heads=heads, causal=True)


def self_attention(projections, x, *, heads, causal=False):
    """out(attend(Wq x, Wk x, Wv x))    →    dx = Wqᵀ dq + Wkᵀ dk + Wvᵀ dv.        x [B, S, C] -> y [B, S, C]"""
    p_q, p_k, p_v, p_out = projections
    q, pull_q = linear(p_q, x)
    k, pull_k = linear(p_k, x)
    v, pull_v = linear(p_v, x)
    y, pull_heads = multi_head(q, k, v, heads=heads, causal=causal)
    y, pull_out = linear(p_out, y)

    def pullback(dy):
        dq, dk, dv = pull_heads(pull_out(dy))
        return pull_q(dq) + pull_k(dk) + pull_v(dv)

    return y, pullback


CLIP_ACTIVATIONS = {"quick_gelu": ops.quick_gelu, "gelu": ops.gelu}


def clip_mlp(p, x, *, act):
    """linear → act → linear, pulled back in reverse order.        x [B, T, C] -> y [B, T, C]"""
    h, pull_1 = linear(p.fc1, x)
    h, pull_act = CLIP_ACTIVATIONS[act](h)
    y, pull_2 = linear(p.fc2, h)
    return y, lambda dy: pull_1(pull_act(pull_2(dy)))


def clip_layer(p, x, *, heads, act, eps):
    """y = x + f(norm(x)) twice    →    dx = dy + normᵀ fᵀ dy twice.        x [B, T, C] -> y [B, T, C]"""
    h, pull_norm1 = layer_norm(p.layer_norm1, x, eps=eps)
    h, pull_attn = clip_attention(p.self_attn, h, heads=heads)
    x = x + h
    h, pull_norm2 = layer_norm(p.layer_norm2, x, eps=eps)
    h, pull_mlp = clip_mlp(p.mlp, h, act=act)

    def pullback(dy):
        dx = dy + pull_norm2(pull_mlp(dy))
        return dx + pull_norm1(pull_attn(dx))

    return x + h, pullback
