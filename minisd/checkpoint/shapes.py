"""The architecture as a table of contents: every tensor's name and shape, derived from the config.

The three trees below have the official names as keys; a list numbers its entries. Flattened, they are exactly the state
dicts of diffusers' `UNet2DConditionModel` and `AutoencoderKL` and of transformers' `CLIPTextModel` (with the `text_model.`
of official files). Weights are compared with them before anything is computed.
"""

from ..config import CLIPTextConfig, UNetConfig, VAEConfig

Shapes = dict[str, tuple[int, ...]]


def component_shapes(config: UNetConfig | VAEConfig | CLIPTextConfig) -> Shapes:
    """{name: shape} of the component that this config describes."""
    tree = {UNetConfig: unet_tree, VAEConfig: vae_tree, CLIPTextConfig: clip_text_tree}[type(config)]
    return dict(flatten(tree(config)))


def unet_shapes(config: UNetConfig) -> Shapes:
    return dict(flatten(unet_tree(config)))


def vae_shapes(config: VAEConfig) -> Shapes:
    return dict(flatten(vae_tree(config)))


def clip_text_shapes(config: CLIPTextConfig) -> Shapes:
    return dict(flatten(clip_text_tree(config)))


def flatten(tree, prefix: str = ""):
    """Nested dicts and lists as (dotted name, shape) pairs; a tuple is a shape."""
    for key, node in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(node, tuple):
            yield f"{prefix}{key}", node
        else:
            yield from flatten(node, f"{prefix}{key}.")


# ----- the three models -----------------------------------------------------------------------------------------------


def unet_tree(c: UNetConfig) -> dict:
    """Down the U and up again. An up block's resnet reads [x, skip], so its input is as wide as both together."""
    widths, layers = c.block_out_channels, c.per_block("layers_per_block")
    depths, contexts = c.per_block("transformer_layers_per_block"), c.per_block("cross_attention_dim")
    E = c.time_embed_dim

    def transformers(count: int, C: int, i: int) -> list:
        return [spatial_transformer(C, contexts[i], depths[i], c.use_linear_projection) for _ in range(count)]

    x, skips = widths[0], [widths[0]]  # the channels of the running image, and of what was pushed for the way up
    down_blocks = []
    for i, (kind, C) in enumerate(zip(c.down_block_types, widths)):
        block = {"resnets": []}
        for _ in range(layers[i]):
            block["resnets"].append(resnet(x, C, E))
            skips.append(x := C)
        if kind == "CrossAttnDownBlock2D":
            block["attentions"] = transformers(layers[i], C, i)
        if i < len(widths) - 1:
            block["downsamplers"] = [{"conv": conv(C, C, 3)}]
            skips.append(C)
        down_blocks.append(block)

    mid_block = {"resnets": [resnet(x, x, E), resnet(x, x, E)], "attentions": transformers(1, x, -1)}

    up_blocks = []
    for kind, i in zip(c.up_block_types, reversed(range(len(widths)))):
        C, block = widths[i], {"resnets": []}
        for _ in range(layers[i] + 1):
            block["resnets"].append(resnet(x + skips.pop(), C, E))
            x = C
        if kind == "CrossAttnUpBlock2D":
            block["attentions"] = transformers(layers[i] + 1, C, i)
        if i > 0:
            block["upsamplers"] = [{"conv": conv(C, C, 3)}]
        up_blocks.append(block)

    return {
        "conv_in": conv(c.in_channels, widths[0], c.conv_in_kernel),
        "time_embedding": {"linear_1": linear(widths[0], E), "linear_2": linear(E, E)},
        "down_blocks": down_blocks,
        "mid_block": mid_block,
        "up_blocks": up_blocks,
        "conv_norm_out": norm(widths[0]),
        "conv_out": conv(widths[0], c.out_channels, c.conv_out_kernel),
    }


def vae_tree(c: VAEConfig) -> dict:
    """The encoder makes mean and log-variance, hence 2 Z channels; the decoder has one resnet more in each block."""
    widths, n, Z = c.block_out_channels, c.layers_per_block, c.latent_channels

    def blocks(widths: tuple, count: int, sampler: str) -> list:
        """One block for each width; all but the last also change the size of the image."""
        result = []
        for i, (C_in, C) in enumerate(zip((widths[0], *widths), widths)):
            block = {"resnets": [resnet(C_in if j == 0 else C, C) for j in range(count)]}
            if i < len(widths) - 1:
                block[sampler] = [{"conv": conv(C, C, 3)}]
            result.append(block)
        return result

    def mid_block(C: int) -> dict:
        attentions = {"attentions": [vae_attention(C)]} if c.mid_block_add_attention else {}
        return {"resnets": [resnet(C, C), resnet(C, C)], **attentions}

    encoder = {
        "conv_in": conv(c.in_channels, widths[0], 3),
        "down_blocks": blocks(widths, n, "downsamplers"),
        "mid_block": mid_block(widths[-1]),
        "conv_norm_out": norm(widths[-1]),
        "conv_out": conv(widths[-1], 2 * Z, 3),
    }
    decoder = {
        "conv_in": conv(Z, widths[-1], 3),
        "mid_block": mid_block(widths[-1]),
        "up_blocks": blocks(widths[::-1], n + 1, "upsamplers"),
        "conv_norm_out": norm(widths[0]),
        "conv_out": conv(widths[0], c.out_channels, 3),
    }
    return {
        "encoder": encoder,
        "decoder": decoder,
        **({"quant_conv": conv(2 * Z, 2 * Z, 1)} if c.use_quant_conv else {}),
        **({"post_quant_conv": conv(Z, Z, 1)} if c.use_post_quant_conv else {}),
    }


def clip_text_tree(c: CLIPTextConfig) -> dict:
    C, M = c.hidden_size, c.intermediate_size
    layer = {
        "self_attn": {"q_proj": linear(C, C), "k_proj": linear(C, C), "v_proj": linear(C, C), "out_proj": linear(C, C)},
        "layer_norm1": norm(C),
        "mlp": {"fc1": linear(C, M), "fc2": linear(M, C)},
        "layer_norm2": norm(C),
    }
    return {
        "text_model": {
            "embeddings": {
                "token_embedding": {"weight": (c.vocab_size, C)},
                "position_embedding": {"weight": (c.max_position_embeddings, C)},
            },
            "encoder": {"layers": [layer] * c.num_hidden_layers},
            "final_layer_norm": norm(C),
        }
    }


# ----- their parts ----------------------------------------------------------------------------------------------------


def resnet(C_in: int, C_out: int, E: int | None = None) -> dict:
    """E: width of the time embedding; the VAE has none. The skip needs a convolution only where the channels change."""
    return {
        "norm1": norm(C_in),
        "conv1": conv(C_in, C_out, 3),
        **({"time_emb_proj": linear(E, C_out)} if E else {}),
        "norm2": norm(C_out),
        "conv2": conv(C_out, C_out, 3),
        **({"conv_shortcut": conv(C_in, C_out, 1)} if C_in != C_out else {}),
    }


def spatial_transformer(C: int, context: int, depth: int, use_linear_projection: bool) -> dict:
    """SD 1.x projects in and out by 1×1 convolutions, SD 2.x by linear layers."""
    projection = linear(C, C) if use_linear_projection else conv(C, C, 1)
    block = {
        "norm1": norm(C),
        "attn1": attention(C, C),
        "norm2": norm(C),
        "attn2": attention(C, context),
        "norm3": norm(C),
        "ff": {
            "net": {0: {"proj": linear(C, 8 * C)}, 2: linear(4 * C, C)}
        },  # GEGLU: 4 C values and 4 C gates; 1 is a dropout
    }
    return {"norm": norm(C), "proj_in": projection, "transformer_blocks": [block] * depth, "proj_out": projection}


def attention(C: int, context: int) -> dict:
    q, kv = linear(C, C, bias=False), linear(context, C, bias=False)
    return {"to_q": q, "to_k": kv, "to_v": kv, "to_out": [linear(C, C)]}


def vae_attention(C: int) -> dict:
    qkv = linear(C, C)
    return {"group_norm": norm(C), "to_q": qkv, "to_k": qkv, "to_v": qkv, "to_out": [linear(C, C)]}


def conv(C_in: int, C_out: int, K: int) -> dict:
    return {"weight": (C_out, C_in, K, K), "bias": (C_out,)}


def linear(C_in: int, C_out: int, bias: bool = True) -> dict:
    return {"weight": (C_out, C_in), "bias": (C_out,)} if bias else {"weight": (C_out, C_in)}


def norm(C: int) -> dict:
    return {"weight": (C,), "bias": (C,)}
