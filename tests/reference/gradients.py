"""The same gradients by torch.autograd: of the inputs, and of every parameter."""

import torch

from tests.reference.record import timesteps_in_float64
from tests.vjp.models.cases import pulled_back


def torch_gradients(case: str, model, inputs: dict) -> tuple[dict, dict]:
    """({input: gradient}, {parameter: gradient}) in the model's dtype; a float64 model's timesteps are those of float64, too."""
    if next(model.parameters()).dtype == torch.float64:
        with timesteps_in_float64():
            return _gradients(case, model, inputs)
    return _gradients(case, model, inputs)


def _gradients(case, model, inputs):
    dtype = next(model.parameters()).dtype
    given = {key: torch.from_numpy(value).to(dtype) if value.dtype.kind == "f" else torch.from_numpy(value) for key, value in inputs.items()}
    wanted = {key: x.requires_grad_(True) for key, x in given.items() if x.is_floating_point() and key != "timestep"}
    model.zero_grad()
    if case.startswith("vae"):
        y = model.encode(given["x"]).latent_dist.parameters if "x" in given else model.decode(given["z"]).sample
    elif case.startswith("unet"):
        y = model(**given).sample
    else:
        text = getattr(model, "text_model", model)
        wanted = {"embeddings": text.embeddings(given["input_ids"])}
        wanted["embeddings"].retain_grad()
        hook = text.embeddings.register_forward_hook(lambda *_: wanted["embeddings"])
        y = model(**given).last_hidden_state
        hook.remove()
    if case == "vae_blue":
        (200.0 * ((y / 2 + 0.5)[:, 2] - 0.9).abs().mean()).backward()
    else:
        y.backward(torch.from_numpy(pulled_back(case, tuple(y.shape))).to(dtype))
    parameters = {name: p.grad.numpy().copy() for name, p in model.named_parameters() if p.grad is not None}
    return {key: x.grad.numpy() for key, x in wanted.items()}, parameters
