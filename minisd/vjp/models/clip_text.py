"""CLIP's text transformer, backwards: from the vectors that the UNet reads to the embeddings of the tokens."""

from ...backend import array_module
from ...models.model import expect_input
from ..layers.attention import clip_layer
from ..layers.basic import embedding, layer_norm
from ..wiring import Chain, expect_host, public


def encoder(p, x, *, heads, act, eps):
    """x [B, T, C] -> y [B, T, C]"""
    steps = Chain(x)
    for p_layer in p.layers:
        steps.then(clip_layer, p_layer, heads=heads, act=act, eps=eps)
    return steps.y, steps.pullback


def embeddings(text_encoder, ids):
    """`text_encoder.embeddings`, backwards: whole ids have no gradient, but both tables have, for `parameter_gradients()`.

    ids [B, T] -> y [B, T, C]; pullback(dy) -> None
    """
    expect_host(text_encoder)
    p = text_encoder.params.text_model.embeddings
    tokens, pull_tokens = embedding(p.token_embedding, ids)
    positions, pull_positions = embedding(p.position_embedding, array_module(ids).arange(ids.shape[1], dtype="int64"))

    def pullback(dy):
        pull_tokens(dy)
        pull_positions(dy.sum(axis=0))

    return public(tokens + positions, pullback)


def encode_embeddings(text_encoder, x):
    """`text_encoder.encode_embeddings`, backwards: the gradient that learning a word follows.

    x [B, T, C], tokens plus positions -> context [B, T, C]; pullback(dcontext) -> dx
    """
    expect_host(text_encoder)
    c, p = text_encoder.config, text_encoder.params.text_model
    expect_input(text_encoder, "embeddings", x, (None, None, c.hidden_size))
    steps = Chain(x)
    steps.then(encoder, p.encoder, heads=c.num_attention_heads, act=c.hidden_act, eps=c.layer_norm_eps)
    steps.then(layer_norm, p.final_layer_norm, eps=c.layer_norm_eps)
    return public(steps.y, steps.pullback)
