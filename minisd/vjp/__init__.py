"""Gradients by hand. Every function here has the name and the arguments of its forward form and returns `y, pullback`:

    pixels, pullback = vjp.decode(pipe.vae, z)
    dz = pullback(dpixels)                       # Jᵀ dpixels, J = dpixels/dz: a vector–Jacobian product

`pullback(dy)` gives the gradients of the array inputs, in argument order. What it needs is kept in the closure and nowhere else; inside a
network that is the inputs of each resnet and each transformer, which compute themselves again on the way back (`wiring.recompute`).

    ops/ layers/ models/    mirror minisd's own by file and name         docs/gradients.md    the derivations, memory and figures

    with vjp.parameter_gradients() as gradients: pullback(dy)            # those of the weights, under their names
"""

from .collect import parameter_gradients
from .models.clip_text import embeddings, encode_embeddings
from .models.unet import call as unet
from .models.vae import decode, encode

__all__ = ["decode", "embeddings", "encode", "encode_embeddings", "parameter_gradients", "unet"]
