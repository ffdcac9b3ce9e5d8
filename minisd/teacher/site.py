"""One module of the reference beside our model with the same weights, and the table of the layers that answer for modules.

Each function of the table is registered under the reference's class name. Its parameters behind `site` have the names of that class's
`forward` arguments, which tells a recorder what to keep. Images reach it as [B, H, W, C]; it returns an array or several.
"""

from dataclasses import dataclass

from ..config import VAEConfig
from ..models import vae
from ..models.model import Model
from ..params import Params

TABLE: dict = {}
OWN: dict = {}  # layers that are cut otherwise than in the reference, for our own traces


@dataclass(frozen=True)
class Site:
    """One module of the reference, by its path in `named_modules()`, and the model of ours that has the same weights."""

    model: Model
    path: str

    @property
    def p(self) -> Params:
        p = self.model.params.text_model if self.model.component == "text_encoder" else self.model.params
        for part in self.path.split(".") if self.path else ():
            p = getattr(p, part)
        return p

    @property
    def config(self):
        return self.model.config

    @property
    def in_vae(self) -> bool:
        return isinstance(self.config, VAEConfig)

    @property
    def heads(self) -> int:
        """The heads of this block: the config lists them downwards, and the up blocks mirror the list."""
        heads = self.config.per_block("attention_head_dim")
        where, _, rest = self.path.partition(".")
        if where == "mid_block":
            return heads[-1]
        return (heads if where == "down_blocks" else heads[::-1])[int(rest.split(".")[0])]

    @property
    def groups(self) -> int:
        return self.config.norm_num_groups

    @property
    def eps(self) -> float:
        """ε of the group norms in the resnets and at the end."""
        return vae.VAE_NORM_EPS if self.in_vae else self.config.norm_eps

    @property
    def clip(self) -> dict:
        c = self.config
        return dict(heads=c.num_attention_heads, act=c.hidden_act, eps=c.layer_norm_eps)


def answers_for(name: str, table: dict = TABLE):
    """Registers the decorated function under the reference's class name, or in OWN under ours."""

    def register(f):
        table[name] = f
        return f

    return register


def doubled(x) -> tuple:
    """(2H, 2W) of [B, H, W, C]."""
    return 2 * x.shape[1], 2 * x.shape[2]
