"""What our traces call a layer and its arguments, and what the reference calls them."""

# What our own traces call a layer: its class in the reference, and the names that `forward` has for its arguments.
OURS = {
    "conv2d": ("conv2d", {"x": "x", "stride": "stride", "padding": "padding"}),
    "upsample_conv2d": ("upsample_conv2d", {"x": "x", "size": "size"}),
    "linear": ("Linear", {"x": "input"}),
    "group_norm": ("GroupNorm", {"x": "input"}),
    "layer_norm": ("LayerNorm", {"x": "input"}),
    "embedding": ("Embedding", {"ids": "input"}),
    "resnet_block": ("ResnetBlock2D", {"x": "input_tensor", "t_emb": "temb"}),
    "downsample": ("Downsample2D", {"x": "hidden_states"}),
    "upsample": ("Upsample2D", {"x": "hidden_states", "size": "output_size"}),
    "time_embedding": ("TimestepEmbedding", {"t_sin": "sample"}),
    "attention": ("Attention", {"x": "hidden_states", "context": "encoder_hidden_states"}),
    "vae_attention": ("Attention", {"x": "hidden_states"}),
    "geglu": ("GEGLU", {"x": "hidden_states"}),
    "feed_forward": ("FeedForward", {"x": "hidden_states"}),
    "transformer_block": ("BasicTransformerBlock", {"x": "hidden_states", "context": "encoder_hidden_states"}),
    "spatial_transformer": ("Transformer2DModel", {"x": "hidden_states", "context": "encoder_hidden_states"}),
    "clip_attention": ("CLIPAttention", {"x": "hidden_states"}),
    "clip_mlp": ("CLIPMLP", {"x": "hidden_states"}),
    "clip_layer": ("CLIPEncoderLayer", {"x": "hidden_states"}),
    "down_block": ("CrossAttnDownBlock2D", {"x": "hidden_states", "t_emb": "temb", "context": "encoder_hidden_states"}),
    "mid_block": ("UNetMidBlock2DCrossAttn", {"x": "hidden_states", "t_emb": "temb", "context": "encoder_hidden_states"}),
    "up_block": ("up_block", {"x": "x", "t_emb": "t_emb", "context": "context", "skips": "skips"}),
    "down_encoder_block": ("DownEncoderBlock2D", {"x": "hidden_states"}),
    "up_decoder_block": ("UpDecoderBlock2D", {"x": "hidden_states"}),
    "embeddings": ("CLIPTextEmbeddings", {"ids": "input_ids"}),
    "unet": ("UNet2DConditionModel", {"x": "sample", "t": "timestep", "context": "encoder_hidden_states"}),
    "decoder": ("Decoder", {"z": "sample"}),
}
OUR_CUTS = {"conv2d": "Conv2d", "upsample_conv2d": "Conv2d", "up_block": "CrossAttnUpBlock2D"}  # what the kinds in OWN stand for
OURS_ELSEWHERE = {  # functions of the same name in two models
    ("vae", "mid_block"): ("UNetMidBlock2D", {"x": "hidden_states"}),
    ("vae", "encoder"): ("Encoder", {"x": "sample"}),
    ("text_encoder", "encoder"): ("CLIPEncoder", {"x": "inputs_embeds"}),
}
# Modules of the reference without weights or arithmetic that is a layer of ours: their work is inside the layers that hold them.
NOT_LAYERS = {"ModuleList", "Dropout", "SiLU", "QuickGELUActivation", "GELUActivation"}


def reference_class(row: dict) -> str:
    """The reference's class for a manifest's row, which may be ours."""
    kind, _ = answer(row)
    return OUR_CUTS.get(kind, kind)


def reference_names(row: dict, inputs: dict) -> dict:
    """`inputs` of a manifest's row under the names of the reference's arguments."""
    kind, names = answer(row)
    cut = {"conv2d": {"x": "input"}, "up_block": {"x": "hidden_states", "t_emb": "temb"}}
    names = {**(names or {}), **cut.get(kind, {})}
    return {names.get(name, name): stored for name, stored in inputs.items()}


def answer(row: dict) -> tuple:
    """The key of TABLE or OWN for a row, and how our names of its arguments are to be changed."""
    return OURS_ELSEWHERE.get((row["name"].partition(".")[0], row["kind"])) or OURS.get(row["kind"]) or (row["kind"], None)
