"""Teacher forcing: any layer of a model computed on inputs that were recorded elsewhere, so that its error is its own.

    y = replay(model, row, trace_file.__getitem__)        # one call of one layer that a trace recorded

One table, TABLE, says which layer of ours answers for which module of diffusers and transformers (`layers.py`, `models.py`); `names.py`
translates what our own traces call a layer and its arguments.
"""

from .names import NOT_LAYERS, OUR_CUTS, OURS, OURS_ELSEWHERE, reference_class, reference_names
from .replay import PUBLIC, compute, input_names, replay
from .site import OWN, TABLE, Site

__all__ = ["NOT_LAYERS", "OURS", "OURS_ELSEWHERE", "OUR_CUTS", "OWN", "PUBLIC", "Site", "TABLE", "compute", "input_names", "reference_class",
           "reference_names", "replay"]  # fmt: skip
