"""Which fields of a config contradict the weights? Shapes say it only indirectly, so it is asked the other way.

Change one field to what the weights suggest, derive all shapes again, and see whether more of them fit. The change after
which most fit is the field at fault. Repeat until nothing gets better.
"""

from collections import Counter
from dataclasses import replace

from .shapes import Shapes, component_shapes

WIDTHS = (
    "in_channels", "out_channels", "latent_channels", "block_out_channels", "cross_attention_dim",
    "conv_in_kernel", "conv_out_kernel", "time_embedding_dim",
    "hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings",
)  # fmt: skip
COUNTS = ("layers_per_block", "transformer_layers_per_block", "num_hidden_layers")
FLAGS = ("use_linear_projection", "mid_block_add_attention", "use_quant_conv", "use_post_quant_conv")
# Limits, so that no file can make the search long.
MOST_FIELDS = 4
MOST_VALUES = 32
MOST_NAMES = 5000


def contradictions(config, have: Shapes) -> list[tuple]:
    """(field, its value in the config, the value that the weights suggest), the most telling first.

    have: {official name: shape} of the weights. Empty if no few fields explain the difference.
    """
    if len(have) > MOST_NAMES:
        return []
    first, found = distance(config, have), []
    now = first
    while now and len(found) < MOST_FIELDS:
        trials = [
            (distance(replace(config, **{field: value}), have), field, value)
            for field, value in alternatives(config, have)
        ]
        best, field, value = min(trials, key=lambda trial: trial[0], default=(now, None, None))
        if best >= now:
            break
        found.append((field, getattr(config, field), value))
        config, now = replace(config, **{field: value}), best
    return found if 2 * now <= first else []


def distance(config, have: Shapes) -> int:
    """How many tensors are missing, unexpected or of another shape."""
    want = component_shapes(config)
    common = want.keys() & have.keys()
    return len(want.keys() ^ have.keys()) + sum(want[name] != have[name] for name in common)


def alternatives(config, have: Shapes):
    """(field, other value) for every field that decides shapes, with values out of what does not fit."""
    want = component_shapes(config)
    strange = Counter(n for name, shape in have.items() if want.get(name) != shape for n in shape)
    widths = [n for n, _ in strange.most_common(MOST_VALUES)]
    numbers = {int(part) for name in have for part in name.split(".") if part.isdecimal() and len(part) < 3}
    # Layers 0 … 11 are 12; but an up block has one more layer than the config says.
    counts = sorted(numbers | {n + 1 for n in numbers})
    for field in (*WIDTHS, *COUNTS, *FLAGS):
        if not hasattr(config, field):
            continue
        value = getattr(config, field)
        for new in (not value,) if field in FLAGS else counts if field in COUNTS else widths:
            if isinstance(value, tuple):
                yield from ((field, tuple(new if v == old else v for v in value)) for old in dict.fromkeys(value))
            elif new != value:
                yield field, new
