"""Random numbers live against torch and diffusers: every bit, whatever the shape, dtype and order of the calls."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
torch_utils = pytest.importorskip("diffusers.utils.torch_utils")

from minisd import rng  # noqa: E402

DTYPES = ("float16", "float32", "float64")
pytestmark = [
    pytest.mark.reference,
    pytest.mark.skipif(
        torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
        reason="torch takes other functions for ln, sin and cos on this CPU and differs in the last bits",
    ),
]


def theirs(method, generator, shape, dtype):
    return getattr(torch, method)(shape, generator=generator, dtype=getattr(torch, dtype)).numpy()


def assert_same_bits(ours, reference):
    assert ours.dtype == reference.dtype and ours.shape == reference.shape
    different = np.flatnonzero(ours.reshape(-1).view(np.uint8) != reference.reshape(-1).view(np.uint8)) // ours.itemsize
    assert different.size == 0, (
        f"{np.unique(different).size} of {ours.size} differ, first at {different[0]}: "
        f"{ours.flat[different[0]]!r} instead of {reference.flat[different[0]]!r}"
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["randn", "rand"])
def test_every_small_size(method, dtype):
    for n in [*range(70), 127, 1000, 4095]:
        for seed in (0, 32, 2**40 + 3):
            reference = theirs(method, torch.Generator().manual_seed(seed), (n,), dtype)
            assert_same_bits(getattr(rng.Generator(seed), method)(n, dtype), reference)


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (0, 4), (1, 4, 64, 64), (4, 4, 96, 96), (2, 4, 13, 7), (1, 3, 256, 256)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes(shape, dtype):
    for seed in (1, 123456789):
        reference = theirs("randn", torch.Generator().manual_seed(seed), shape, dtype)
        assert_same_bits(rng.Generator(seed).randn(shape, dtype), reference)


def test_four_million_values():
    for seed in range(4):
        assert_same_bits(
            rng.Generator(seed).randn(2**20 + 5), theirs("randn", torch.Generator().manual_seed(seed), (2**20 + 5,), "float32")
        )


def test_a_radius_of_zero():
    """Values 187 985 and 187 993 of seed 1117 have u = 0: r = 0, and a cosine below zero."""
    reference = theirs("randn", torch.Generator().manual_seed(1117), (188_000,), "float32")
    assert reference[187_985] == 0 and reference[187_993] == 0
    assert_same_bits(rng.Generator(1117).randn(188_000), reference)


@pytest.mark.parametrize("script", range(20))
def test_a_random_sequence_of_calls(script):
    """One generator, forty calls of random method, size and dtype, with states taken and returned to on the way."""
    choose = np.random.default_rng(script)
    ours, reference = rng.Generator(script), torch.Generator().manual_seed(script)
    states = ours.get_state(), reference.get_state()
    for _ in range(40):
        method = choose.choice(["randn", "randn", "randn", "rand"])
        n = int(choose.choice([choose.integers(0, 16), choose.integers(16, 200)]))
        dtype = str(choose.choice(DTYPES))
        assert_same_bits(getattr(ours, method)(n, dtype), theirs(method, reference, (n,), dtype))
        if choose.random() < 0.1:
            states = ours.get_state(), reference.get_state()
        if choose.random() < 0.1:
            ours.set_state(states[0])
            reference.set_state(states[1])


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1, -1, -5, -(2**63)])
def test_seeds(seed):
    reference = torch.Generator().manual_seed(seed)
    assert rng.Generator(seed).initial_seed() == reference.initial_seed()
    assert_same_bits(rng.Generator(seed).randn(40), theirs("randn", reference, (40,), "float32"))


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 1.5, True, "3"])
def test_torch_refuses_the_seeds_that_we_refuse(seed):
    with pytest.raises((ValueError, RuntimeError)):
        torch.Generator().manual_seed(seed)
    with pytest.raises(ValueError, match="seed must be"):
        rng.Generator(seed)


def test_an_unseeded_generator():
    assert rng.Generator().initial_seed() == torch.Generator().initial_seed()
    assert_same_bits(rng.Generator().randn(40), theirs("randn", torch.Generator(), (40,), "float32"))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_randn_is_diffusers_randn_tensor(count, dtype):
    """A list of generators image by image, a list of one as that one; each goes on from call to call."""
    ours = [rng.Generator(seed) for seed in range(count)]
    reference = [torch.Generator().manual_seed(seed) for seed in range(count)]
    for shape in [(3, 4, 8, 8), (3, 1, 3, 3), (3, 4, 5, 5)]:
        expected = torch_utils.randn_tensor(shape, generator=reference, dtype=getattr(torch, dtype)).numpy()
        assert_same_bits(rng.randn(shape, ours, dtype), expected)
