"""CLIP's text transformer: 77 token ids to 77 vectors that the UNet attends to.

Only wiring. There is no mask for the padding, in either family: every position that follows the prompt is read by the UNet too.
"""

import numpy as np

from ..backend import array_module, to_device
from ..errors import ContractError
from ..layers.attention import clip_layer
from ..layers.basic import embedding, layer_norm
from ..tracing import layer
from .model import Model


@layer
def embeddings(p, ids):
    """token + position.        ids [B, T] -> [B, T, C]        transformers `CLIPTextEmbeddings`"""
    positions = array_module(ids).arange(ids.shape[1], dtype="int64")[None]  # [1, T]
    return embedding(p.token_embedding, ids) + embedding(p.position_embedding, positions)


@layer
def encoder(p, x, hidden_states, *, heads, act, eps):
    """The stack of layers; the input of each one, and the last result, are pushed on `hidden_states`.

    x [B, T, C] -> [B, T, C]        transformers `CLIPEncoder`
    """
    hidden_states.append(x)
    for p_layer in p.layers:
        x = clip_layer(p_layer, x, heads=heads, act=act, eps=eps)
        hidden_states.append(x)
    return x


class CLIPTextModel(Model):
    """The text encoder of SD 1.x (ViT-L/14, 12 layers, quick GELU) and SD 2.x (OpenCLIP-H, 23 layers, GELU).

    >>> context = text_encoder(tokenizer("a red fox").input_ids)        # doctest: +SKIP
    """

    component = "text_encoder"

    def __call__(self, input_ids, clip_skip: int | None = None):
        """input_ids [B, T], T <= 77 -> last hidden state after the final layer norm [B, T, C]; clip_skip as in `encode_embeddings`."""
        ids = as_ids(input_ids)
        with self.running():
            return self.give_back(self._encode(self._embed(ids), clip_skip), ids)

    def embeddings(self, input_ids):
        """Token plus position embeddings, what the first layer reads.        [B, T] -> [B, T, C]"""
        ids = as_ids(input_ids)
        with self.running():
            return self.give_back(self._embed(ids), ids)

    def encode_embeddings(self, x, clip_skip: int | None = None):
        """Causal layers and final layer norm on embeddings of your own making.        [B, T, C] -> [B, T, C]

        `encode_embeddings(embeddings(ids))` is `__call__(ids)`, bit by bit. clip_skip n leaves the last n layers out, as in diffusers:
        hidden_states[−(n + 1)], then the final layer norm.
        """
        with self.running():
            h = self.take("embeddings", x, (None, None, self.config.hidden_size))
            return self.give_back(self._encode(h, clip_skip), x)

    def hidden_states(self, input_ids) -> list:
        """The embeddings and the result of every layer, before the final layer norm: num_hidden_layers + 1 arrays [B, T, C]."""
        ids = as_ids(input_ids)
        with self.running():
            return [self.give_back(h, ids) for h in self._layers(self._embed(ids))]

    def _embed(self, ids):
        limit = self.config.max_position_embeddings
        if ids.ndim != 2 or not 0 < ids.shape[1] <= limit:
            raise ContractError(f"input_ids has the shape {list(ids.shape)}", f"the model takes [B, T] with T from 1 to {limit}",
                                "tokenizer(prompt).input_ids gives such ids")  # fmt: skip
        return embeddings(self.params.text_model.embeddings, to_device(ids, self.device))

    def _encode(self, x, clip_skip: int | None):
        states = self._layers(x)
        if not 0 <= (clip_skip or 0) < len(states):
            raise ContractError(f"clip_skip is {clip_skip}", f"there are {len(states) - 1} layers", "0 leaves none of them out")
        return layer_norm(self.params.text_model.final_layer_norm, states[-(1 + (clip_skip or 0))], eps=self.config.layer_norm_eps)

    def _layers(self, x) -> list:
        c, states = self.config, []
        encoder(self.params.text_model.encoder, x, states, heads=c.num_attention_heads, act=c.hidden_act, eps=c.layer_norm_eps)
        return states

    @property
    def token_embedding(self):
        """[V, C]: row i is the vector of token i."""
        return self.params.text_model.embeddings.token_embedding.weight

    @property
    def position_embedding(self):
        """[77, C]: row i is added to the token at place i."""
        return self.params.text_model.embeddings.position_embedding.weight


def as_ids(input_ids):
    """Token ids as an array of integers."""
    return input_ids if hasattr(input_ids, "dtype") else np.asarray(input_ids, dtype="int64")
