"""Measuring the ladders: calls at the shapes of Stable Diffusion, what they cost at least, and how long each rung takes. No model is involved."""
