"""How the UNet learns which step it is at, backwards."""

from .. import ops
from .basic import linear


def time_embedding(p, t_sin):
    """The three pullbacks in reverse order.        t_sin [B, C] -> t_emb [B, E]; pullback(dt_emb) -> dt_sin"""
    h, pull_1 = linear(p.linear_1, t_sin)
    h, pull_silu = ops.silu(h)
    t_emb, pull_2 = linear(p.linear_2, h)
    return t_emb, lambda dt_emb: pull_1(pull_silu(pull_2(dt_emb)))
