"""Textual inversion: a new word for what a few pictures have in common, learned by descending the denoising loss in the word's vector alone.

    vectors = learn_embedding(pipe, pictures, "a cat on a <olive> background", "<olive>", init="green")
    save_embedding("olive.safetensors", "<olive>", vectors)             # diffusers' load_textual_inversion reads it
    image = pipe(prompt_embeds=encode_with(pipe, "a fox on a <olive> background", "<olive>", vectors, init="green")).images[0]

The gradient's way back: loss → UNet → context → text encoder → the rows of x where the word stands. All weights stay as they are.
Rinon Gal et al., arXiv:2208.01618; diffusers' examples/textual_inversion.
"""

from dataclasses import dataclass

import numpy as np

from . import vjp
from .errors import UsageError


def learn_embedding(
    pipe, pictures, prompts, token: str, *, init: str, vectors: int = 1, steps: int = 150, batch: int = 4, learning_rate: float = 0.01, seed: int = 0,
    on_step=None,
) -> np.ndarray:  # fmt: skip
    """Learns a word from pictures -> its vectors [vectors, C].

    pictures [N, H, W, 3] in 0 … 1; prompts: one text for each, or one for all, that holds the token once or more
    init: a word of the vocabulary, one token long, that the search starts from and that holds the token's place among the ids
    batch: pictures a step, each at a timestep and with a noise of its own        on_step(i, loss): called after every step
    Raises UsageError.
    """
    prompts = [prompts] * len(pictures) if isinstance(prompts, str) else list(prompts)
    if len(prompts) != len(pictures) or not prompts:
        raise UsageError(f"{len(prompts)} prompts for {len(pictures)} pictures", "", "give one for each, or one for all")
    if steps < 1 or batch < 1:
        raise UsageError(f"steps = {steps}, batch = {batch}", "both count something", "use whole numbers from 1")
    words = Words.put(pipe, prompts, token, init, vectors)
    z, random = latents_of(pipe, pictures), np.random.default_rng(seed)
    e = words.start(pipe)
    adam = Adam(e.shape, learning_rate)
    for i in range(steps):
        pick = random.integers(len(z), size=batch)
        draw = random.standard_normal((batch, *z.shape[1:])).astype(z.dtype)
        t = spread_timesteps(random, batch, len(pipe.scheduler))
        context, pull_text = words.of(pick).encode(pipe, e)
        loss, pull_loss = denoising_loss(pipe, z[pick], context, t, draw)
        e = e - adam.step(pull_text(pull_loss())).astype(e.dtype)
        if on_step is not None:
            on_step(i, loss)
    return e


def encode_with(pipe, prompt: str, token: str, vectors, *, init: str) -> np.ndarray:
    """The prompt's vectors, with the learned ones where the token stands -> prompt_embeds [1, T, C]."""
    return Words.put(pipe, [prompt], token, init, len(vectors)).encode(pipe, vectors)[0]


def save_embedding(path, token: str, vectors):
    """Writes {token: vector [C], or [n, C] for several} as safetensors, the layout of diffusers' learned_embeds.safetensors."""
    from safetensors.numpy import save_file

    save_file({token: np.ascontiguousarray(vectors[0] if len(vectors) == 1 else vectors, dtype="float32")}, path)


# ----- the word in its prompts -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Words:
    """Prompts as ids [B, T], and where the word stands in them: arrays `row` and `place`, and `part`, which of its vectors."""

    ids: np.ndarray
    row: np.ndarray
    place: np.ndarray
    part: np.ndarray
    init_id: int
    vectors: int

    @classmethod
    def put(cls, pipe, prompts, token: str, init: str, vectors: int):
        """Puts `vectors` times `init` where the token stands, and remembers these places. Raises UsageError."""
        length = pipe.text_encoder.config.max_position_embeddings
        spelled = pipe.tokenizer.table(init)
        if len(spelled) != 3 or spelled[1][0] == pipe.tokenizer.unk_token_id:
            why = f"it is {len(spelled) - 2} tokens long" if len(spelled) != 3 else "the vocabulary does not have it"
            raise UsageError(f"init = {init!r} cannot stand for the word", why, "choose a word that is one token")
        if vectors < 1:
            raise UsageError(f"vectors = {vectors}", "a word has at least one", "use 1")
        found = []
        for prompt in prompts:
            if not token or token not in prompt or init in prompt.replace(token, " ").split():
                why = f"every prompt holds {token!r}, and {init!r} only in its place"
                raise UsageError(f"the prompt is {prompt!r}", why, "write the token into it, or choose another init")
            ids = pipe.tokenizer(prompt.replace(token, " ".join([init] * vectors)), max_length=length).input_ids[0]
            places = np.flatnonzero(ids == spelled[1][0])
            if len(places) != vectors * prompt.count(token):
                raise UsageError(f"the prompt is {prompt!r}", f"only {len(places)} of the word's vectors fit into {length} tokens", "shorten it")
            found.append((ids, places))
        row = np.concatenate([np.full(len(places), b) for b, (_, places) in enumerate(found)])
        place = np.concatenate([places for _, places in found])
        part = np.concatenate([np.arange(len(places)) % vectors for _, places in found])
        return cls(np.stack([ids for ids, _ in found]), row, place, part, spelled[1][0], vectors)

    def start(self, pipe) -> np.ndarray:
        """The vector of `init`, once for each part.        -> [n, C]"""
        return np.repeat(pipe.text_encoder.token_embedding[self.init_id][None], self.vectors, axis=0)

    def of(self, pick) -> "Words":
        """The prompts with these numbers, which may repeat."""
        where = [np.flatnonzero(self.row == b) for b in pick]
        row = np.concatenate([np.full(len(at), b) for b, at in enumerate(where)])
        at = np.concatenate(where)
        return Words(self.ids[pick], row, self.place[at], self.part[at], self.init_id, self.vectors)

    def encode(self, pipe, e):
        """x = token + position, with the vectors e in the word's places -> context [B, T, C]; pullback(dcontext) -> de, summed over the places."""
        text_encoder = pipe.text_encoder
        x = text_encoder.embeddings(self.ids)
        x[self.row, self.place] = e[self.part] + text_encoder.position_embedding[self.place]
        context, pull = vjp.encode_embeddings(text_encoder, x)

        def pullback(dcontext):
            de = np.zeros_like(e)
            np.add.at(de, self.part, pull(dcontext)[self.row, self.place])
            return de

        return context, pullback


# ----- the loss --------------------------------------------------------------------------------------------------------------


def denoising_loss(pipe, z, context, t, noise):
    """mean (UNet(√ᾱ z + √(1−ᾱ) ε, t, context) − target)², target ε, v or z by the prediction_type -> its value; pullback() -> dcontext.

    z and noise = ε [B, 4, H, W], context [B, T, C], t [B] whole timesteps
    """
    alpha = pipe.scheduler.alphas_cumprod[t].astype("float64").reshape(-1, 1, 1, 1)
    a, s = np.sqrt(alpha).astype(z.dtype), np.sqrt(1.0 - alpha).astype(z.dtype)
    kind = pipe.scheduler.config.prediction_type
    target = {"epsilon": noise, "sample": z, "v_prediction": a * noise - s * z}[kind]
    y, pullback = vjp.unet(pipe.unet, a * z + s * noise, t, context)
    off = y - target
    return float((off**2).mean(dtype="float64")), lambda: pullback(off * (2.0 / off.size))[1]


def latents_of(pipe, pictures) -> np.ndarray:
    """The pictures' latents: the mean of what the encoder says, scaled for the UNet.        [N, H, W, 3] in 0 … 1 -> [N, 4, h, w]"""
    if getattr(pictures, "ndim", 0) != 4 or pictures.shape[3] != 3 or pictures.dtype.kind != "f":
        raise UsageError("the pictures are no float array [N, H, W, 3]", "in 0 … 1", "np.stack([np.asarray(p) for p in …]) / 255")
    x = (2.0 * pictures - 1.0).astype(pipe.dtype).transpose(0, 3, 1, 2)
    return pipe.vae.encode(x).mode() * pipe.vae.config.scaling_factor


def spread_timesteps(random, count: int, T: int) -> np.ndarray:
    """One random timestep in each of `count` equal parts of 0 … T−1: the loss depends on t more than on anything else.        -> int64 [count]"""
    return ((np.arange(count) + random.random(count)) * (T / count)).astype("int64")


class Adam:
    """m ← β₁m + (1−β₁)g,  v ← β₂v + (1−β₂)g²,  move = rate · m̂/(√v̂ + ε), m̂ and v̂ freed of their start at 0.        arXiv:1412.6980"""

    def __init__(self, shape, rate: float, beta_1: float = 0.9, beta_2: float = 0.999, eps: float = 1e-8):
        self.rate, self.beta_1, self.beta_2, self.eps = rate, beta_1, beta_2, eps
        self.m, self.v, self.t = np.zeros(shape, dtype="float64"), np.zeros(shape, dtype="float64"), 0

    def step(self, gradient) -> np.ndarray:
        """What to subtract from the parameters."""
        self.t += 1
        self.m += (1 - self.beta_1) * (gradient - self.m)
        self.v += (1 - self.beta_2) * (gradient.astype("float64") ** 2 - self.v)
        m_hat, v_hat = self.m / (1 - self.beta_1**self.t), self.v / (1 - self.beta_2**self.t)
        return self.rate * m_hat / (np.sqrt(v_hat) + self.eps)
