"""How the settings of a sampler are read, kept, and handed on to another sampler. No mathematics.

Follows diffusers' `ConfigMixin`: every sampler keeps every setting it was given, also those that only another sampler
understands, so that a chain DDIM -> LMS -> DDIM loses nothing.
"""

import functools
import inspect
import logging

from ..errors import ModelFileError, UsageError

_LOG = logging.getLogger("minisd")

# The settings of all samplers of diffusers, and our `compat`: what a config may hold without being a slip of the pen.
KNOWN_SETTINGS = frozenset(
    """algorithm_type beta_end beta_schedule beta_start clip_sample clip_sample_range compat disable_corrector
    dynamic_thresholding_ratio euler_at_final final_sigmas_type flow_shift interpolation_type lambda_min_clipped lower_order_final
    num_train_timesteps predict_x0 prediction_type rescale_betas_zero_snr rho sample_max_value set_alpha_to_one shift_terminal
    sigma_data sigma_max sigma_min sigma_schedule skip_prk_steps solver_order solver_p solver_type steps_offset thresholding
    time_shift_type timestep_spacing timestep_type trained_betas use_beta_sigmas use_dynamic_shifting use_exponential_sigmas
    use_flow_sigmas use_karras_sigmas use_lu_lambdas variance_type""".split()
)


class Config(dict):
    """The settings of a scheduler: a read-only dict whose keys are attributes too, `config.beta_start` (diffusers `FrozenDict`)."""

    def __getattr__(self, name: str):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the scheduler's config has no {name!r}") from None

    def _read_only(self, *args, **kwargs):
        raise TypeError("a scheduler's config is read-only; build a new scheduler: from_config(config, key=value)")

    __setattr__ = __setitem__ = __delitem__ = __ior__ = _read_only
    clear = pop = popitem = setdefault = update = _read_only

    def __reduce__(self):  # copy and pickle would otherwise fill an empty dict, item by item
        return Config, (dict(self),)


def keeps_config(init):
    """Keeps the arguments of `__init__` as `self.config`, and under `_use_default_values` the names that nobody gave."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def initialise(self, *args, **kwargs):
        bound = signature.bind(self, *args, **kwargs)
        given = set(bound.arguments)
        bound.apply_defaults()
        settings = {name: value for name, value in bound.arguments.items() if name != "self"}
        defaults = [name for name in settings if name not in given]
        self.config = Config(settings | ({"_use_default_values": defaults} if defaults else {}))
        init(self, *args, **kwargs)

    return initialise


class Configurable:
    """A sampler that comes from a config."""

    config: Config

    @classmethod
    def from_config(cls, config: dict, **overrides):
        """The sampler for the dict of a scheduler_config.json or another scheduler's `.config`, ours or diffusers'; keywords win.

        A setting that nobody ever gave, filled in by the default of another class, does not come along: the default of this
        class holds (LMS spaces timesteps by linspace, PNDM by leading). diffusers `ConfigMixin.from_config`.
        """
        if not isinstance(config, dict):
            raise UsageError(
                f"{cls.__name__}.from_config needs a dict, not {config!r}", "", f"for a folder use {cls.__name__}.from_pretrained"
            )
        unset = ("_use_default_values", *config.get("_use_default_values", ()))
        given = {name: value for name, value in config.items() if name not in unset}
        own = set(inspect.signature(cls).parameters)
        for name in overrides:
            if name not in own and name not in given:
                raise UsageError(f"{cls.__name__} has no setting {name!r}", "", f"it has {', '.join(sorted(own))}")
        given |= overrides

        unknown = sorted(name for name in given if name not in own | KNOWN_SETTINGS and not name.startswith("_"))
        if unknown:
            _LOG.warning("%s ignores settings that no scheduler knows: %s", cls.__name__, ", ".join(unknown))
        if given.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in own:
            raise UsageError(
                f"{cls.__name__} does not implement rescale_betas_zero_snr = True",
                "the model was trained up to pure noise, where this sampler divides by zero; diffusers drops the setting silently",
                "use DDIMScheduler (--scheduler ddim), or from_config(config, rescale_betas_zero_snr=False) to drop it too",
            )

        scheduler = cls(**{name: value for name, value in given.items() if name in own})
        foreign = {name: value for name, value in given.items() if name not in own}
        if "_class_name" in foreign:
            foreign["_class_name"] = cls.__name__
        scheduler.config = Config(scheduler.config | foreign)
        return scheduler

    @classmethod
    def from_pretrained(cls, model, subfolder: str | None = None):
        """The sampler for a `scheduler_config.json`. model: a folder, "tiny", a single file or a hub id (whose whole model is fetched).

        Inside the folder of a pipeline it lies in subfolder="scheduler".
        """
        from ..checkpoint import read_json, read_scheduler_config, resolve

        root = resolve(model)
        if root.is_file():
            return cls.from_config(read_scheduler_config(root))
        path = root / (subfolder or "") / "scheduler_config.json"
        if not path.is_file():
            raise ModelFileError(f"{path} does not exist", "", "give the folder it is in; in a pipeline's folder subfolder='scheduler'")
        return cls.from_config(read_json(path))
