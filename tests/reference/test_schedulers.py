"""DDIM, LMS and PNDM against diffusers, live; the golden file of the plain tests is recorded here, and checked to be what it was.

`python -m tests.reference.test_schedulers` writes tests/golden/schedulers.json.xz anew.
"""

import hashlib
import inspect
import itertools
import json
import lzma
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from minisd import schedulers as ours  # noqa: E402
from minisd.rng import Generator  # noqa: E402
from minisd.schedulers.settings import KNOWN_SETTINGS  # noqa: E402

from ..numerics import assert_close_f64, assert_faithful, max_error  # noqa: E402

pytestmark = [
    pytest.mark.reference,
    pytest.mark.filterwarnings("ignore"),  # diffusers turns tensors into arrays in ways that NumPy deprecates
]

GOLDEN = Path(__file__).parents[1] / "golden"
CLASSES = ("DDIMScheduler", "LMSDiscreteScheduler", "PNDMScheduler")
SHORT = dict(zip(("DDIM", "LMS", "PNDM"), CLASSES))
PREDICTIONS = ("epsilon", "v_prediction", "sample")
BOTH_HAVE = [(s, p) for s in SHORT for p in PREDICTIONS if (s, p) != ("PNDM", "sample")]  # diffusers' PNDM refuses "sample"
SPACINGS = ("leading", "linspace", "trailing")
SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
VARIANTS = {
    "DDIM": ({"clip_sample": False}, {"clip_sample": True, "set_alpha_to_one": False}, {"thresholding": True, "sample_max_value": 1.5}),
    "LMS": ({}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}),
    "PNDM": ({"skip_prk_steps": True}, {"skip_prk_steps": False, "set_alpha_to_one": True}),
}


# ---- running both ----------------------------------------------------------------------------------------------------------


def toy_model(x, t):
    """0.3·x + 0.2·sin(0.01·t + i), i the flat index: the model of the golden runs, for tensors and arrays, in their dtype."""
    wave = 0.2 * np.sin(0.01 * float(t) + np.arange(np.prod(x.shape)).reshape(x.shape))
    return 0.3 * x + (torch.tensor(wave, dtype=x.dtype) if isinstance(x, torch.Tensor) else wave.astype(x.dtype))


def run(scheduler, x, timesteps=None, **options):
    """Every x of a run: [steps + 1, *x.shape]."""
    trajectory = [x]
    for t in scheduler.timesteps if timesteps is None else timesteps:
        output = toy_model(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(output, t, x, **options).prev_sample
        trajectory.append(x)
    return np.stack([np.asarray(x) for x in trajectory])


def start(shape=(1, 4, 6, 4)):
    return 1.5 * np.cos(1.7 * np.arange(np.prod(shape), dtype=np.float64)).reshape(shape)


def in_float64(reference):
    """diffusers' scheduler with float64 tables of the same values: its coefficients, and so its float64 run, become the truth."""
    reference.alphas_cumprod = reference.alphas_cumprod.double()
    if hasattr(reference, "final_alpha_cumprod"):
        reference.final_alpha_cumprod = torch.as_tensor(reference.final_alpha_cumprod).double()
    if hasattr(reference, "sigmas"):
        reference.sigmas = reference.sigmas.double()
    return reference


def both(short, n, **settings):
    """The same scheduler twice. LMS gets diffusers' σ, equal up to the last bit, so that runs can be compared at 1e-10."""
    pair = [getattr(library, SHORT[short])(**settings) for library in (diffusers, ours)]
    for scheduler in pair:
        scheduler.set_timesteps(n)
    if short == "LMS":
        pair[1].sigmas, pair[1].timesteps = pair[0].sigmas.numpy().copy(), pair[0].timesteps.numpy().copy()
    return pair


def assert_same_run(short, n, name, settings, begin=0, **options):
    def runs(x):
        reference, mine = both(short, n, **settings)
        if x.dtype == np.float64:
            in_float64(reference)
        if begin and short == "LMS":
            reference.set_begin_index(begin)
        x = x * float(reference.init_noise_sigma)
        return run(reference, torch.tensor(x), reference.timesteps[begin:], **options), run(mine, x, mine.timesteps[begin:], **options)

    truth, mine64 = runs(start())
    plain, mine32 = runs(start().astype(np.float32))
    # Where √(1−ᾱ)/ᾱ is 1e5 (cosine schedule) the rounding of the first x is amplified as much, in float64 too.
    assert_close_f64(mine64, truth, name=name, tolerance=1e-10)
    return assert_faithful(mine32, truth, plain, name=name)


# ---- settings --------------------------------------------------------------------------------------------------------------


def test_signatures_are_diffusers():
    for name in CLASSES:
        mine, reference = (inspect.signature(getattr(library, name)).parameters for library in (ours, diffusers))
        defaults = {key: p.default for key, p in mine.items() if key != "compat"}
        assert defaults == {key: p.default for key, p in reference.items()}, name
        mine, reference = (inspect.signature(getattr(library, name).step).parameters for library in (ours, diffusers))
        expected = {key: p.default for key, p in reference.items() if key != "return_dict"}
        assert {key: p.default for key, p in mine.items()} == expected, name


def test_known_settings_are_all_of_diffusers():
    classes = diffusers.DDIMScheduler._get_compatibles()
    known = set().union(*(inspect.signature(c).parameters for c in classes if inspect.isclass(c))) - {"args", "kwargs"}
    assert KNOWN_SETTINGS == known | {"compat"}


OFFICIAL = json.loads((GOLDEN / "schedulers_configs.json").read_text())
GIVEN = {
    "none": {},
    "some": {"num_train_timesteps": 500, "beta_schedule": "scaled_linear", "steps_offset": 1},
    "default value given": {"timestep_spacing": "leading", "prediction_type": "v_prediction"},
    **OFFICIAL,
}


def comparable(config):
    config = {k: v for k, v in config.items() if k != "compat"}
    defaults = sorted(set(config.pop("_use_default_values", ())) - {"compat"})
    return config | {"_use_default_values": defaults}


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("route", list(itertools.product(SHORT, SHORT)), ids="-".join)
def test_from_config_hands_settings_on_as_diffusers(given, route):
    """A's config file -> A -> B -> A: each has diffusers' settings, timesteps and σ; configs pass between the libraries too."""
    first, second = (SHORT[short] for short in route)
    reference, mine = (getattr(library, first).from_config(dict(GIVEN[given])) for library in (diffusers, ours))
    for name in (first, second, first):
        crossed = getattr(ours, name).from_config(reference.config)
        back = getattr(diffusers, name).from_config(dict(mine.config))
        reference, mine = getattr(diffusers, name).from_config(reference.config), getattr(ours, name).from_config(mine.config)
        assert comparable(mine.config) == comparable(reference.config) == comparable(crossed.config)
        assert comparable(back.config) == comparable(reference.config)
        for scheduler in (reference, mine):
            scheduler.set_timesteps(15)
        assert_same_schedule(mine, reference)


def test_overrides_win():
    config = diffusers.PNDMScheduler.from_config(OFFICIAL["stable-diffusion-v1-5"]).config
    for name in CLASSES:
        mine, reference = (getattr(lib, name).from_config(config, timestep_spacing="trailing", beta_end=0.02) for lib in (ours, diffusers))
        assert comparable(mine.config) == comparable(reference.config)


# ---- tables and timesteps --------------------------------------------------------------------------------------------------


def assert_same_schedule(mine, reference):
    """Timesteps equal, except for karras and exponential σ (torch's root is off by an ulp: 1e-4 of a timestep); σ too."""
    expected = reference.timesteps.numpy()[: len(mine.timesteps)]
    fractional = mine.config.get("use_karras_sigmas") or mine.config.get("use_exponential_sigmas")
    np.testing.assert_allclose(mine.timesteps, expected, rtol=0, atol=2e-4 if fractional and expected.dtype == np.float32 else 0)
    assert mine.timesteps.dtype == expected.dtype
    if hasattr(reference, "sigmas"):
        expected = reference.sigmas.numpy()[[*range(len(mine.sigmas) - 1), -1]]
        np.testing.assert_array_max_ulp(mine.sigmas, expected, maxulp=3)
    assert abs(mine.init_noise_sigma / float(reference.init_noise_sigma) - 1) <= 2e-7
    assert isinstance(mine.init_noise_sigma, float)


@pytest.mark.parametrize("n", (1, 2, 3, 10, 50, 100, 1000, 1100, 4000))
def test_tables_are_torchs_to_the_last_bit(n):
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("torch's linspace is rounded differently without AVX2")
    for schedule, (low, high) in itertools.product(SCHEDULES, ((0.00085, 0.012), (1e-4, 0.02), (0.1, 0.01))):
        settings = {"num_train_timesteps": n, "beta_schedule": schedule, "beta_start": low, "beta_end": high}
        mine, reference = ours.DDIMScheduler(**settings), diffusers.DDIMScheduler(**settings)
        for table in ("betas", "alphas", "alphas_cumprod"):
            np.testing.assert_array_equal(getattr(mine, table), getattr(reference, table).numpy(), err_msg=table)
            assert getattr(mine, table).dtype == np.float32


def test_trained_betas_and_zero_terminal_snr():
    trained = np.linspace(0.002, 0.01, 50) ** 1.1
    mine, reference = (lib.DDIMScheduler(num_train_timesteps=50, trained_betas=trained) for lib in (ours, diffusers))
    np.testing.assert_array_equal(mine.alphas_cumprod, reference.alphas_cumprod.numpy())
    for settings in ({}, SD_BETAS):
        mine, reference = (lib.DDIMScheduler(rescale_betas_zero_snr=True, **settings) for lib in (ours, diffusers))
        np.testing.assert_allclose(mine.alphas_cumprod, reference.alphas_cumprod.numpy(), rtol=2e-4, atol=2e-7)
        assert mine.alphas_cumprod[-1] == reference.alphas_cumprod[-1] == 0


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("short", SHORT)
def test_timesteps_of_every_count(short, spacing):
    """All counts up to 1000 in strides. diffusers' trailing list for 61, 485 or 908 steps has one entry more, −1: ours has not."""
    for variant in VARIANTS[short]:
        settings = {"timestep_spacing": spacing, "steps_offset": 1, **SD_BETAS, **variant}
        mine, reference = getattr(ours, SHORT[short])(**settings), getattr(diffusers, SHORT[short])(**settings)
        for n in (*range(1, 62), *range(62, 1000, 47), 999):
            if n < 4 and variant.get("skip_prk_steps") is False:
                continue
            mine.set_timesteps(n)
            reference.set_timesteps(n)
            excess = len(reference.timesteps) - len(mine.timesteps)
            if short == "LMS" and variant:
                assert excess == 0
                if spacing == "trailing" and n in (61, 485, 908):  # the σ in between depend on the wrong last one
                    continue
            else:
                assert excess == (spacing == "trailing" and n in (61, 485, 908))
            assert_same_schedule(mine, reference)


# ---- runs ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("betas", SCHEDULES)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("short", "prediction"), BOTH_HAVE)
def test_every_run(short, prediction, spacing, betas):
    """float64 within 1e-10, float32 at most twice as far from the truth as torch, every step of every run."""
    settings = {"prediction_type": prediction, "timestep_spacing": spacing, **SD_BETAS, "beta_schedule": betas, "steps_offset": 1}
    for i, variant in enumerate(VARIANTS[short]):
        for n in (1, 2, 4, 10, 15, 25, 50) if i == 0 else (4, 15):
            assert_same_run(short, n, f"{short} {n} {settings | variant}", settings | variant)


@pytest.mark.parametrize(("short", "n"), (("DDIM", 999), ("PNDM", 999), ("LMS", 200)))
def test_a_long_run(short, n):
    assert_same_run(short, n, short, {**SD_BETAS, **VARIANTS[short][0], "steps_offset": 1, "timestep_spacing": "leading"})


@pytest.mark.parametrize("begin", (1, 2, 5, 13))
@pytest.mark.parametrize("prediction", ("epsilon", "v_prediction"))
@pytest.mark.parametrize("short", SHORT)
def test_a_run_from_the_middle(short, prediction, begin):
    """Image to image: diffusers' quirks included (LMS takes an order it has no slopes for, PNDM is a step behind)."""
    settings = {**SD_BETAS, **VARIANTS[short][0], "steps_offset": 1, "prediction_type": prediction}
    assert_same_run(short, 15, f"{short} from {begin}", settings, begin=begin)


@pytest.mark.parametrize("order", (1, 2, 3, 4))
def test_lms_orders(order):
    assert_same_run("LMS", 12, f"LMS order {order}", SD_BETAS, order=order)


@pytest.mark.parametrize("sigmas", ("use_karras_sigmas", "use_exponential_sigmas"))
def test_lms_heeds_the_sigma_range_of_an_euler_config_where_diffusers_does(sigmas):
    settings = SD_BETAS | {sigmas: True, "sigma_min": 0.05, "sigma_max": 12.0}
    mine, reference = (lib.LMSDiscreteScheduler.from_config(settings) for lib in (ours, diffusers))
    for scheduler in (mine, reference):
        scheduler.set_timesteps(10)
    assert_same_schedule(mine, reference)


def test_ddim_with_fresh_noise_drawn_from_the_same_seed():
    """η = 0.5 and 1, clipped outputs, zero terminal SNR: the noise is torch's own, drawn at every step, the last one too."""
    for eta, extra in ((0.5, {}), (1.0, {"clip_sample": False}), (1.0, {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"})):
        settings = {**SD_BETAS, "prediction_type": "v_prediction", **extra}
        reference, mine = both("DDIM", 10, **settings)
        mine.alphas_cumprod = reference.alphas_cumprod.numpy()  # zero SNR: equal to 2e-7 only
        in_float64(reference)  # in float32 its coefficient √(1 − ᾱ′ − s²) is off by 1e-4 when η = 1
        options = {"eta": eta, "use_clipped_model_output": True}
        torch_generator, generator = torch.Generator().manual_seed(7), Generator(7)
        x = start().astype(np.float32)
        plain = run(reference, torch.tensor(x), generator=torch_generator, **options)
        result = run(mine, x, generator=generator, **options)
        assert max_error(result, plain) <= 3e-6
        assert max_error(generator.randn((16,)), torch.randn(16, generator=torch_generator).numpy()) <= 1e-6  # as many draws


def test_ddim_noise_given():
    noise = np.sin(np.arange(96, dtype=np.float32)).reshape(1, 4, 6, 4)
    reference, mine = both("DDIM", 10, **SD_BETAS, clip_sample=False)
    for t in (900, 0):
        x, output = start().astype(np.float32), toy_model(start().astype(np.float32), t)
        expected = reference.step(*map(torch.tensor, (output, t, x)), eta=1.0, variance_noise=torch.tensor(noise))
        result = mine.step(output, t, x, eta=1.0, variance_noise=noise)
        for name in ("prev_sample", "pred_original_sample"):
            assert max_error(getattr(result, name), getattr(expected, name).numpy()) <= 1e-6


@pytest.mark.parametrize("short", SHORT)
def test_float16(short):
    """Half in, half out: as near to the float64 run as torch's half run is."""
    settings = {**SD_BETAS, **VARIANTS[short][0]}
    runs = []
    for dtype in (np.float16, np.float64):
        reference, mine = both(short, 10, **settings)
        if dtype == np.float64:
            in_float64(reference)
        runs += [run(reference, torch.tensor(start().astype(dtype))), run(mine, start().astype(dtype))]
    plain, result, truth, _ = runs
    assert_faithful(result, truth, plain, name=short)


@pytest.mark.parametrize("short", SHORT)
def test_adding_noise(short):
    """One timestep, one for each image; in the middle of a run; the velocity."""
    reference, mine = both(short, 15, **SD_BETAS, **VARIANTS[short][0])
    x, noise = (np.random.default_rng(seed).standard_normal((3, 4, 2, 2)).astype(np.float32) for seed in (0, 1))
    tx, tnoise = torch.tensor(x), torch.tensor(noise)
    for pick in ([3], [14], [0, 7, 14]):
        t = mine.timesteps[pick]
        assert max_error(mine.add_noise(x, noise, t), reference.add_noise(tx, tnoise, torch.tensor(t)).numpy()) <= 3e-7
        assert mine.add_noise(x, noise, t).dtype == np.float32
        if short == "DDIM":
            assert max_error(mine.get_velocity(x, noise, t), reference.get_velocity(tx, tnoise, torch.tensor(t)).numpy()) <= 3e-7
    t = mine.timesteps[2]
    assert max_error(mine.scale_model_input(x, t), reference.scale_model_input(tx, torch.tensor(t)).numpy()) <= 3e-7


# ---- the golden file -------------------------------------------------------------------------------------------------------


def short_floats(tensor):
    """float32 as the shortest decimals that read back as the same float32; float64 as it is."""
    array = np.asarray(tensor)
    return [float(str(v)) for v in array.ravel()] if array.dtype == np.float32 else array.ravel().tolist()


def record_table(config, name, n, overrides):
    scheduler = getattr(diffusers, name).from_config(config, **overrides)
    scheduler.set_timesteps(n)
    table = {
        "class": name,
        "num_inference_steps": n,
        "overrides": overrides,
        "timesteps": short_floats(scheduler.timesteps.numpy()),
        "init_noise_sigma": float(scheduler.init_noise_sigma),
        "resolved_config": {k: v for k, v in scheduler.config.items() if k != "_use_default_values"},
    }
    if hasattr(scheduler, "sigmas"):
        table["sigmas"] = short_floats(scheduler.sigmas.numpy())
    if hasattr(scheduler, "final_alpha_cumprod"):
        table["final_alpha_cumprod"] = float(scheduler.final_alpha_cumprod)
    return table


def record_tables():
    cases = [(s, n, "", {}) for s in SHORT for n in (1, 4, 15, 50)]
    cases += [(s, 15, f"_{spacing}", {"timestep_spacing": spacing}) for s in SHORT for spacing in SPACINGS]
    cases += [("LMS", n, "_karras", {"use_karras_sigmas": True}) for n in (15, 50)]
    return {
        f"{model}|{short}{suffix}|{n}": record_table(OFFICIAL[model], SHORT[short], n, overrides)
        for model in ("stable-diffusion-v1-5", "stable-diffusion-2-1", "sd-turbo")
        for short, n, suffix, overrides in cases
    }


def record_runs():
    """Whole runs of the toy model from torch's noise of seed 32, step noise from seed 0."""
    cases = [(m, s, 15, {}) for m in ("stable-diffusion-v1-5", "stable-diffusion-2-1") for s in SHORT]
    cases += [(m, "DDIM", 15, {"eta": 1.0}) for m in ("stable-diffusion-v1-5", "stable-diffusion-2-1")]
    cases += [("sd-turbo", "DDIM", n, {}) for n in (1, 4)]
    runs = {}
    for model, short, n, options in cases:
        scheduler = getattr(diffusers, SHORT[short]).from_config(OFFICIAL[model])
        scheduler.set_timesteps(n)
        x = torch.randn((1, 4, 2, 2), generator=torch.Generator().manual_seed(32)) * scheduler.init_noise_sigma
        drawn = {"generator": torch.Generator().manual_seed(0)} if options else {}
        runs[f"{model}|{short}|{n}|{options}"] = {
            "class": SHORT[short],
            "num_inference_steps": n,
            "options": options,
            "x": [short_floats(x) for x in run(scheduler, x, **options, **drawn)],
        }
    return runs


def record_grid():
    """The end of short runs of every variant: torch's float32, and the float64 truth (float64 coefficients from float32 tables)."""
    grid = {}
    for short, prediction in BOTH_HAVE:
        grid[f"{SHORT[short]}|{prediction}"] = cases = []
        for variant, spacing, n in itertools.product(VARIANTS[short], SPACINGS, (4, 10)):
            settings = {"prediction_type": prediction, "timestep_spacing": spacing, "steps_offset": 1, **SD_BETAS, **variant}
            plain, truth = (both(short, n, **settings)[0] for _ in range(2))
            x = start((1, 4, 2, 2)) * float(plain.init_noise_sigma)
            case = {"settings": settings, "num_inference_steps": n, "init_noise_sigma": float(plain.init_noise_sigma)}
            if short == "LMS":
                case |= {"timesteps": short_floats(plain.timesteps.numpy()), "sigmas": short_floats(plain.sigmas.numpy())}
            case["float32"] = short_floats(run(plain, torch.tensor(x, dtype=torch.float32))[-1])
            case["float64"] = short_floats(run(in_float64(truth), torch.tensor(x))[-1])
            cases.append(case)
    return grid


def record_classic_lms():
    """The scheduler of the first public notebooks, with the weights of every step."""
    scheduler = diffusers.LMSDiscreteScheduler(**SD_BETAS)
    classic = {}
    for n in (15, 50):
        scheduler.set_timesteps(n)
        weights = [[scheduler.get_lms_coefficient(min(i + 1, 4), i, k) for k in range(min(i + 1, 4))] for i in range(n)]
        classic[n] = {
            "timesteps": short_floats(scheduler.timesteps.numpy()),
            "sigmas": short_floats(scheduler.sigmas.numpy()),
            "init_noise_sigma": float(scheduler.init_noise_sigma),
            "lms_coefficients": weights,
        }
    return classic


def record_hashes():
    """sha256 of the float32 tables, and a few entries to find an error by."""
    hashes = {}
    for schedule, (low, high) in itertools.product(SCHEDULES, ((0.00085, 0.012), (0.0001, 0.02))):
        scheduler = diffusers.DDIMScheduler(beta_schedule=schedule, beta_start=low, beta_end=high)
        for table in ("betas", "alphas_cumprod"):
            values = getattr(scheduler, table).numpy()
            hashes[f"{schedule}|{low}|{high}|{table}"] = {
                "sha256": hashlib.sha256(values.tobytes()).hexdigest(),
                "entries": {i: float(values[i]) for i in (0, 1, 2, 10, 100, 250, 500, 750, 900, 980, 981, 998, 999)},
            }
    return hashes


def record() -> dict:
    return {
        "note": f"diffusers {diffusers.__version__}, torch {torch.__version__} on a CPU with {torch.backends.cpu.get_cpu_capability()};"
        " written by python -m tests.reference.test_schedulers",
        "tables": record_tables(),
        "runs": record_runs(),
        "grid": record_grid(),
        "classic_lms": record_classic_lms(),
        "hashes": record_hashes(),
    }


def assert_nearly_equal(a, b, where=""):
    """Two recordings, numbers within what another CPU may change."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_nearly_equal(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list) and a and isinstance(a[0], float):
        assert max_error(np.array(a, dtype=np.float64), np.array(b, dtype=np.float64)) <= 1e-5, where
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b)):
            assert_nearly_equal(x, y, f"{where}/{i}")
    elif "note" not in where and "sha256" not in where:
        assert a == b or abs(a - b) <= 1e-5 * abs(b), where


def test_the_golden_file_is_what_diffusers_computes():
    golden = json.loads(lzma.open(GOLDEN / "schedulers.json.xz").read())
    assert_nearly_equal(json.loads(json.dumps(record())), golden)


if __name__ == "__main__":
    (GOLDEN / "schedulers.json.xz").write_bytes(lzma.compress(json.dumps(record(), separators=(",", ":")).encode(), preset=9))
