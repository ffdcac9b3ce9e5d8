"""Stable Diffusion from scratch in pure NumPy, tested layer by layer against diffusers."""

__version__ = "0.1.0"
