"""Settings: files, foreign keys, handing on from one sampler to another, refusals by name."""

import copy
import inspect
import json
import logging
import pickle
from pathlib import Path

import pytest

from minisd import schedulers
from minisd.errors import ModelFileError, UsageError
from minisd.schedulers import SCHEDULERS, DDIMScheduler, LMSDiscreteScheduler, PNDMScheduler, scheduler_from_config

CONFIGS = json.loads((Path(__file__).parents[1] / "golden" / "schedulers_configs.json").read_text())
CLASSES = tuple(SCHEDULERS.values())


@pytest.mark.parametrize("model", CONFIGS)
@pytest.mark.parametrize("cls", CLASSES)
def test_every_official_config_suits_every_sampler(model, cls):
    """Absent keys take the default of the class that reads, foreign ones wait for the next class."""
    given = CONFIGS[model]
    scheduler = cls.from_config(given)
    own = {name: p.default for name, p in inspect.signature(cls).parameters.items()}
    assert {name: scheduler.config[name] for name in own} == own | {k: v for k, v in given.items() if k in own}
    assert {k: scheduler.config[k] for k in given} == given | {"_class_name": cls.__name__}
    assert set(scheduler.config.get("_use_default_values", ())) == set(own) - set(given)


def test_the_default_of_one_class_does_not_become_a_setting_of_another():
    pndm = PNDMScheduler.from_config(CONFIGS["stable-diffusion-v1-5"])
    assert pndm.config.timestep_spacing == "leading"
    lms = LMSDiscreteScheduler.from_config(pndm.config)
    assert lms.config.timestep_spacing == "linspace"
    assert DDIMScheduler.from_config(lms.config).config.timestep_spacing == "leading"
    given = PNDMScheduler(timestep_spacing="leading")  # given, though it is the default
    assert LMSDiscreteScheduler.from_config(given.config).config.timestep_spacing == "leading"
    assert LMSDiscreteScheduler.from_config(dict(given.config)).config.timestep_spacing == "leading"
    by_position = PNDMScheduler(500, 0.001)
    assert DDIMScheduler.from_config(by_position.config).config.num_train_timesteps == 500


def test_settings_survive_a_journey_through_other_samplers():
    ddim = DDIMScheduler(clip_sample=False, set_alpha_to_one=False, thresholding=True, **{"beta_end": 0.012})
    lms = LMSDiscreteScheduler.from_config(ddim.config, use_karras_sigmas=True, compat=False)
    back = DDIMScheduler.from_config(PNDMScheduler.from_config(lms.config).config)
    for name in ("clip_sample", "set_alpha_to_one", "thresholding", "beta_end", "timestep_spacing"):
        assert back.config[name] == ddim.config[name]
    assert back.config.use_karras_sigmas is True and back.config.compat is False
    again = LMSDiscreteScheduler.from_config(back.config)
    assert again.config.use_karras_sigmas is True and again.config.compat is False


def test_overrides():
    config = CONFIGS["stable-diffusion-v1-5"]
    assert DDIMScheduler.from_config(config, timestep_spacing="trailing").config.timestep_spacing == "trailing"
    with pytest.raises(UsageError, match="no setting 'use_karras_sigmas'"):
        DDIMScheduler.from_config(config, use_karras_sigmas=True)


def test_config_is_a_read_only_dict_with_attributes():
    config = DDIMScheduler(beta_start=0.001).config
    assert config.beta_start == config["beta_start"] == 0.001 and isinstance(config, dict)
    assert copy.deepcopy(config) == config == pickle.loads(pickle.dumps(config))
    assert json.loads(json.dumps(config)) == config
    with pytest.raises(AttributeError, match="no 'beta_begin'"):
        _ = config.beta_begin
    for change in (
        lambda: setattr(config, "beta_start", 1),
        lambda: config.update(beta_start=1),
        lambda: config.__setitem__("beta_start", 1),
        lambda: config.pop("beta_start"),
        lambda: config.__ior__({"beta_start": 1}),
    ):
        with pytest.raises(TypeError, match="read-only"):
            change()


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    "setting",
    (
        {"beta_schedule": "exp"},
        {"beta_schedule": None},
        {"prediction_type": "flow_prediction"},
        {"timestep_spacing": "quadratic"},
        {"beta_start": 0},
        {"beta_start": -0.1},
        {"beta_end": 1.5},
        {"beta_end": "0.012"},
        {"beta_end": None},
        {"steps_offset": -1},
        {"steps_offset": 0.5},
        {"num_train_timesteps": 0},
        {"num_train_timesteps": 1000.0},
    ),
    ids=str,
)
def test_what_would_change_the_maths_is_refused_by_name(cls, setting):
    (name,) = setting
    for build in (lambda: cls(**setting), lambda: cls.from_config(CONFIGS["stable-diffusion-2-1"] | setting)):
        with pytest.raises(UsageError, match=name) as error:
            build()
        assert error.value.fix


def test_refusals_of_single_samplers():
    with pytest.raises(UsageError, match="use_beta_sigmas"):
        LMSDiscreteScheduler(use_beta_sigmas=True)
    with pytest.raises(UsageError, match="both use_karras_sigmas and use_exponential_sigmas"):
        LMSDiscreteScheduler(use_karras_sigmas=True, use_exponential_sigmas=True)
    zero_snr = DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction").config
    for cls in (LMSDiscreteScheduler, PNDMScheduler):
        with pytest.raises(UsageError, match="rescale_betas_zero_snr"):
            cls.from_config(zero_snr)
        assert cls.from_config(zero_snr, rescale_betas_zero_snr=False).alphas_cumprod[-1] > 0


def test_a_slip_of_the_pen_is_told(caplog):
    caplog.set_level(logging.WARNING, "minisd")
    DDIMScheduler.from_config(CONFIGS["sd-turbo"])  # settings of Euler samplers are no slip
    assert not caplog.records
    DDIMScheduler.from_config({"beta_strat": 0.1})
    assert "beta_strat" in caplog.text


def test_from_pretrained(tmp_path):
    (tmp_path / "scheduler").mkdir()
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(CONFIGS["stable-diffusion-2-1"]))
    for scheduler in (DDIMScheduler.from_pretrained(tmp_path, subfolder="scheduler"), DDIMScheduler.from_pretrained(file.parent)):
        assert scheduler.config.prediction_type == "v_prediction" and scheduler.config.clip_sample is False
    with pytest.raises(ModelFileError, match="does not exist") as error:
        DDIMScheduler.from_pretrained(tmp_path)
    assert "subfolder='scheduler'" in error.value.fix
    for wrong in ("{", "[]"):
        file.write_text(wrong)
        with pytest.raises(ModelFileError, match="is broken"):
            DDIMScheduler.from_pretrained(tmp_path, "scheduler")
    with pytest.raises(UsageError, match="from_pretrained"):
        DDIMScheduler.from_config(str(tmp_path))


@pytest.mark.parametrize("model", CONFIGS)
def test_the_config_names_its_class(model):
    name = CONFIGS[model]["_class_name"]
    if name == "EulerDiscreteScheduler":
        with pytest.raises(UsageError, match="EulerDiscreteScheduler") as error:
            scheduler_from_config(CONFIGS[model])
        assert "--scheduler ddim" in error.value.fix
        assert all(cls.__name__ in error.value.why for cls in CLASSES)
    else:
        assert type(scheduler_from_config(CONFIGS[model])).__name__ == name


@pytest.mark.parametrize("config", ({}, {"_class_name": None}, {"_class_name": "os.system"}, {"_class_name": ["DDIMScheduler"]}))
def test_a_config_without_a_usable_class_name(config):
    with pytest.raises(UsageError, match="not implemented"):
        scheduler_from_config(config)


def test_exports():
    assert all(hasattr(schedulers, name) for name in schedulers.__all__)
    assert {name: cls.__name__ for name, cls in SCHEDULERS.items()} == {
        "ddim": "DDIMScheduler",
        "lms": "LMSDiscreteScheduler",
        "pndm": "PNDMScheduler",
    }
