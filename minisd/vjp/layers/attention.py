"""Attention in its four surroundings, backwards. Kept are the inputs of the norms, and q, k, v; what lies between is made again.

`again` is how: a function that makes an input anew, for the one product (dW, or the feed-forward's own middle) that asks for it.
"""

import math

from ...layers import attention as forward
from ...layers import basic as forward_basic
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


def projected(projections, x, context, *, heads, causal=False, again=None):
    """out(attend(Wq x, Wk c, Wv c))    →    dx = Wqᵀ dq,   dcontext = Wkᵀ dk + Wvᵀ dv.

    projections: p of q, k, v, out; x [B, S, C], context [B, T, C′] -> y [B, S, C]; again: makes x anew, and the context where that is x
    """
    p_q, p_k, p_v, p_out = projections
    again_context = again if context is x else None
    q, pull_q = linear(p_q, x, again=again)
    k, pull_k = linear(p_k, context, again=again_context)
    v, pull_v = linear(p_v, context, again=again_context)
    y, pull_heads = multi_head(q, k, v, heads=heads, causal=causal)
    y, pull_out = linear(p_out, y, again=lambda: forward.multi_head(q, k, v, heads=heads, causal=causal))

    def pullback(dy):
        dq, dk, dv = pull_heads(pull_out(dy))
        return pull_q(dq), pull_k(dk) + pull_v(dv)

    return y, pullback


def attention(p, x, context=None, *, heads, again=None):
    """Queries give dx; keys and values give dcontext, or join dx where x attends to itself.

    x [B, S, C], context [B, T, C_text] or None -> y [B, S, C]; pullback(dy) -> dx, dcontext; dx alone for self-attention
    """
    seen = x if context is None else context
    y, pull = projected((p.to_q, p.to_k, p.to_v, p.to_out[0]), x, seen, heads=heads, again=again)
    return y, pull if context is not None else lambda dy: sum(pull(dy))


def geglu(p, x):
    """Back through h · GELU(g), then through W.        x [B, S, C] -> y [B, S, 4C]"""
    h, pull_proj = linear(p.proj, x)
    y, pull_geglu = ops.geglu(h)
    return y, lambda dy: pull_proj(pull_geglu(dy))


FEED_FORWARD = ("net.0.proj.weight", "net.0.proj.bias", "net.2.weight", "net.2.bias")


def feed_forward(p, x, *, again=None):
    """GEGLU to four times the width and back, by rows.        x [B, S, C] -> y [B, S, C]"""
    w, w_out = p.net[0].proj, p.net[2]
    y, pullback = ops.feed_forward(x, w.weight, w.bias, w_out.weight, w_out.bias, again=again)
    return y, of_layer(p, FEED_FORWARD, pullback)


def transformer_block(p, x, context, *, heads):
    """y = x + f(norm(x)) three times    →    dx = dy + normᵀ fᵀ dy three times, from the last to the first.

    x [B, S, C], context [B, T, C_text] -> y [B, S, C]; pullback(dy) -> dx, dcontext
    """
    x, pull_attn1 = residual(p.norm1, x, lambda h, again: attention(p.attn1, h, heads=heads, again=again))
    x, pull_attn2 = residual(p.norm2, x, lambda h, again: attention(p.attn2, h, context, heads=heads, again=again))
    y, pull_ff = residual(p.norm3, x, lambda h, again: feed_forward(p.ff, h, again=again))

    def pullback(dy):
        dx, dcontext = pull_attn2(pull_ff(dy))
        return pull_attn1(dx), dcontext

    return y, pullback


def residual(p_norm, x, f, *, eps=TRANSFORMER_LAYER_NORM_EPS):
    """y = x + f(norm(x))    →    dx = dy + normᵀ fᵀ dy; what f gives for other inputs follows.        x [B, S, C] -> y [B, S, C]

    f(h, again) -> y, pullback: `again` makes h anew from x, which is all that is kept
    """
    h, pull_norm = layer_norm(p_norm, x, eps=eps)
    h, pull_f = f(h, lambda: forward_basic.layer_norm(p_norm, x, eps=eps))

    def pullback(dy):
        dh = pull_f(dy)
        dh, *others = dh if isinstance(dh, tuple) else (dh,)
        dx = dy + pull_norm(dh)
        return (dx, *others) if others else dx

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
    h = h.reshape(B, H * W, C)
    h, pull_attend = projected((p.to_q, p.to_k, p.to_v, p.to_out[0]), h, h, heads=1)

    def pullback(dy):
        return dy + pull_norm(sum(pull_attend(dy.reshape(B, H * W, C))).reshape(B, H, W, C))

    return x + h.reshape(B, H, W, C), pullback


def clip_attention(p, x, *, heads, again=None):
    """Causal self-attention: a token's gradient comes from itself and those after it.        x [B, T, C] -> y [B, T, C]"""
    y, pull = projected((p.q_proj, p.k_proj, p.v_proj, p.out_proj), x, x, heads=heads, causal=True, again=again)
    return y, lambda dy: sum(pull(dy))


CLIP_ACTIVATIONS = {"quick_gelu": ops.quick_gelu, "gelu": ops.gelu}


def clip_mlp(p, x, *, act, again=None):
    """linear → act → linear, pulled back in reverse order.        x [B, T, C] -> y [B, T, C]"""
    h, pull_1 = linear(p.fc1, x, again=again)
    h, pull_act = CLIP_ACTIVATIONS[act](h)
    y, pull_2 = linear(p.fc2, h)
    return y, lambda dy: pull_1(pull_act(pull_2(dy)))


def clip_layer(p, x, *, heads, act, eps):
    """y = x + f(norm(x)) twice    →    dx = dy + normᵀ fᵀ dy twice.        x [B, T, C] -> y [B, T, C]"""
    x, pull_attn = residual(p.layer_norm1, x, lambda h, again: clip_attention(p.self_attn, h, heads=heads, again=again), eps=eps)
    y, pull_mlp = residual(p.layer_norm2, x, lambda h, again: clip_mlp(p.mlp, h, act=act, again=again), eps=eps)
    return y, lambda dy: pull_attn(pull_mlp(dy))
