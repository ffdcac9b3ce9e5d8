"""Pictures of what happens inside: latents, noise levels, prompt vectors, attention, schedules, every step of a run.

Everything returns PIL images, or SVG text for plots; nothing needs matplotlib. On the command line: `minisd plot`, `minisd … --frames`.
"""

from .attention import attention_picture, token_maps, word_maps
from .frames import frames, noise_levels
from .pictures import caption, diverging, embedding, grey, grid, hot, latent_channels
from .plot import line_plot, schedule_plot, schedule_table
from .preview import Preview, fit_preview

__all__ = [
    "Preview", "attention_picture", "caption", "diverging", "embedding", "fit_preview", "frames", "grey", "grid", "hot", "latent_channels",
    "line_plot", "noise_levels", "schedule_plot", "schedule_table", "token_maps", "word_maps",
]  # fmt: skip
