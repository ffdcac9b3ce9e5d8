"""Samplers: from noise to a picture along the model's predictions. `schedule.py` has what they share, then one file each.

    scheduler.set_timesteps(25)
    x = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        output = model(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(output, t, x).prev_sample
"""

from ..errors import UsageError
from .base import Scheduler, SchedulerOutput
from .ddim import DDIMScheduler
from .lms import LMSDiscreteScheduler
from .pndm import PNDMScheduler
from .settings import Config

__all__ = [
    "SCHEDULERS", "Config", "DDIMScheduler", "LMSDiscreteScheduler", "PNDMScheduler", "Scheduler", "SchedulerOutput",
    "scheduler_from_config",
]  # fmt: skip

SCHEDULERS = {"ddim": DDIMScheduler, "lms": LMSDiscreteScheduler, "pndm": PNDMScheduler}
_BY_CLASS_NAME = {scheduler.__name__: scheduler for scheduler in SCHEDULERS.values()}


def scheduler_from_config(config: dict) -> Scheduler:
    """The sampler that a scheduler_config.json names in `_class_name`."""
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in _BY_CLASS_NAME:
        raise UsageError(
            f"the scheduler {name!r} is not implemented",
            f"minisd has {', '.join(_BY_CLASS_NAME)}",
            "choose one: --scheduler ddim, or DDIMScheduler.from_config(config)",
        )
    return _BY_CLASS_NAME[name].from_config(config)
