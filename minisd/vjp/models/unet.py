"""The UNet, backwards. Every skip of the way down meets its gradient again: what the forward pass pushes, the pullback pops."""

from ... import ops as forward_ops
from ...backend import array_module, to_nchw, to_nhwc
from ...config import UNetConfig
from ..layers.attention import spatial_transformer
from ..layers.basic import conv2d, group_norm
from ..layers.resnet import downsample, resnet_block, upsample
from ..layers.timestep import time_embedding
from ..wiring import Chain, expect_host, public


def resnet_and_transformer(p, p_attention, x, t_emb, context, *, heads, groups, eps):
    """A resnet and the transformer behind it, if there is one: the unit of every block.

    x [B, H, W, C] -> y [B, H, W, C′]; pullback(dy) -> dx, dt_emb, dcontext (0.0 without a transformer)
    """
    h, pull_resnet = resnet_block(p, x, t_emb, groups=groups, eps=eps)
    if p_attention is None:
        return h, lambda dy: (*pull_resnet(dy), 0.0)
    y, pull_attention = spatial_transformer(p_attention, h, context, heads=heads, groups=groups)

    def pullback(dy):
        dh, dcontext = pull_attention(dy)
        return (*pull_resnet(dh), dcontext)

    return y, pullback


def attentions_of(p) -> list:
    """The transformer behind each resnet of a block; None where it has none."""
    behind = list(p.attentions) if "attentions" in p else []
    return behind + [None] * (len(p.resnets) - len(behind))


def down_block(p, x, t_emb, context, skips, **options):
    """x [B, H, W, C] -> y [B, H/2, W/2, C′]; pullback(dy, dskips) -> dx, dt_emb, dcontext, with the skips' gradients popped from `dskips`."""
    pulls = []
    for resnet, attention in zip(p.resnets, attentions_of(p)):
        x, pull = resnet_and_transformer(resnet, attention, x, t_emb, context, **options)
        pulls.append(pull)
        skips.append(x)
    if "downsamplers" in p:
        x, pull_down = downsample(p.downsamplers[0], x, padding=1)
        skips.append(x)

    def pullback(dx, dskips):
        dt_emb, dcontext = 0.0, 0.0
        if "downsamplers" in p:
            dx = pull_down(dx + dskips.pop())
        for pull in reversed(pulls):
            dx, dt, dc = pull(dx + dskips.pop())
            dt_emb, dcontext = dt_emb + dt, dcontext + dc
        return dx, dt_emb, dcontext

    return x, pullback


def mid_block(p, x, t_emb, context, **options):
    """x [B, H, W, C] -> y [B, H, W, C]; pullback(dy) -> dx, dt_emb, dcontext"""
    pulls = []
    for resnet, attention in zip(p.resnets, attentions_of(p)):
        x, pull = resnet_and_transformer(resnet, attention, x, t_emb, context, **options)
        pulls.append(pull)

    def pullback(dx):
        dt_emb, dcontext = 0.0, 0.0
        for pull in reversed(pulls):
            dx, dt, dc = pull(dx)
            dt_emb, dcontext = dt_emb + dt, dcontext + dc
        return dx, dt_emb, dcontext

    return x, pullback


def up_block(p, x, t_emb, context, skips, **options):
    """x [B, H, W, C] -> y [B, 2H, 2W, C′]; pullback(dy, dskips) -> dx, dt_emb, dcontext, with the skips' gradients pushed on `dskips`."""
    xp, pulls = array_module(x), []
    for resnet, attention in zip(p.resnets, attentions_of(p)):
        width = x.shape[-1]
        x = xp.concatenate((x, skips.pop()), axis=-1)
        x, pull = resnet_and_transformer(resnet, attention, x, t_emb, context, **options)
        pulls.append((pull, width))
    if "upsamplers" in p:
        x, pull_up = upsample(p.upsamplers[0], x, size=skips[-1].shape[1:3])

    def pullback(dx, dskips):
        dt_emb, dcontext = 0.0, 0.0
        if "upsamplers" in p:
            dx = pull_up(dx)
        for pull, width in reversed(pulls):
            dx, dt, dc = pull(dx)
            dskips.append(dx[..., width:])
            dx, dt_emb, dcontext = dx[..., :width], dt_emb + dt, dcontext + dc
        return dx, dt_emb, dcontext

    return x, pullback


def unet(p, x, t, context, config: UNetConfig):
    """x [B, H, W, C] latents, t [B], context [B, T, C_text] -> ε [B, H, W, C′]; pullback(dε) -> dx, dcontext

    The timestep has no gradient of its own; dt_emb, gathered from all resnets, goes on to the parameters of the time embedding.
    """
    c = config
    norm = dict(groups=c.norm_num_groups, eps=c.norm_eps)
    heads = c.per_block("attention_head_dim")
    t_sin = forward_ops.timestep_embedding(
        t, dim=c.block_out_channels[0], flip_sin_to_cos=c.flip_sin_to_cos, freq_shift=c.freq_shift, dtype=x.dtype
    )
    t_emb, pull_time = time_embedding(p.time_embedding, t_sin)

    x, pull_in = conv2d(p.conv_in, x, padding=(c.conv_in_kernel - 1) // 2)
    skips, downs, ups = [x], [], []
    for block, n in zip(p.down_blocks, heads):
        x, pull = down_block(block, x, t_emb, context, skips, heads=n, **norm)
        downs.append(pull)
    x, pull_mid = mid_block(p.mid_block, x, t_emb, context, heads=heads[-1], **norm)
    for block, n in zip(p.up_blocks, reversed(heads)):
        x, pull = up_block(block, x, t_emb, context, skips, heads=n, **norm)
        ups.append(pull)
    out = Chain(x)
    out.then(group_norm, p.conv_norm_out, **norm, act="silu")
    out.then(conv2d, p.conv_out, padding=(c.conv_out_kernel - 1) // 2)

    def pullback(dy):
        dskips, dx = [], out.pullback(dy)
        dt_emb, dcontext = 0.0, array_module(context).zeros(context.shape, dtype=context.dtype)
        steps = [*(lambda dx, pull=pull: pull(dx, dskips) for pull in reversed(ups)), pull_mid]
        steps += [lambda dx, pull=pull: pull(dx, dskips) for pull in reversed(downs)]
        for step in steps:
            dx, dt, dc = step(dx)
            dt_emb, dcontext = dt_emb + dt, dcontext + dc
        pull_time(dt_emb)
        return pull_in(dx + dskips.pop()), dcontext

    return out.y, pullback


def call(model, sample, timestep, encoder_hidden_states):
    """`unet(sample, timestep, encoder_hidden_states)`, backwards.

    sample [B, C, H, W], timestep a number or [B], encoder_hidden_states [B, T, C_text] -> ε [B, C, H, W]; pullback(dε) -> dsample, dcontext
    """
    expect_host(model)
    y, pull = unet(model.params, *model.inputs(sample, timestep, encoder_hidden_states), model.config)

    def pullback(dy):
        dx, dcontext = pull(to_nhwc(dy))
        return to_nchw(dx), dcontext

    return public(to_nchw(y), pullback)
