"""Where a pipeline comes from: a folder, the hub, a single file or another pipeline; and where its networks live."""

import os
from pathlib import Path

import numpy as np

from . import gpu
from .errors import UsageError
from .models import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
from .models.model import check_dtype, check_residence, default_dtype
from .schedulers import scheduler_from_config

NETWORKS = ("text_encoder", "unet", "vae")


class LoadingMixin:
    """Of a pipeline, whose parts are `vae`, `text_encoder`, `unet`, `tokenizer` and `scheduler`."""

    @classmethod
    def from_single_file(
        cls, path, *, prediction_type: str | None = None, device: str = "cpu", dtype: str | None = None, resident: str | None = None,
        unet=None, vae=None, text_encoder=None, tokenizer=None, scheduler=None,
    ):  # fmt: skip
        """Loads a pipeline from one file with LDM's names, such as v1-5-pruned-emaonly.safetensors, or a .ckpt. docs/checkpoints.md says more.

        prediction_type: "epsilon" or "v_prediction", where an SD 2.x file is misjudged        device, dtype, resident: as in `from_pretrained`
        unet, vae, text_encoder, scheduler: instead of the file's        tokenizer: likewise, or a folder with vocab.json and merges.txt; else they
        are looked for beside the file, in the hub's cache and on the hub        Raises what `from_pretrained` does.
        """
        from .checkpoint import component_bytes, open_single_file
        from .tokenizer import CLIPTokenizer

        device = gpu.choose(device)
        dtype = check_dtype(default_dtype(device) if dtype is None else dtype, device)
        check_residence(resident, device)
        file = Path(path).expanduser()
        if not file.is_file():
            raise UsageError(f"there is no file {path}", "", "check the path; folders and hub ids are for from_pretrained")
        single = open_single_file(file, prediction_type)
        parts = {"text_encoder": (CLIPTextModel, text_encoder), "unet": (UNet2DConditionModel, unet), "vae": (AutoencoderKL, vae)}
        single.require(*(part for part, (_, given) in parts.items() if given is None))
        scheduler = scheduler_from_config(single.scheduler) if scheduler is None else scheduler
        if tokenizer is None:
            tokenizer = load_tokenizer(single)
        elif isinstance(tokenizer, (str, os.PathLike)):
            tokenizer = CLIPTokenizer.from_pretrained(tokenizer, pad_token=single.family.pad_token)
        if device != "cpu":
            gpu.check_room(device, sum(component_bytes(single, part, dtype) for part, (_, given) in parts.items() if given is None), str(path))
        load = dict(dtype=dtype, resident=resident, device=device)
        models = {part: kind.from_pretrained(single, **load) if given is None else given for part, (kind, given) in parts.items()}
        return cls(**models, tokenizer=tokenizer, scheduler=scheduler, name=str(path))

    @classmethod
    def from_pretrained(
        cls, model="tiny", *, device: str = "cpu", dtype: str | None = None, variant: str | None = None, revision: str | None = None,
        resident: str | None = None, scheduler=None,
    ):  # fmt: skip
        """Loads a pipeline. model: "tiny" (embedded), a folder in diffusers' layout, a single file, or a hub id "CompVis/stable-diffusion-v1-4".

        device: "cpu", "cuda", "cuda:1", or "auto": the first GPU, else the CPU and a line that says why
        dtype: "float32", "float64" for the oracle, on a GPU also "float16"; default: float32 on the CPU, float16 on a GPU
        variant: "fp16" reads the half-sized files (into the same dtype)        scheduler: instead of the model's own
        resident: "float16" keeps the weights in half the memory and widens each one, exactly, when it is used; on the CPU only.
        Raises FetchError (network), ModelFileError (files), NumericError (NaN weights), ResourceError (a GPU that cannot be used), UsageError.
        """
        from .checkpoint import component_bytes, read_model_index, resolve
        from .tokenizer import CLIPTokenizer

        device = gpu.choose(device)
        dtype = check_dtype(default_dtype(device) if dtype is None else dtype, device)
        check_residence(resident, device)
        folder = resolve(str(model), variant=variant, revision=revision)
        if folder.is_file():
            return cls.from_single_file(model, device=device, dtype=dtype, resident=resident, scheduler=scheduler)
        read_model_index(folder)
        if device != "cpu":
            gpu.check_room(device, sum(component_bytes(folder, part, dtype) for part in NETWORKS), str(model))
        load = dict(device=device, dtype=dtype, variant=variant, resident=resident)
        return cls(
            tokenizer=CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
            scheduler=load_scheduler(folder) if scheduler is None else scheduler,
            text_encoder=CLIPTextModel.from_pretrained(folder, **load),
            unet=UNet2DConditionModel.from_pretrained(folder, **load),
            vae=AutoencoderKL.from_pretrained(folder, **load),
            name=str(model),
        )

    def astype(self, dtype: str):
        """The same pipeline in another dtype; `pipe.astype("float64")` is the oracle that errors are measured against."""
        return type(self)(
            vae=self.vae.astype(dtype), text_encoder=self.text_encoder.astype(dtype), unet=self.unet.astype(dtype),
            tokenizer=self.tokenizer, scheduler=type(self.scheduler).from_config(self.scheduler.config), name=self.name,
        )  # fmt: skip

    def to(self, device: str | None = None, dtype: str | None = None):
        """Moves the three networks, in place as in diffusers, and returns the pipeline: `pipe.to("cuda", "float16")`.

        Noise, latents and the sampler stay on the host: the same seed begins with the same numbers on every device.
        """
        networks = [getattr(self, part) for part in NETWORKS]
        device = self.device if device is None else gpu.choose(device)
        if device != self.device:  # all of them or none
            sizes = (m.num_parameters() * np.dtype(check_dtype(m.dtype if dtype is None else dtype, device)).itemsize for m in networks)
            gpu.check_room(device, sum(sizes), self.name)
        for network in networks:
            network.to(device, dtype)
        return self

    @classmethod
    def from_pipe(cls, pipe):
        """This kind of pipeline from the parts of another one, shared and not loaded again: `StableDiffusionImg2ImgPipeline.from_pipe(pipe)`."""
        return cls(**pipe.components, name=pipe.name)

    @property
    def components(self) -> dict:
        return {part: getattr(self, part) for part in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}

    @property
    def dtype(self) -> np.dtype:
        return self.vae.dtype

    @property
    def host_dtype(self) -> np.dtype:
        """Of noise, latents, prompt vectors and pixels, which live on the host: float32 beside float16 networks, else that of the networks."""
        return self.vae.host_dtype

    @property
    def device(self) -> str:
        """Where the networks are: "cpu", or "cuda:0", "cuda:1", …"""
        return self.vae.device


def load_scheduler(folder):
    """The sampler that a pipeline folder names in scheduler/scheduler_config.json, or the one of a single file's family."""
    from .checkpoint import read_scheduler_config

    return scheduler_from_config(read_scheduler_config(folder))


def load_tokenizer(model):
    """The tokenizer of a model, which for a single file lies beside it or on the hub."""
    from .checkpoint import tokenizer_files
    from .tokenizer import CLIPTokenizer

    folder, pad_token = tokenizer_files(model)
    return CLIPTokenizer.from_pretrained(folder, pad_token=pad_token)
