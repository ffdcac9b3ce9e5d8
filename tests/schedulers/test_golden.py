"""DDIM, LMS and PNDM against what diffusers computes: tables, timesteps, whole runs, and the sums that its own tests publish.

tests/golden/schedulers.json.xz was recorded by `python -m tests.reference.test_schedulers`; schedulers_configs.json holds the
scheduler_config.json of the official models.
"""

import hashlib
import json
import lzma
import math
from pathlib import Path

import numpy as np
import pytest

from minisd import schedulers
from minisd.rng import Generator
from minisd.schedulers.lms import lms_coefficients
from minisd.schedulers.schedule import cumulative_alphas, make_betas

from ..numerics import assert_close_f64, assert_faithful, max_error

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIGS = json.loads((GOLDEN / "schedulers_configs.json").read_text())
RECORDED = json.loads(lzma.open(GOLDEN / "schedulers.json.xz").read())


def float32(values):
    return np.array(values, dtype=np.float32)


def toy_model(x, t):
    """0.3·x + 0.2·sin(0.01·t + i), i the flat index: the model of the recorded runs."""
    wave = 0.2 * np.sin(0.01 * float(t) + np.arange(x.size).reshape(x.shape))
    return 0.3 * x + wave.astype(x.dtype)


def run(scheduler, x, model=toy_model, **options):
    """Every x of a run: [steps + 1, *x.shape]."""
    trajectory = [x]
    for t in scheduler.timesteps:
        x = scheduler.step(model(scheduler.scale_model_input(x, t), t), t, x, **options).prev_sample
        trajectory.append(x)
    return np.stack(trajectory)


def start(shape):
    return 1.5 * np.cos(1.7 * np.arange(np.prod(shape), dtype=np.float64)).reshape(shape)


@pytest.mark.parametrize("case", RECORDED["hashes"])
def test_tables_equal_torchs_to_the_last_bit(case):
    schedule, low, high, table = case.split("|")
    betas = make_betas(schedule, float(low), float(high), 1000)
    values = betas if table == "betas" else cumulative_alphas(betas)
    for i, expected in RECORDED["hashes"][case]["entries"].items():
        assert float(values[int(i)]) == expected, f"{table}[{i}]"
    assert hashlib.sha256(values.tobytes()).hexdigest() == RECORDED["hashes"][case]["sha256"]


@pytest.mark.parametrize("case", RECORDED["tables"])
def test_timesteps_and_sigmas_of_official_configs(case):
    """All timesteps, σ, the first scale, the last ᾱ and every setting, from the config files of three models."""
    golden = RECORDED["tables"][case]
    cls = getattr(schedulers, golden["class"])
    scheduler = cls.from_config(CONFIGS[case.split("|")[0]], **golden["overrides"])
    scheduler.set_timesteps(golden["num_inference_steps"])
    karras = "karras" in case  # its timesteps are the logarithm of σ, and torch's σ are an ulp off
    np.testing.assert_allclose(scheduler.timesteps, float32(golden["timesteps"]), rtol=0, atol=2e-4 if karras else 0)
    assert scheduler.timesteps.dtype == (np.float32 if cls is schedulers.LMSDiscreteScheduler else np.int64)
    assert math.isclose(scheduler.init_noise_sigma, golden["init_noise_sigma"], rel_tol=2e-7)
    if "sigmas" in golden:
        np.testing.assert_array_max_ulp(scheduler.sigmas, float32(golden["sigmas"]), maxulp=3)
        assert scheduler.sigmas.dtype == np.float32
    if "final_alpha_cumprod" in golden:
        assert scheduler.final_alpha_cumprod == golden["final_alpha_cumprod"]
    settings = {k: v for k, v in scheduler.config.items() if k not in ("compat", "_use_default_values")}
    assert settings == golden["resolved_config"]


@pytest.mark.parametrize("case", RECORDED["runs"])
def test_runs_from_torchs_noise(case):
    """Whole runs from the noise of seed 32; with η = 1 the noise of every step from seed 0."""
    golden = RECORDED["runs"][case]
    scheduler = getattr(schedulers, golden["class"]).from_config(CONFIGS[case.split("|")[0]])
    scheduler.set_timesteps(golden["num_inference_steps"])
    x = Generator(32).randn((1, 4, 2, 2)) * scheduler.init_noise_sigma
    drawn = {"generator": Generator(0)} if golden["options"] else {}
    trajectory = run(scheduler, x, **golden["options"], **drawn)
    assert trajectory.dtype == np.float32
    for i, expected in enumerate(golden["x"]):
        assert max_error(trajectory[i].ravel(), float32(expected)) <= 3e-6, f"after {i} steps"


@pytest.mark.parametrize("group", RECORDED["grid"])
def test_short_runs_of_every_variant(group):
    """The end of each run in float64 within 1e-10 of the truth; all ends in float32 at most twice as far from it as torch's."""
    ends = []
    for case in RECORDED["grid"][group]:
        scheduler = getattr(schedulers, group.split("|")[0])(**case["settings"])

        def end(dtype):
            scheduler.set_timesteps(case["num_inference_steps"])
            if "sigmas" in case:  # torch's, equal up to the last bits
                scheduler.timesteps, scheduler.sigmas = float32(case["timesteps"]), float32(case["sigmas"])
            x = start((1, 4, 2, 2)) * case["init_noise_sigma"]
            return run(scheduler, x.astype(dtype))[-1].ravel()

        truth = np.array(case["float64"], dtype=np.float64)
        assert_close_f64(end(np.float64), truth, name=str(case["settings"]))
        ends.append((end(np.float32), truth, float32(case["float32"])))
    assert_faithful(*map(np.concatenate, zip(*ends)), name=group)


@pytest.mark.parametrize("n", ("15", "50"))
def test_the_lms_of_the_first_notebooks(n):
    """LMSDiscreteScheduler(0.00085, 0.012, scaled_linear): timesteps, σ and the weights of every step."""
    golden = RECORDED["classic_lms"][n]
    scheduler = schedulers.LMSDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
    scheduler.set_timesteps(int(n))
    np.testing.assert_array_equal(scheduler.timesteps, float32(golden["timesteps"]))
    np.testing.assert_array_max_ulp(scheduler.sigmas, float32(golden["sigmas"]), maxulp=2)
    for i, expected in enumerate(golden["lms_coefficients"]):
        # diffusers evaluates the polynomials in float32
        np.testing.assert_allclose(lms_coefficients(scheduler.sigmas, i, len(expected)), expected, rtol=1e-5, atol=1e-6)


def test_constants_printed_in_public_notebooks():
    """What readers of the first notebooks saw, to the digits printed there."""
    scheduler = schedulers.LMSDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler.set_timesteps(15)
    timesteps = [999, 927.6429, 856.2857, 784.9286, 713.5714, 642.2143, 570.8571, 499.5]
    timesteps += [428.1429, 356.7857, 285.4286, 214.0714, 142.7143, 71.3571, 0]
    sigmas = [14.6146, 9.6826, 6.6780, 4.7746, 3.5221, 2.6666, 2.0606, 1.6156, 1.2768, 1.0097, 0.7913, 0.6056, 0.4397, 0.2780, 0.0292, 0]
    assert [round(t, 4) for t in scheduler.timesteps.tolist()] == timesteps
    assert [round(s, 4) for s in scheduler.sigmas.tolist()] == sigmas

    scheduler.set_timesteps(50)
    assert [round(s, 4) for s in scheduler.sigmas.tolist()[:4]] == [14.6146, 12.9368, 11.4916, 10.2429]
    assert [round(s, 4) for s in scheduler.sigmas.tolist()[-4:]] == [0.2012, 0.1393, 0.0292, 0]
    assert (round(scheduler.timesteps[10].item(), 4), round(scheduler.sigmas[10].item(), 4)) == (795.1224, 4.9989)
    scheduler.set_timesteps(30)
    assert [round(s, 4) for s in scheduler.sigmas.tolist()[:4]] == [14.6146, 11.9176, 9.8142, 8.1585]
    scheduler.set_timesteps(51)
    assert (round(scheduler.timesteps[40].item(), 4), round(scheduler.sigmas[40].item(), 4)) == (199.8, 0.5712)

    pndm = schedulers.scheduler_from_config(CONFIGS["stable-diffusion-v1-4"])
    pndm.set_timesteps(15)
    assert pndm.timesteps.tolist() == [925, 859, 859, 793, 727, 661, 595, 529, 463, 397, 331, 265, 199, 133, 67, 1]
    assert pndm.timesteps[10] == 331  # the doubled timestep moves index 10 from t = 265


# ---- the sums in diffusers' own tests (tests/schedulers/test_scheduler_{ddim,lms,pndm}.py) ----------------------------------

LINEAR = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}


def published_loop(scheduler, noise_from=None):
    """Σ|x| and mean|x| at the end of the loop of diffusers' tests: model x·t/(t + 1), ten steps, 768 even numbers as the start."""
    scheduler.set_timesteps(10)
    even = np.arange(768, dtype=np.float32)
    x, noise = (a.reshape(3, 8, 8, 4).transpose(3, 0, 1, 2) / np.float32(768) for a in (even, even[::-1]))
    x = x * scheduler.init_noise_sigma
    timesteps = scheduler.timesteps[noise_from:]
    if noise_from is not None:
        x = scheduler.add_noise(x, noise, timesteps[:1])
    for t in timesteps:
        x = scheduler.scale_model_input(x, t)  # in place of x, as those tests do
        x = scheduler.step(x * (float(t) / (float(t) + 1)), t, x).prev_sample
    return float(np.abs(x).sum(dtype=np.float64)), float(np.abs(x).mean(dtype=np.float64))


@pytest.mark.parametrize(
    ("name", "settings", "noise_from", "total", "mean"),
    (
        ("DDIM", {}, None, 172.0067, 0.223967),
        ("DDIM", {"prediction_type": "v_prediction"}, None, 52.5302, 0.0684),
        ("DDIM", {"beta_start": 0.01, "set_alpha_to_one": True}, None, 149.8295, 0.1951),
        ("DDIM", {"beta_start": 0.01, "set_alpha_to_one": False}, None, 149.0784, 0.1941),
        ("DDIM", {}, 8, 354.5418, 0.4616),
        ("LMSDiscrete", {}, None, 1006.388, 1.31),
        ("LMSDiscrete", {"prediction_type": "v_prediction"}, None, 0.0017, 2.2676e-06),
        ("LMSDiscrete", {"use_karras_sigmas": True}, None, 3812.9927, 4.9648),
        ("LMSDiscrete", {}, 8, 27663.6895, 36.0204),
        ("PNDM", {}, None, 198.1318, 0.2580),
        ("PNDM", {"prediction_type": "v_prediction"}, None, 67.3986, 0.0878),
        ("PNDM", {"beta_start": 0.01, "set_alpha_to_one": True}, None, 230.0399, 0.2995),
        ("PNDM", {"beta_start": 0.01, "set_alpha_to_one": False}, None, 186.9482, 0.2434),
    ),
)
def test_published_sums(name, settings, noise_from, total, mean):
    train = {"num_train_timesteps": 1100} if name == "LMSDiscrete" else {}
    scheduler = getattr(schedulers, f"{name}Scheduler")(**LINEAR | train | settings)
    result = published_loop(scheduler, noise_from)
    assert abs(result[0] - total) <= 1e-2
    assert abs(result[1] - mean) <= 1e-3


def test_published_timesteps():
    ddim = schedulers.DDIMScheduler(**LINEAR, steps_offset=1)
    ddim.set_timesteps(5)
    assert ddim.timesteps.tolist() == [801, 601, 401, 201, 1]
    pndm = schedulers.PNDMScheduler(**LINEAR, steps_offset=1)
    pndm.set_timesteps(10)
    expected = [901, 851, 851, 801, 801, 751, 751, 701, 701, 651, 651, 601, 601, 501, 401, 301, 201, 101, 1]
    assert pndm.timesteps.tolist() == expected
