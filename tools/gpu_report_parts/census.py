"""The convolutions of one UNet step, counted: from the names and shapes of its weights, and the sizes that the blocks have."""

import re
from collections import Counter

CUT = {"down": lambda i: 64 >> i, "up": lambda i: 8 << i}  # the side of a block's images, 512 × 512 pixels


def side_of(name: str, stride: int) -> int:
    """The side of the images that a convolution reads; for the one behind a doubling, of the doubled image."""
    block = re.match(r"(down|up)_blocks\.(\d)", name)
    side = CUT[block[1]](int(block[2])) if block else 8 if name.startswith("mid_block") else 64
    return 2 * side if "upsamplers" in name else side


def convolutions(kernel: int = 3) -> Counter:
    """{the numbers of a `Call` of conv2d: how many times} for Stable Diffusion 1.5 with both halves of guidance."""
    from minisd.checkpoint import component_shapes
    from minisd.config import UNetConfig

    counted: Counter = Counter()
    for name, shape in component_shapes(UNetConfig(cross_attention_dim=768, attention_head_dim=8)).items():
        if len(shape) == 4 and shape[2] == kernel:
            stride = 2 if "downsamplers" in name else 1
            counted[2, side_of(name, stride), shape[1], shape[0], kernel, stride] += 1
    return counted
