"""Gradients by hand. Every function here has the name and the arguments of its forward form and returns `y, pullback`:

    pixels, pullback = vjp.decode(pipe.vae, z)
    dz = pullback(dpixels)                       # Jᵀ dpixels, J = dpixels/dz: a vector–Jacobian product

`pullback(dy)` gives the gradients of the array inputs, in argument order, as often as it is called. What it needs is kept in its closure
and nowhere else: the inputs of the norms, and q, k, v. Everything between two of them is made again on the way back, where it is asked for.

    ops/ layers/ models/    mirror minisd's own by file and name         docs/gradients.md    the derivations, memory and figures

    with vjp.parameter_gradients() as gradients: pullback(dy)            # those of the weights, under their names
"""

from .collect import parameter_gradients
from .models.clip_text import embeddings, encode_embeddings
from .models.unet import call as unet
from .models.vae import decode, encode

__all__ = ["decode", "embeddings", "encode", "encode_embeddings", "parameter_gradients", "unet"]
