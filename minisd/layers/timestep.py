"""How the UNet learns which step it is at."""

from .. import ops
from ..tracing import layer
from .basic import linear


@layer
def time_embedding(p, t_sin):
    """linear → SiLU → linear on the sinusoidal embedding.

    t_sin [B, C] -> t_emb [B, E]        diffusers `TimestepEmbedding`
    """
    return linear(p.linear_2, ops.silu(linear(p.linear_1, t_sin)))
