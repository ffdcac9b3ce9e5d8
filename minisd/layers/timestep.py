"""How the UNet learns which step it is at."""

from .. import ops
from ..tracing import layer
from .basic import linear
from .ready import Ready


@layer
def time_embedding(p, t_sin):
    """linear → SiLU → linear on the sinusoidal embedding.

    t_sin [B, C] -> t_emb [B, E]        diffusers `TimestepEmbedding`
    """
    return linear(p.linear_2, ops.silu(linear(p.linear_1, t_sin)))


def time_projection(p, t_emb, rows):
    """linear(SiLU(t_emb)): what a resnet adds to every pixel of its image; made before the loop where the schedule is known.

    t_emb [B, E], or Ready -> [rows, C′], the first `rows` of B: half of them where the two halves of guidance are still one
    """
    y = t_emb[p] if isinstance(t_emb, Ready) else linear(p, ops.silu(t_emb))
    return y[:rows]
