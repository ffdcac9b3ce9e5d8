"""-i, --mask and what belongs to them on the command line, read and checked before any weights are."""

import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path

from .errors import UsageError
from .image_input import check_masks, load_image, load_mask, picture_size, preprocess_mask
from .request import first_index
from .schedulers import PNDMScheduler

log = logging.getLogger("minisd")


@dataclass(frozen=True)
class Edit:
    """The picture that a run begins with, if any: PIL images, where to begin, and of their files the names and the SHA-256."""

    picture: object = None
    mask: object = None
    strength: float | None = None
    start_step: int | None = None
    compat: bool = True
    files: tuple = ()  # (name, hexadecimal digits) of the picture and the mask

    @classmethod
    def check(cls, o: dict) -> "Edit":
        """Reads the files and checks what can be checked without a model."""
        if o["image"] is None:
            given = {"--mask": o["mask"], "--strength": o["strength"], "--start-step": o["start_step"], "--no-compat": None if o["compat"] else True}
            for flag, value in given.items():
                if value is not None:
                    raise UsageError(f"{flag} without a picture", "it says what is done to one", "add -i picture.png")
            return cls()
        picture = load_image(o["image"])
        mask = None if o["mask"] is None else load_mask(o["mask"])
        files = tuple((Path(o[name]).name, sha256(o[name])) for name in ("image", "mask") if o[name] is not None)
        edit = cls(picture, mask, o["strength"], o["start_step"], o["compat"], files)
        if edit.strength is None and edit.start_step is None:
            return replace(edit, strength=edit.pipeline.default_strength)
        return edit

    @property
    def inpaint(self) -> bool:
        return self.mask is not None

    def size(self, height, width, multiple: int) -> tuple:
        """(height, width) of the run: as asked for, else the picture's own, else None for the model's."""
        return (height, width) if self.picture is None else picture_size([self.picture], height, width, multiple)

    def adapt(self, scheduler, steps: int):
        """The sampler for a run that begins where this one does, and the index of its first timestep."""
        if self.picture is None:
            return scheduler, 0
        if not self.compat and "compat" in scheduler.config:
            scheduler = type(scheduler).from_config(scheduler.config, compat=False)
        scheduler.set_timesteps(steps)
        index = first_index(steps, len(scheduler.timesteps), self.strength, self.start_step)
        if index and isinstance(scheduler, PNDMScheduler) and not scheduler.config.skip_prk_steps:
            log.info("PNDM begins in the middle: without its Runge–Kutta steps (skip_prk_steps)")
            return self.adapt(type(scheduler).from_config(scheduler.config, skip_prk_steps=True), steps)
        return scheduler, index

    def check_mask(self, height: int, width: int, multiple: int):
        """Refuses a mask that does not fit its picture or repaints nothing."""
        if self.mask is not None:
            check_masks([self.mask], [self.picture], preprocess_mask([self.mask], height, width), multiple, notes=False)

    @property
    def pipeline(self):
        """The class of the pipeline that runs it."""
        from .img2img import StableDiffusionImg2ImgPipeline
        from .inpaint import StableDiffusionInpaintPipeline
        from .pipeline import StableDiffusionPipeline

        if self.picture is None:
            return StableDiffusionPipeline
        return StableDiffusionInpaintPipeline if self.inpaint else StableDiffusionImg2ImgPipeline

    @property
    def arguments(self) -> dict:
        """What the pipeline takes besides the arguments of every run."""
        if self.picture is None:
            return {}
        mask = {"mask_image": self.mask} if self.inpaint else {}
        return {"image": self.picture, "strength": self.strength, "start_step": self.start_step, **mask}

    @property
    def recipe(self) -> dict:
        """What a PNG tells of it: names of files without their folders, the beginning of their SHA-256, and where the run began."""
        if self.picture is None:
            return {}
        files = {}
        for part, (name, digits) in zip(("image", "mask"), self.files):
            files |= {part: name, f"{part}_sha256": digits[:16]}
        where = {"strength": self.strength} if self.start_step is None else {"start_step": self.start_step}
        return {**files, **where, "compat": self.compat}


def sha256(path) -> str:
    """Of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
