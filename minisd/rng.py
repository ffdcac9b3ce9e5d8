"""Random numbers: torch's CPU generator in NumPy, so that a seed gives the same latents here as in diffusers.

How `torch.randn` makes n normals on a CPU (ATen/native/cpu/DistributionTemplates.h, `normal_fill`):

1. A Mersenne Twister, seeded with the seed mod 2³², gives 32-bit words: NumPy's RandomState, whose stream is frozen.
2. The low 24 bits of a word are a uniform u = bits · 2⁻²⁴ in [0, 1), one for each of the n values.
3. Box-Muller turns two uniforms into two normals. In a block of 16, lane j = 0…7 pairs with lane j + 8:
       r = √(−2 ln(1 − u[j])),   θ = 2π u[j + 8],   x[j] = r cos θ,   x[j + 8] = r sin θ.
4. If 16 does not divide n, the last 16 values, most of them already made, are drawn again from 16 fresh uniforms.

For float32, torch's AVX2 code takes ln, sin and cos from polynomials of the Cephes library, each product and sum fused
(rounded once). Better functions would change the last bits of one value in seven, so the same polynomials are evaluated
here and the fused step is emulated in float64: the result equals torch's to the last bit on x86 machines with AVX2.
torch itself differs by a few units in the last place without AVX2 or on ARM: no answer is exact for every machine.
float64 takes 53-bit uniforms and the C library's functions; float16 is float32, rounded at the end.

Fewer than 16 values come from another algorithm (pytorch issue 80202): one by one, in float64 from 53-bit uniforms, the
second normal of a pair waiting in the generator for the next such call. So seed 0 begins with 1.5410 for n = 15 and
with −1.1258 for n = 16.

Latents have 4 · H · W values, a multiple of 16 for even H and W: a batch is then its single draws one after another.
`PhiloxGenerator` draws as torch does on a CUDA device, `NumpyGenerator` as NumPy does; `randn` is diffusers'
`randn_tensor`.
"""

import copy
import math
import operator
import secrets

import numpy as np

from .errors import UsageError

DEFAULT_SEED = 67280421310721  # of a torch.Generator that nobody has seeded
LANES = 16


def randn(shape, generator=None, dtype="float32"):
    """Standard normals, as diffusers draws latents and noise.

    shape, generator, dtype -> [*shape] of dtype float16, float32 or float64
    generator: one for the whole batch; or a list of shape[0], image i then being what its own generator draws alone;
    or an int, the seed of a torch CPU generator; or None, a fresh seed.          diffusers `randn_tensor`
    """
    if isinstance(generator, (list, tuple)):
        if len(generator) == 1:
            return randn(shape, generator[0], dtype)
        sizes = _sizes(shape)
        batch = sizes[0] if sizes else 1
        if len(generator) != batch or batch == 0:
            raise UsageError(
                f"{len(generator)} generators for a batch of {batch}",
                f"shape {sizes} is drawn image by image, each from a generator of its own",
                f"pass {batch} generators, or a single one for the whole batch",
            )
        return np.concatenate([randn((1, *sizes[1:]), g, dtype) for g in generator])
    if not isinstance(generator, RandomSource):
        generator = make_generator(generator)
    return generator.randn(shape, dtype)


def make_generator(seed=None, kind="torch-cpu"):
    """A generator of kind torch-cpu (as in diffusers, ComfyUI), philox (as in A1111) or numpy; None is a fresh seed."""
    kinds = {"torch-cpu": Generator, "philox": PhiloxGenerator, "numpy": NumpyGenerator}
    if kind not in kinds:
        raise UsageError(f"no random generator of kind {kind!r}", "", f"choose one of {', '.join(kinds)}")
    return kinds[kind](fresh_seed() if seed is None else seed)


def fresh_seed():
    """A seed 0 … 2³² − 1 from the operating system's entropy."""
    return secrets.randbits(32)


class RandomSource:
    """What every generator can do. A kind adds `_start()`, `_normals(n, dtype)` and `_uniforms(n, float32 or float64)`."""

    DTYPES = ("float16", "float32", "float64")

    def __init__(self, seed=DEFAULT_SEED):
        self.manual_seed(seed)

    def manual_seed(self, seed):
        """Begin the stream of seed 0 … 2⁶⁴ − 1 (−1 … −2⁶³ count down from 2⁶⁴, as in torch); returns self."""
        self._seed = _seed64(seed)
        self._start()
        return self

    def initial_seed(self):
        return self._seed

    def randn(self, shape, dtype="float32"):
        """Standard normals [*shape]."""
        sizes, dtype = _sizes(shape), self._dtype(dtype)
        return self._normals(math.prod(sizes), dtype).reshape(sizes)

    def rand(self, shape, dtype="float32"):
        """Uniforms in [0, 1) [*shape]; float16 is float32 rounded, and as in torch 0 where it would round to 1."""
        sizes, dtype = _sizes(shape), self._dtype(dtype)
        u = self._uniforms(math.prod(sizes), np.promote_types(dtype, np.float32)).astype(dtype)
        return np.where(u == 1, dtype.type(0), u).reshape(sizes)

    def get_state(self):
        """Where the stream is, for `set_state` to come back to."""
        return copy.deepcopy(self)

    def set_state(self, state):
        if type(state) is not type(self):
            raise UsageError(
                f"a {type(self).__name__} cannot take the state of a {type(state).__name__}",
                "each kind of generator has a stream of its own",
                "pass what get_state() of the same kind returned",
            )
        vars(self).update(vars(copy.deepcopy(state)))

    def _dtype(self, dtype):
        name = getattr(dtype, "__name__", str(dtype))  # of np.float32, "float32" and np.dtype("float32") alike
        if name not in self.DTYPES:
            raise UsageError(
                f"{type(self).__name__} does not draw {name}",
                f"it follows a source that draws {', '.join(self.DTYPES)}",
                "draw float32 and convert the array",
            )
        return np.dtype(name)


class Generator(RandomSource):
    """torch's CPU generator: the same bits as `torch.randn` and `torch.rand` on x86, call after call, in every dtype.

    Only the low 32 bits of the seed matter, as in torch.
    """

    def _start(self):
        self._twister = np.random.RandomState(self._seed % 2**32)
        self._waiting = None  # the second normal of a pair made by _next_normal

    def _uniforms(self, n, dtype):
        """The low bits of one word or of two, as many as the dtype's significand holds: each u exact, none 1."""
        if dtype == np.float32:
            return ((self._words(n) & (2**24 - 1)) * 2.0**-24).astype(np.float32)
        high, low = self._words(2 * n).astype(np.uint64).reshape(n, 2).T
        return ((high << 32 | low) & (2**53 - 1)) * 2.0**-53

    def _words(self, n):
        return self._twister.randint(2**32, size=n, dtype=np.uint32)

    def _normals(self, n, dtype):
        work = np.promote_types(dtype, np.float32)
        if n < LANES:
            return np.array([self._next_normal() for _ in range(n)], np.float64).astype(work).astype(dtype)
        whole = n - n % LANES
        u = self._uniforms(whole if dtype == np.float16 else n, work)  # float16 skips uniforms that the tail redraws
        x = np.empty(n, work)
        x[:whole] = _box_muller16(u[:whole])
        if whole < n:
            x[-LANES:] = _box_muller16(self._uniforms(LANES, work))
        return x.astype(dtype, copy=False)

    def _next_normal(self):
        """r cos θ, while r sin θ waits for the next call. Unlike in the blocks, the first uniform is the angle."""
        if self._waiting is not None:
            x, self._waiting = self._waiting, None
            return x
        u1, u2 = self._uniforms(2, np.dtype(np.float64)).tolist()
        r, theta = math.sqrt(-2 * math.log1p(-u2)), 2 * math.pi * u1
        self._waiting = r * math.sin(theta)
        return r * math.cos(theta)


def _box_muller16(u):
    """Uniforms [16 m] -> normals [16 m] of the same dtype: lane j of a block of 16 pairs with lane j + 8."""
    u = u.reshape(-1, 2, LANES // 2)
    v = 1 - u[:, 0]  # in (0, 1]: no ln 0
    theta = 2 * math.pi * u[:, 1]
    if u.dtype == np.float32:
        ln, (sin, cos) = _ln_cephes(v), _sincos_cephes(theta)
    else:
        ln, sin, cos = _ln_libm(v), _sin_libm(theta), _cos_libm(theta)
    r = np.sqrt(-2 * ln)
    return np.stack([r * cos, r * sin], axis=1).reshape(-1) + 0.0  # torch adds the mean: −0 becomes 0


# ----- ln, sin, cos as torch rounds them: Cephes `logf` and `sinf`, in the order and fusing of ATen's avx_mathfun.h --


def _float32(*values):
    return [np.float32(v) for v in values]


SQRT_HALF, LN2_LOW, LN2_HIGH = _float32(0.5**0.5, -2.12194440e-4, 0.693359375)
LN_TERMS = _float32(7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
                    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)  # fmt: skip
SIN_TERMS = _float32(-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COS_TERMS = _float32(2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
QUARTER_PI = _float32(0.78515625, 2.4187564849853515625e-4, 3.77489497744594108e-8)  # π/4 = high + middle + low


def _fma(a, b, c):
    """a · b + c in float32, rounded once: the product is exact in float64.

    The sum is rounded twice, to float64 and to float32; that has not changed one of 7 · 10⁸ normals compared with torch.
    """
    return (np.multiply(a, b, dtype=np.float64) + c).astype(np.float32)


def _horner(x, terms):
    """c₀ xⁿ + c₁ xⁿ⁻¹ + … + cₙ, every step fused."""
    y = terms[0]
    for c in terms[1:]:
        y = _fma(y, x, c)
    return y


def _ln_cephes(x):
    """ln x = f − f²/2 + f³ P(f) + e ln 2 for float32 x = 2ᵉ (1 + f) > 0 with √½ ≤ 1 + f < √2; ln 2 in two parts."""
    m, e = np.frexp(x)  # ½ ≤ m < 1
    low = m < SQRT_HALF
    f = (m - 1) + np.where(low, m, 0)
    e = (e - low).astype(np.float32)
    f2 = f * f
    y = _fma(_horner(f, LN_TERMS) * f, f2, e * LN2_LOW) - 0.5 * f2
    return _fma(e, LN2_HIGH, f + y)


def _sincos_cephes(theta):
    """(sin θ, cos θ) of float32 θ ≥ 0 from θ = q π/2 + x, |x| ≤ π/4, with q whole.

    sin x = x + x³ S(x²),   cos x = 1 − x²/2 + x⁴ C(x²);   an odd q exchanges the two, and q mod 4 has the signs.
    """
    q = ((theta * (4 / math.pi)).astype(np.int32) + 1) // 2
    x = theta
    for part in QUARTER_PI:
        x = _fma(2 * q, -part, x)
    x2 = x * x
    sin = _fma(_horner(x2, SIN_TERMS) * x2, x, x)
    cos = _fma(_horner(x2, COS_TERMS) * x2, x2, -0.5 * x2) + 1
    odd = q % 2 == 1
    sin, cos = np.where(odd, cos, sin), np.where(odd, sin, cos)
    return np.where(q & 2, -sin, sin), np.where((q + 1) & 2, -cos, cos)


# float64 asks the C library, as torch does: NumPy's vectorised functions differ from it in the last bit of some values.
_ln_libm, _sin_libm, _cos_libm = (np.vectorize(f, otypes=[np.float64]) for f in (math.log, math.sin, math.cos))


# ----- The other kinds ------------------------------------------------------------------------------------------------


class PhiloxGenerator(RandomSource):
    """What torch draws on a CUDA device (A1111's random source "NV"), to about 1e-6: a GPU's fast sine is no better.

    Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") hashes a counter, so that each
    element is drawn by itself. Element i of call k is, in float32 as in cuRAND's Box-Muller,
        w = philox(counter = (k, 0, i, 0), key = (seed mod 2³², seed div 2³²)),
        u = w₀ 2⁻³² + 2⁻³³,   θ = 2π (w₁ 2⁻³² + 2⁻³³),   x = √(−2 ln u) sin θ.
    So torch does while the GPU has a thread for each element (2048 per multiprocessor on large ones: enough for latents);
    beyond that torch's values depend on the GPU (pytorch issue 87992), and these are the values of one large enough.
    """

    DTYPES = ("float16", "float32")

    def _start(self):
        self._calls = 0

    def _uniforms(self, n, dtype):
        return _fma(self._words(n)[0], 2.0**-32, 2.0**-33)  # in (0, 1]; `rand` makes 1 a 0, as torch does

    def _normals(self, n, dtype):
        w0, w1 = self._words(n)
        u = _fma(w0, 2.0**-32, 2.0**-33)
        theta = _fma(w1, TWO_PI_32, TWO_PI_32 / 2)
        x = np.sqrt(-2 * np.log(u.astype(np.float64))) * np.sin(theta.astype(np.float64))
        return x.astype(np.float32).astype(dtype)

    def _words(self, n):
        """The first two words of each of n elements, in float32 as cuRAND reads them. An empty call does not count."""
        w0, w1, _, _ = _philox4x32((self._calls, 0, np.arange(n), 0), (self._seed % 2**32, self._seed >> 32))
        self._calls += n > 0
        return w0.astype(np.float32), w1.astype(np.float32)


TWO_PI_32 = float(np.float32(2 * math.pi) * np.float32(2.0**-32))


def _philox4x32(counter, key):
    """Ten rounds of Philox: a counter of 4 words, each a number or [n], and a key of 2 -> 4 words [n], uint64 < 2³²."""
    c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(c, np.uint64) for c in counter))
    k0, k1 = key
    low = 2**32 - 1
    for _ in range(10):
        p, q = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (q >> 32) ^ c1 ^ k0, q & low, (p >> 32) ^ c3 ^ k1, p & low
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    return c0, c1, c2, c3


class NumpyGenerator(RandomSource):
    """`np.random.default_rng(seed)`: its `standard_normal` and `random` in the asked dtype; float16 rounds float32."""

    def _start(self):
        self._rng = np.random.default_rng(self._seed)

    def _uniforms(self, n, dtype):
        return self._rng.random(n, dtype)

    def _normals(self, n, dtype):
        return self._rng.standard_normal(n, np.promote_types(dtype, np.float32)).astype(dtype)


# ----- Arguments ------------------------------------------------------------------------------------------------------


def _seed64(seed):
    try:
        value = operator.index(seed)
    except TypeError:
        value = None
    if value is None or isinstance(seed, bool) or not -(2**63) <= value < 2**64:
        raise UsageError(
            f"seed must be 0..2^64-1, not {seed!r}",
            "torch and minisd keep a seed in 64 bits",
            "pass a whole number in that range, such as 32, or a generator of minisd.rng",
        )
    return value % 2**64


def _sizes(shape):
    sizes = tuple(operator.index(n) for n in shape) if np.iterable(shape) else (operator.index(shape),)
    if any(n < 0 for n in sizes):
        raise UsageError(f"negative size in shape {sizes}", "", "every size is 0 or more")
    return sizes
