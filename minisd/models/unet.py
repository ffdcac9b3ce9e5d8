"""The UNet: predicts the noise in a latent picture at a timestep, steered by the prompt.

    x ─ conv_in ─ down 0 ─ down 1 ─ … ─ mid ─ … ─ up 1 ─ up 0 ─ norm, SiLU, conv_out ─ ε
                   └────────┴─── skips ────────────┴──────┘

Only wiring: the layers do the arithmetic. What a block consists of is read off the checkpoint ("attentions" in p).
"""

from .. import ops
from ..backend import array_module, to_nchw, to_nhwc
from ..config import UNetConfig
from ..errors import ContractError
from ..layers.attention import for_both, spatial_transformer
from ..layers.basic import conv2d, group_norm
from ..layers.ready import Ready
from ..layers.resnet import downsample, resnet_block, upsample
from ..layers.timestep import time_embedding
from ..tracing import layer, listening
from .model import Model


@layer
def down_block(p, x, t_emb, context, skips, *, heads, groups, eps):
    """Resnets, each followed by a transformer if the block has them, then half the size; every result is pushed on `skips`.

    x [B, H, W, C] -> [B, H/2, W/2, C′]        diffusers `CrossAttnDownBlock2D`, `DownBlock2D`
    """
    for j, resnet in enumerate(p.resnets):
        x = resnet_block(resnet, x, t_emb, groups=groups, eps=eps)
        if "attentions" in p:
            x = spatial_transformer(p.attentions[j], x, context, heads=heads, groups=groups)
        skips.append(x)
    if "downsamplers" in p:
        x = downsample(p.downsamplers[0], x, padding=1)
        skips.append(x)
    return x


@layer
def mid_block(p, x, t_emb, context, *, heads, groups, eps):
    """resnet, then transformer and resnet, at the smallest size.        diffusers `UNetMidBlock2DCrossAttn`"""
    x = resnet_block(p.resnets[0], x, t_emb, groups=groups, eps=eps)
    for j, attention in enumerate(p.attentions):
        x = spatial_transformer(attention, x, context, heads=heads, groups=groups)
        x = resnet_block(p.resnets[j + 1], x, t_emb, groups=groups, eps=eps)
    return x


@layer
def up_block(p, x, t_emb, context, skips, *, heads, groups, eps):
    """Resnets on [x, last skip], each followed by a transformer if the block has them, then double the size.

    x [B, H, W, C] -> [B, 2H, 2W, C′]        diffusers `CrossAttnUpBlock2D`, `UpBlock2D`
    """
    xp = array_module(x)
    for j, resnet in enumerate(p.resnets):
        x = xp.concatenate((x, for_both(skips.pop(), x)), axis=-1)
        x = resnet_block(resnet, x, t_emb, groups=groups, eps=eps)
        if "attentions" in p:
            x = spatial_transformer(p.attentions[j], x, context, heads=heads, groups=groups)
    if "upsamplers" in p:
        x = upsample(p.upsamplers[0], x, size=skips[-1].shape[1:3])  # an odd size came down by rounding up
    return x


def embed_time(p, t, config: UNetConfig, dtype):
    """What the resnets are told of the timesteps.        t [B] -> t_emb [B, E]; their projections, if they are ready, stay as they are"""
    if isinstance(t, Ready):
        return t
    t_sin = ops.timestep_embedding(
        t, dim=config.block_out_channels[0], flip_sin_to_cos=config.flip_sin_to_cos, freq_shift=config.freq_shift, dtype=dtype
    )
    return time_embedding(p.time_embedding, t_sin)


@layer
def unet(p, x, t, context, config: UNetConfig):
    """ε(x, t, prompt): down the U, through the middle, and up again with the skips.

    x [B, H, W, C] latents, t [B] timesteps 0 … 999, context [B, T, C_text] -> [B, H, W, C′]        diffusers `UNet2DConditionModel`
    For guidance x may be half as many: its two halves are one until the first cross-attention. t and context may be `Ready`.
    """
    c = config
    norm = dict(groups=c.norm_num_groups, eps=c.norm_eps)
    heads = c.per_block("attention_head_dim")  # the field's official name is a mistake; see UNetConfig
    t_emb = embed_time(p, t, c, x.dtype)

    x = conv2d(p.conv_in, x, padding=(c.conv_in_kernel - 1) // 2)
    skips = [x]
    for block, n in zip(p.down_blocks, heads):
        x = down_block(block, x, t_emb, context, skips, heads=n, **norm)
    x = mid_block(p.mid_block, x, t_emb, context, heads=heads[-1], **norm)
    for block, n in zip(p.up_blocks, reversed(heads)):
        x = up_block(block, x, t_emb, context, skips, heads=n, **norm)
    x = group_norm(p.conv_norm_out, x, **norm, act="silu")
    return conv2d(p.conv_out, x, padding=(c.conv_out_kernel - 1) // 2)


class UNet2DConditionModel(Model):
    """The denoiser with diffusers' names and layout.

    >>> noise = unet(latents, t, encoder_hidden_states)        # doctest: +SKIP
    """

    component = "unet"
    cuda_graph = True  # on a GPU the steps of a run are replayed as one CUDA graph; False launches kernel by kernel
    replay = None  # that graph: an `ops.cuda.graph.Replay`

    @property
    def params(self):
        """The weights."""
        return self._params

    @params.setter
    def params(self, params):
        self._params, self.replay = params, None  # a graph has the old weights' addresses in it

    def __call__(self, sample, timestep, encoder_hidden_states, once=None):
        """sample [B, C, H, W], timestep a number or [B], encoder_hidden_states [B, T, C_text] -> [B, C, H, W] of the same dtype.

        Guidance: encoder_hidden_states [2B, T, C_text] -> [2B, C, H, W], as of the sample twice; what the two halves share is computed once.
        once: a `Once` of the run that this step belongs to. Who listens sees everything as it is without either.
        """
        if listening() and len(encoder_hidden_states) == 2 * len(sample):
            sample = array_module(sample).concatenate((sample, sample))
        with self.running():
            if once is None or listening():
                y = unet(self.params, *self.inputs(sample, timestep, encoder_hidden_states), self.config)
            else:
                y = once.step(self, sample, timestep, encoder_hidden_states)
            return self.give_back(to_nchw(y), sample)

    def inputs(self, sample, timestep, encoder_hidden_states) -> tuple:
        """The arguments of a call, checked, where the model is, and as the layers take them: x [B, H, W, C], t [B], context [B, T, C_text]; B or B/2 images."""
        x = self.image(sample)
        context = self.context(encoder_hidden_states, len(x))
        return x, self.timesteps(timestep, x, len(context)), context

    def image(self, sample):
        """sample [B, C, H, W] -> x [B, H, W, C]"""
        return to_nhwc(self.take("sample", sample, (None, self.config.in_channels, None, None)))

    def context(self, encoder_hidden_states, images: int):
        """encoder_hidden_states [B, T, C_text] for as many images, or for half as many."""
        widths = set(self.config.per_block("cross_attention_dim"))
        rows = 2 * images if len(encoder_hidden_states) == 2 * images else images
        return self.take("encoder_hidden_states", encoder_hidden_states, (rows, None, widths.pop() if len(widths) == 1 else None))

    def timesteps(self, timestep, x, rows: int):
        """timestep, a number or one for each image of x -> t [rows], those of the images again for the second half of guidance."""
        xp = array_module(x)
        t = xp.asarray(timestep, dtype="float64").reshape(-1)
        if t.size not in (1, len(x)):
            raise ContractError(f"{t.size} timesteps for {len(x)} samples", "", "give one timestep, or one for each sample")
        return xp.concatenate((xp.broadcast_to(t, (len(x),)),) * (rows // len(x)))
