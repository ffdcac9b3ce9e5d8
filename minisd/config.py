"""config.json as frozen dataclasses. What would change the maths and is not implemented is refused by name, never ignored.

Absent fields take the default of the diffusers (or transformers) class, since official files leave most of them out. Fields that
neither library knows, and fields that matter only in training, are tolerated.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import get_args, get_origin

from .errors import ModelFileError


MAX_COUNT = 1_000_000  # of channels, tokens, pixels
MAX_LAYERS = 1_000  # a config is 1 kB; it must not make us list a billion tensors


class _Config:
    """Reading and checking, shared by the three configs below. `_neutral`: fields implemented for these values only."""

    _neutral: dict = {}

    @classmethod
    def from_dict(cls, raw: dict, where: str = "config.json"):
        """Builds the config from the parsed JSON; `where` is the file's name for errors."""
        if not isinstance(raw, dict):
            raise ModelFileError(f"{where}: not a JSON object", f"found {type(raw).__name__}", "fetch the file again")
        for name, allowed in cls._neutral.items():
            if name in raw and not _is_neutral(raw[name], allowed):
                raise _not_implemented(where, name, raw[name], allowed)
        values = {}
        for field in dataclasses.fields(cls):
            value = raw.get(field.name)
            if value is not None:  # null means "the default" in every config seen
                values[field.name] = _checked(value, field.type, f"{where}: {field.name}")
        config = cls(**values)
        config._check(where)
        return config

    def _check(self, where: str):
        pass


def _is_neutral(value, allowed) -> bool:
    if isinstance(value, list) and value:  # a list gives one value for each block
        return all(_is_neutral(v, allowed) for v in value)
    return any(value == a and isinstance(value, bool) == isinstance(a, bool) for a in allowed)


def _checked(value, kind, label: str):
    """`value` as `kind` (int, float, bool, str, tuple[…] or a union of these), or an error that names the field."""
    for option in get_args(kind) if get_origin(kind) is not tuple and get_args(kind) else (kind,):
        if option is type(None):
            continue
        if get_origin(option) is tuple:
            if isinstance(value, (list, tuple)) and value:
                return tuple(_checked(v, get_args(option)[0], label) for v in value)
        elif option is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            if math.isfinite(value):
                return float(value)
        elif option is int and isinstance(value, int) and not isinstance(value, bool):
            if 1 <= value <= MAX_COUNT:  # every whole number here counts or measures something
                return value
        elif option in (bool, str) and isinstance(value, option):
            return value
    expected = {int: f"a whole number from 1 to {MAX_COUNT:,}", float: "a finite number", bool: "true or false", str: "a text"}.get(kind, kind)
    raise ModelFileError(f"{label} = {value!r} cannot be used", f"expected {expected}", "fetch the file again")


def _not_implemented(where: str, name: str, value, implemented: tuple) -> ModelFileError:
    return ModelFileError(
        f"{where}: {name} = {value!r} is not implemented",
        f"it changes the computation; minisd implements {name} = {' or '.join(map(repr, implemented))}",
        "use a Stable Diffusion 1.x or 2.x model",
    )


def _require(condition: bool, where: str, problem: str):
    if not condition:
        raise ModelFileError(f"{where}: {problem}", "the fields of this config contradict each other", "fetch the file again")


@dataclass(frozen=True)
class UNetConfig(_Config):
    """diffusers `UNet2DConditionModel`."""

    sample_size: int | tuple[int, ...] = 64
    in_channels: int = 4
    out_channels: int = 4
    flip_sin_to_cos: bool = True
    freq_shift: float = 0.0
    down_block_types: tuple[str, ...] = (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D")
    up_block_types: tuple[str, ...] = ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3)
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int | tuple[int, ...] = 1280
    transformer_layers_per_block: int | tuple[int, ...] = 1
    # The official name is a famous mistake that every file repeats: this is the NUMBER OF HEADS (diffusers issue 2011).
    attention_head_dim: int | tuple[int, ...] = 8
    use_linear_projection: bool = False
    upcast_attention: bool = False
    conv_in_kernel: int = 3
    conv_out_kernel: int = 3
    time_embedding_dim: int | None = None

    _neutral = {
        "act_fn": ("silu", "swish"),
        "center_input_sample": (False, None),
        "downsample_padding": (1,),
        "mid_block_scale_factor": (1,),
        "mid_block_type": ("UNetMidBlock2DCrossAttn",),
        "only_cross_attention": (False, None),
        "mid_block_only_cross_attention": (False, None),
        "dual_cross_attention": (False, None),
        "num_attention_heads": (None,),
        "reverse_transformer_layers_per_block": (None,),
        "encoder_hid_dim": (None,),
        "encoder_hid_dim_type": (None,),
        "class_embed_type": (None,),
        "addition_embed_type": (None,),
        "num_class_embeds": (None,),
        "resnet_time_scale_shift": ("default",),
        "resnet_skip_time_act": (False, None),
        "resnet_out_scale_factor": (1, None),
        "time_embedding_type": ("positional",),
        "time_embedding_act_fn": (None,),
        "timestep_post_act": (None,),
        "time_cond_proj_dim": (None,),
        "attention_type": ("default",),
        "class_embeddings_concat": (False, None),
        "cross_attention_norm": (None,),
    }

    def _check(self, where: str):
        n = len(self.block_out_channels)
        _require(len(self.down_block_types) == n and len(self.up_block_types) == n, where,
                 f"{n} block_out_channels, {len(self.down_block_types)} down blocks, {len(self.up_block_types)} up blocks")
        for name, known in (
            ("down_block_types", ("CrossAttnDownBlock2D", "DownBlock2D")),
            ("up_block_types", ("CrossAttnUpBlock2D", "UpBlock2D")),
        ):
            for kind in getattr(self, name):
                if kind not in known:
                    raise _not_implemented(where, name, kind, known)
        _require(self.norm_eps > 0, where, f"norm_eps = {self.norm_eps} is not positive")
        for name in ("layers_per_block", "transformer_layers_per_block"):
            _require(max(self.per_block(name)) <= MAX_LAYERS, where, f"{name} is over {MAX_LAYERS}")
        for name in ("layers_per_block", "cross_attention_dim", "transformer_layers_per_block", "attention_head_dim"):
            _require(len(self.per_block(name)) == n, where, f"{name} needs one value for each of the {n} blocks")
        for channels, heads in zip(self.block_out_channels, self.per_block("attention_head_dim")):
            _require(channels % self.norm_num_groups == 0, where,
                     f"{channels} channels cannot be cut into norm_num_groups = {self.norm_num_groups}")
            _require(channels % heads == 0, where,
                     f"{channels} channels cannot be cut into {heads} heads (attention_head_dim is the number of heads)")
        _require(self.block_out_channels[0] % 2 == 0, where, "the first block needs an even width (sin and cos halves)")

    def per_block(self, name: str) -> tuple:
        """A field that may be one value or one for each block, as a tuple with one entry for each down block."""
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value,) * len(self.block_out_channels)

    @property
    def time_embed_dim(self) -> int:
        return self.time_embedding_dim or 4 * self.block_out_channels[0]


@dataclass(frozen=True)
class VAEConfig(_Config):
    """diffusers `AutoencoderKL`."""

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int | tuple[int, ...] = 32
    scaling_factor: float = 0.18215
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    _neutral = {
        "act_fn": ("silu", "swish"),
        "shift_factor": (None, 0),
        "latents_mean": (None,),
        "latents_std": (None,),
    }

    def _check(self, where: str):
        n = len(self.block_out_channels)
        _require(len(self.down_block_types) == n and len(self.up_block_types) == n, where,
                 f"{n} block_out_channels, {len(self.down_block_types)} down blocks, {len(self.up_block_types)} up blocks")
        for name, known in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            for kind in getattr(self, name):
                if kind != known:
                    raise _not_implemented(where, name, kind, (known,))
        _require(self.scaling_factor > 0, where, f"scaling_factor = {self.scaling_factor} is not positive")
        _require(self.layers_per_block <= MAX_LAYERS, where, f"layers_per_block is over {MAX_LAYERS}")
        for channels in self.block_out_channels:
            _require(channels % self.norm_num_groups == 0, where,
                     f"{channels} channels cannot be cut into norm_num_groups = {self.norm_num_groups}")

    @property
    def downscale(self) -> int:
        """Pixels per latent in each direction: 8 for every official model."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True)
class CLIPTextConfig(_Config):
    """transformers `CLIPTextModel`. The token ids of this file are wrong in official models and never read."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    _neutral = {"model_type": ("clip_text_model",), "hidden_act": ("quick_gelu", "gelu")}

    def _check(self, where: str):
        _require(self.num_hidden_layers <= MAX_LAYERS, where, f"num_hidden_layers is over {MAX_LAYERS}")
        _require(self.layer_norm_eps > 0, where, f"layer_norm_eps = {self.layer_norm_eps} is not positive")
        _require(self.hidden_size % self.num_attention_heads == 0, where,
                 f"hidden_size {self.hidden_size} cannot be cut into {self.num_attention_heads} heads")
