"""Into which tiles a product y [M, N] = A [M, K] B [K, N] on tensor cores is cut, and into how many parts its sum over K.

A tile is the work of one thread block (`kernels/mma_tile.cuh`). With as many blocks as multiprocessors one wave does everything; with ten more
the second wave is nearly empty and the product takes twice as long. Where there are fewer tiles than multiprocessors, the sum over K is
cut: each part of a tile is a block of its own, and a second kernel adds the parts.

    plan(8192, 320, 90, 132)      # 64 × 64 latents, 320 channels, both halves of guidance: (128×160, 1 part), 128 blocks
    print(convolutions(132))      # the plans for Stable Diffusion's UNet
"""

import math
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Tile:
    """Rows and columns of y that a block makes, and those of one warp in it."""

    BM: int
    BN: int
    WM: int
    WN: int
    slice_time: float  # of one slice of K, 128 × 160 = 1

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """The template arguments."""
        return self.BM, self.BN, self.WM, self.WN

    @property
    def threads(self) -> int:
        return self.BM // self.WM * (self.BN // self.WN) * 32

    def shared_bytes(self, *, by_k: bool) -> int:
        """Dynamic shared memory; by_k: B has rows of k."""
        return 2 * STAGES * (self.BM * (BK + PAD) + (BK * (self.BN + PAD) if by_k else self.BN * (BK + PAD)))

    def count(self, M: int, N: int) -> int:
        return math.ceil(M / self.BM) * math.ceil(N / self.BN)

    def __str__(self):
        return f"{self.BM}×{self.BN}"


STAGES, BK, PAD = 4, 32, 8  # as in mma_tile.cuh
# A slice costs its products, and the smaller a tile, the more bytes of shared memory for each of them: 1/BM + 1/BN.
SMALL, LARGE, WIDE = Tile(64, 64, 32, 32, 0.4), Tile(128, 128, 64, 32, 0.9), Tile(128, 160, 64, 40, 1.0)
TILES = (SMALL, LARGE, WIDE)

# Predicted, in the time of a 128 × 160 slice: 1.3 MFLOP, 0.5 µs on one of 132 multiprocessors that make 355 TFLOP/s together.
FILL = 5.0  # before the first slice is here, and to store the result
STORE = 1.0  # to move a byte for each of 128 × 160 numbers
LAUNCH = 5.0  # of another kernel
LIBRARY = 0.69  # of the time of our products is what cuBLAS takes: 514 TFLOP/s
MOST_PARTS = 32


def parts_of(slices: int, parts: int) -> tuple[int, int]:
    """(slices of each part, parts): the same number for all but the last, and no part without any."""
    each = math.ceil(slices / parts)
    return each, math.ceil(slices / each)


def predicted(tile: Tile, parts: int, M: int, N: int, slices: int, processors: int) -> float:
    """The time of a product: its waves of blocks, and for more than one part the second kernel."""
    blocks = tile.count(M, N) * parts
    time = math.ceil(blocks / processors) * (parts_of(slices, parts)[0] * tile.slice_time + FILL)
    if parts == 1:
        return time
    return time + LAUNCH + 8 * STORE * blocks * tile.BM * tile.BN / (128 * 160) / processors  # sums in float32, written and read


NOTHING, BIAS, SKIP = 0, 4, 6  # bytes a number to add it behind a product: y is read and written again, a skip read (a bias with it is free)


def predicted_library(M: int, N: int, K: int, processors: int, added: int) -> float:
    """The time of the product by cuBLAS, which leaves no multiprocessor idle, and of the pass behind it that adds a bias or a skip."""
    share = M * N / (128 * 160) / processors
    return LIBRARY * share * K / BK + FILL + (LAUNCH + STORE * share * added if added else 0.0)


@cache
def plan(M: int, N: int, slices: int, processors: int, *, most_parts: int = MOST_PARTS) -> tuple[Tile, int]:
    """The tile and the number of parts with the least predicted time; of equal ones the largest tile and the fewest parts."""
    choices = [(tile, parts) for tile in reversed(TILES) for parts in range(1, min(most_parts, slices) + 1)]
    return min(choices, key=lambda choice: predicted(*choice, M, N, slices, processors))


def describe(tile: Tile, parts: int, M: int, N: int, processors: int) -> str:
    """A plan in words."""
    tiles = tile.count(M, N)
    cut = "" if parts == 1 else f" in {parts} parts are {tiles * parts} blocks"
    return f"{tiles} tiles of {tile}{cut} for {processors} multiprocessors"


LEVELS = ((64, 320), (32, 640), (16, 1280), (8, 1280))  # (side, channels) of the UNet of SD 1.x and 2.x at 512 × 512
IMAGES = 2  # both halves of guidance


def convolutions(processors: int) -> str:
    """The plans of the UNet's 3 × 3 convolutions on a GPU with so many multiprocessors, and their predicted gain, as a table in Markdown."""
    lines = ["| pixels | channels | tile | tiles | parts | blocks | predicted time, uncut = 1 |", "|---|---:|---|---:|---:|---:|---:|"]
    for side, C in LEVELS:
        size = (IMAGES * side * side, C, 9 * math.ceil(C / BK), processors)
        tile, parts = plan(*size)
        tiles = tile.count(*size[:2])
        gain = predicted(tile, parts, *size) / predicted(*plan(*size, most_parts=1), *size)
        lines.append(f"| {IMAGES} · {side}×{side} | {C} | {tile} | {tiles} | {parts} | {tiles * parts} | {gain:.2f} |")
    return "\n".join(lines) + "\n"


# How many times C it sums, and what is added.
LINEAR = {"q, k, v": (1, NOTHING), "in front of a transformer": (1, BIAS), "behind attention": (1, SKIP), "feed-forward, second": (4, SKIP)}


def products(processors: int) -> str:
    """The predicted times of the UNet's linear layers, mma / cuBLAS with its pass, the less in bold, as a table in Markdown."""
    lines = [f"| pixels | {' | '.join(LINEAR)} |", f"|---|{'---:|' * len(LINEAR)}"]
    for side, C in LEVELS:
        cells = []
        for factor, added in LINEAR.values():
            size = (IMAGES * side * side, C, factor * C // BK, processors)
            own, library = predicted(*plan(*size, most_parts=1), *size), predicted_library(*size[:2], factor * C, processors, added)
            cells.append(f"**{own:.0f}** / {library:.0f}" if own <= library else f"{own:.0f} / **{library:.0f}**")
        lines.append(f"| {IMAGES} · {side}×{side} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
