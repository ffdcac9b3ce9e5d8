"""Train the embedded tiny model: emoji pictures -> VAE -> text encoder + UNet -> a diffusers folder in fp16.

    python tools/train_tiny.py --work tiny-work                      everything, on one GPU or on the CPU
    python tools/train_tiny.py --work tiny-work --init FOLDER --stages pool unet write decoder export
                                                                     on from a model of these shapes, whose latents stay
    python tools/train_tiny.py --work tiny-work --stages decoder     the decoder alone, longer (the latents stay)
    python tools/train_tiny.py --work tiny-work --stages export      write tiny-work/export from the last checkpoints

Needs the `reference` extra and npm. Every stage continues where it was interrupted; lengths are minutes of training, and
the learning rate follows the minutes, so the same command suits a slow and a fast machine. The decoder comes last: it learns
from the encoder's latents and from those the UNet writes, meant to make it forgive the UNet's errors. Measured choices: a noise
schedule that ends in pure noise (beta_end 0.02, v-prediction), without which the model ignores its prompt; two norm groups
in the VAE, because more of them wipe out flat colour. Not measured one by one: the UNet's latents for the decoder, more empty
captions at low noise, and drawings of one size on the latent's cells, mostly in the middle, which is also simply an easier task.
"""

import argparse
import copy
import json
import math
import pathlib
import shutil
import time

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from tiny_data import (FRESH, NOUNS, SIZE, caption, compose, draw_pairs, encode, load_sprites, prompt_of, save_grid, scores,
                       train_tokenizer)
from transformers import CLIPTextConfig, CLIPTextModel

LATENT = SIZE // 4                              # the side of the latents, of which there are four channels


# ---------------------------------------------------------------- models

def new_vae():
    return AutoencoderKL(block_out_channels=(32, 64, 64), layers_per_block=1, norm_num_groups=2, sample_size=SIZE,
                         down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3)


def new_text_encoder(vocabulary):
    v = len(vocabulary)
    return CLIPTextModel(CLIPTextConfig(vocab_size=v, hidden_size=128, intermediate_size=512, num_hidden_layers=2,
                                        num_attention_heads=4, projection_dim=128, bos_token_id=v - 2, eos_token_id=v - 1,
                                        pad_token_id=v - 1))


def new_unet():
    return UNet2DConditionModel(
        sample_size=LATENT, block_out_channels=(64, 128, 192), layers_per_block=1, norm_num_groups=16, attention_head_dim=4,
        cross_attention_dim=128, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"))


def new_models(args, vocabulary):
    """Text encoder and UNet; from `--init`, with the layers `--layers` and the embeddings of the tokens both vocabularies have."""
    models = torch.nn.ModuleDict(dict(text=new_text_encoder(vocabulary), unet=new_unet()))
    if args.init:
        models["unet"] = UNet2DConditionModel.from_pretrained(args.init, subfolder="unet", torch_dtype=torch.float32)
        donor = CLIPTextModel.from_pretrained(args.init, subfolder="text_encoder", dtype=torch.float32)
        encoder = next(module for module in donor.modules() if hasattr(module, "layers"))
        encoder.layers = torch.nn.ModuleList(encoder.layers[i] for i in args.layers)
        donor = donor.state_dict()
        known = json.loads((pathlib.Path(args.init) / "tokenizer/vocab.json").read_text("utf-8"))
        name = next(key for key in donor if key.endswith("token_embedding.weight"))
        rows = models["text"].state_dict()[name].clone()
        for token in vocabulary.keys() & known.keys():
            rows[vocabulary[token]] = donor[name][known[token]]
        models["text"].load_state_dict(donor | {name: rows})
    return models


def new_scheduler():
    return DDIMScheduler(beta_start=0.00085, beta_end=0.02, beta_schedule="scaled_linear", clip_sample=False,
                         set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction")


# ---------------------------------------------------------------- the loop all stages share

class Run:
    """Optimiser, averaged weights, learning-rate curve, log and checkpoint of one stage.

    The learning rate rises over 100 steps, is flat, and falls along a cosine over the last 70 % of the minutes.
    """

    def __init__(self, args, name, model, trained, minutes, rate, average):
        self.path, self.name, self.minutes, self.rate, self.average = args.work / f"{name}.pt", name, minutes, rate, average
        self.model, self.ema, self.step, self.seconds = model, copy.deepcopy(model).eval().requires_grad_(False), 0, 0.0
        self.device, self.trained = next(model.parameters()).device, trained
        self.optimiser = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        self.marks, self.losses = {}, []
        if self.path.exists():
            state = torch.load(self.path, map_location=self.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.ema.load_state_dict(state["ema"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.seconds = state["step"], state["seconds"]
        self.clock = time.monotonic()

    def done(self):
        return self.seconds >= 60 * self.minutes

    def update(self, loss):
        """One optimiser step on a loss, one step of the averaged weights."""
        progress = self.seconds / (60 * self.minutes)
        fall = min(1.0, max(0.0, (progress - 0.3) / 0.7))
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * min(1, (self.step + 1) / 100) * max(0.02, 0.5 * (1 + math.cos(math.pi * fall)))
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimiser.step()
        self.step += 1
        decay = min(self.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), 1 - decay)
        self.losses.append(loss.item())
        self.seconds += min(60.0, time.monotonic() - self.clock)
        self.clock = time.monotonic()

    def every(self, minutes, key):
        """True once per so many minutes of training."""
        mark, self.marks[key] = self.marks.get(key, self.seconds // (60 * minutes)), self.seconds // (60 * minutes)
        return self.marks[key] != mark

    def log(self, args, text):
        line = f"{time.strftime('%H:%M:%S')} {self.name} {self.seconds / 60:.1f} min, step {self.step}, " \
               f"loss {np.mean(self.losses[-200:] or [math.nan]):.4f}, {text}"
        print(line, flush=True)
        with open(args.work / "log.txt", "a", encoding="utf-8") as file:
            file.write(line + "\n")
        self.clock = time.monotonic()

    def save(self):
        """Write the checkpoint beside the old one, then replace it, so that an interruption loses nothing."""
        state = dict(model=self.model.state_dict(), ema=self.ema.state_dict(), optimiser=self.optimiser.state_dict(),
                     step=self.step, seconds=self.seconds)
        torch.save(state, self.path.with_suffix(".new"))
        self.path.with_suffix(".new").replace(self.path)
        self.clock = time.monotonic()


def products(args):
    """With --bfloat16, bfloat16 products of float32 weights: 1.5 to 4 times as fast where the processor has them, slower elsewhere."""
    return torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.bfloat16)


def to_tensor(pictures, device):
    """uint8 (B, 64, 64, 3) -> float32 (B, 3, 64, 64) in −1…1."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(x):
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


# ---------------------------------------------------------------- VAE

def picture_loss(y, x):
    """L1 + MSE + ½·|difference of mean colour| + L1 of the finite differences, which keeps edges sharp."""
    edges = sum(F.l1_loss(y.diff(dim=d), x.diff(dim=d)) for d in (2, 3))
    return F.l1_loss(y, x) + F.mse_loss(y, x) + 0.5 * (y.mean((2, 3)) - x.mean((2, 3))).abs().mean() + edges


def batch_of_pictures(rng, sprites, count, device):
    return to_tensor(np.stack([compose(rng, sprites, n, c) for n, c in draw_pairs(rng, count)]), device)


@torch.no_grad()
def reconstruction_psnr(vae, sprites, device, grid=None):
    """PSNR in dB, from the mean squared error over 120 composites that training never drew."""
    rng = np.random.default_rng(10**6)
    pictures = np.stack([compose(rng, sprites, n, c) for n, c in draw_pairs(rng, 120, unseen=True)])
    output = to_pictures(torch.cat([vae(to_tensor(p, device)).sample for p in np.split(pictures, 10)]))
    if grid:
        save_grid(np.stack([pictures[:40], output[:40]], 1).reshape(-1, SIZE, SIZE, 3), grid, 10)
    return 10 * math.log10(255**2 / np.mean((pictures.astype(np.float64) - output) ** 2))


def train_vae(args, sprites, whole):
    """Train the whole VAE, or its decoder alone on what the finished encoder writes (the latents stay as they are)."""
    name = "vae" if whole else "decoder"
    vae = load_vae(args, decoder=False).to(args.device)
    trained = list(vae.parameters()) if whole else [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    run = Run(args, name, vae, trained, args.vae_minutes if whole else args.decoder_minutes, 1e-3, 0.996)
    rng = np.random.default_rng(run.step + 1)
    pool = None if whole else open_pool(args)
    run.log(args, f"starts at {reconstruction_psnr(run.ema, sprites, args.device):.2f} dB")
    while not run.done():
        if whole:
            x = batch_of_pictures(rng, sprites, args.vae_batch, args.device)
            with products(args):
                code = vae.encode(x).latent_dist
                y = vae.decode(code.mean + code.std * torch.randn_like(code.mean)).sample.float()
            run.update(picture_loss(y, x) + 1e-6 * code.kl().float().mean())
        else:
            x, z = decoder_batch(args, rng, pool)
            with products(args):
                y = vae.decode(z / vae.config.scaling_factor).sample.float()
            run.update(picture_loss(y, x))
        if run.every(1, "save"):
            run.save()
        if run.every(3, "score"):
            run.log(args, f"{reconstruction_psnr(run.ema, sprites, args.device, args.work / f'grids/{name}.png'):.2f} dB")
    run.save()
    run.log(args, f"ends at {reconstruction_psnr(run.ema, sprites, args.device):.2f} dB")


def decoder_batch(args, rng, pool):
    """Pictures and latents to learn them from: as encoded or, three in eight, as the UNet wrote them, all with a little noise."""
    pick = rng.integers(len(pool["pairs"]), size=args.vae_batch)
    z = pool_latents(pool, pick, args.device)
    if "written" in pool:
        chosen = rng.integers(len(pool["written"]), size=3 * args.vae_batch // 8)
        pick[:len(chosen)] = pool["written_from"][chosen]
        z[:len(chosen)] = torch.from_numpy(pool["written"][chosen]).to(args.device).float()
    z += 0.3 * torch.rand(len(z), 1, 1, 1, device=args.device)**2 * torch.randn_like(z)
    return to_tensor(pool["pictures"][pick], args.device), z


def load_vae(args, decoder=True):
    """The averaged VAE as trained so far; the longer trained decoder, if there is one, replaces the first."""
    vae = AutoencoderKL.from_pretrained(args.init, subfolder="vae", torch_dtype=torch.float32) if args.init else new_vae()
    for path in (args.work / f"{stage}.pt" for stage in ["vae"] + ["decoder"] * decoder):
        if path.exists():
            vae.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["ema"])
    if (args.work / "pool/scaling.npy").exists():
        vae.register_to_config(scaling_factor=float(np.load(args.work / "pool/scaling.npy")))
    return vae.eval()


@torch.no_grad()
def make_pool(args, sprites):
    """Draw the training pictures once and encode them, so that later steps touch no encoder."""
    folder = args.work / "pool"
    if (folder / "pairs.npy").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    vae, rng = load_vae(args, decoder=False).to(args.device), np.random.default_rng(0)
    pairs = draw_pairs(rng, args.pool, nouns=[*NOUNS, *FRESH])     # what no ancestor knows is shown twice as often
    pictures = np.stack([compose(rng, sprites, n, c) for n, c in pairs])
    moments = []
    for i in range(0, len(pictures), 40):
        with products(args):
            code = vae.encode(to_tensor(pictures[i:i + 40], args.device)).latent_dist
        moments.append(torch.cat([code.mean, code.std], 1).half().cpu().numpy())
    np.save(folder / "pictures.npy", pictures)
    moments = np.concatenate(moments)
    scaling = vae.config.scaling_factor if args.init else 1 / moments[:, :4].astype(np.float32).std()
    np.save(folder / "scaling.npy", round(float(scaling), 5))
    np.save(folder / "moments.npy", moments)
    np.save(folder / "pairs.npy", pairs)


def open_pool(args):
    return {path.stem: np.load(path, mmap_mode="r") for path in (args.work / "pool").glob("*.npy")}


def pool_latents(pool, pick, device):
    """Means of the encoder's posterior, scaled for the UNet -> float32 (B, 4, 16, 16); its noise would only blur the target."""
    return float(pool["scaling"]) * torch.from_numpy(pool["moments"][pick, :4]).to(device).float()


# ---------------------------------------------------------------- text encoder and UNet

def diffuse(scheduler, z, noise, t):
    """Noisy latents √ᾱ·z + √(1−ᾱ)·noise and their target v = √ᾱ·noise − √(1−ᾱ)·z."""
    return scheduler.add_noise(z, noise, t), scheduler.get_velocity(z, noise, t)


def tokens(args, vocabulary, captions):
    return torch.from_numpy(encode(vocabulary, captions)).to(args.device)


def draw_times(count, device):
    """Half of the times uniform, half around t = 600 (logit-normal), where the noise is such that shapes are decided."""
    uniform, middle = torch.rand(count, device=device), torch.sigmoid(0.4 + 0.8 * torch.randn(count, device=device))
    return (1000 * torch.where(torch.arange(count, device=device) % 2 == 0, uniform, middle)).long().clamp(max=999)


@torch.no_grad()
def caption_gap(args, models, scheduler, vocabulary, pool):
    """Error of v with the right captions and with its neighbour's, at t = 900: they part when the text is heard."""
    pick = np.arange(64)
    generator = torch.Generator(args.device).manual_seed(0)
    z, t = pool_latents(pool, pick, args.device), torch.full((64,), 900, device=args.device)
    noise = torch.randn(z.shape, generator=generator, device=args.device)
    noisy, target = diffuse(scheduler, z, noise, t)
    ids = tokens(args, vocabulary, [prompt_of(n, c) for n, c in pool["pairs"][pick]])
    with products(args):
        return [F.mse_loss(models["unet"](noisy, t, models["text"](i)[0]).sample.float(), target).item()
                for i in (ids, ids.roll(1, 0))]


def guided(args, models, scheduler, vocabulary, prompts, z, times, guidance):
    """DDIM from latents z over the given times with classifier-free guidance -> float32 (B, 4, 16, 16)."""
    with products(args):
        text = models["text"](tokens(args, vocabulary, [""] * len(prompts) + list(prompts)))[0]
        for t in times:
            plain, told = models["unet"](torch.cat([z, z]), t.to(args.device), text).sample.float().chunk(2)
            z = scheduler.step(plain + guidance * (told - plain), t, z).prev_sample
    return z


@torch.no_grad()
def sample(args, models, vae, scheduler, vocabulary, prompts, steps=25, seed=0):
    """Pictures of the prompts by DDIM with classifier-free guidance -> uint8 (B, 64, 64, 3)."""
    z = torch.stack([torch.randn(4, LATENT, LATENT, generator=torch.Generator().manual_seed(seed + i))
                     for i in range(len(prompts))]).to(args.device)
    scheduler.set_timesteps(steps)
    z = guided(args, models, scheduler, vocabulary, prompts, z, scheduler.timesteps, args.guidance)
    with products(args):
        return to_pictures(torch.cat([vae.decode(part / vae.config.scaling_factor).sample for part in z.split(16)]))


def train_unet(args, sprites):
    """Train text encoder and UNet together on the cached latents, plain MSE on v."""
    vocabulary, scheduler, pool = train_tokenizer(args.work / "tokenizer"), new_scheduler(), open_pool(args)
    models = new_models(args, vocabulary).to(args.device).train()
    run = Run(args, "unet", models, list(models.parameters()), args.unet_minutes, args.rate, 0.998)
    rng = np.random.default_rng(run.step)
    while not run.done():
        pick = rng.integers(len(pool["pairs"]), size=args.batch)
        z, t = pool_latents(pool, pick, args.device), draw_times(args.batch, args.device)
        # Below t = 500 the picture shows through the noise: there more captions are empty, in the hope that guidance exaggerates less.
        silent = (t < 500).cpu().numpy() & (rng.random(args.batch) < 0.3)
        ids = tokens(args, vocabulary, ["" if s else caption(rng, n, c) for s, (n, c) in zip(silent, pool["pairs"][pick])])
        noisy, target = diffuse(scheduler, z, torch.randn_like(z), t)
        with products(args):
            v = models["unet"](noisy, t, models["text"](ids)[0]).sample
        run.update(F.mse_loss(v.float(), target))
        if run.every(1, "save"):
            run.save()
        if run.every(2, "gap"):
            right, rotated = caption_gap(args, run.ema, scheduler, vocabulary, pool)
            run.log(args, f"{run.step * args.batch} pictures, right / rotated caption {right:.3f} / {rotated:.3f}")
            if run.seconds > 600 and rotated < 1.2 * right:
                raise SystemExit("stopped: after ten minutes the model still ignores its captions")
        if run.every(args.score_minutes, "score"):
            run.log(args, report(args, run, load_vae(args).to(args.device), scheduler, vocabulary, sprites))
    run.save()
    run.log(args, report(args, run, load_vae(args).to(args.device), scheduler, vocabulary, sprites))


@torch.no_grad()
def write_latents(args):
    """Latents as the UNet writes them, for the decoder to learn from: pool latents, noised up to a random time and sampled back."""
    vocabulary, scheduler, pool = train_tokenizer(args.work / "tokenizer"), new_scheduler(), open_pool(args)
    models, rng = new_models(args, vocabulary), np.random.default_rng(3)
    models.load_state_dict(torch.load(args.work / "unet.pt", map_location="cpu", weights_only=True)["ema"])
    models, written, picked = models.to(args.device).eval(), [], []
    scheduler.set_timesteps(12)
    clock = time.monotonic()
    while time.monotonic() - clock < 60 * args.write_minutes:
        pick = rng.integers(len(pool["pairs"]), size=16)
        prompts = [prompt_of(n, c) for n, c in pool["pairs"][pick]]
        times = scheduler.timesteps[rng.integers(3, 10):]          # from t = 665 … 167, where the place of the drawing is still to be seen
        z = pool_latents(pool, pick, args.device)
        z = scheduler.add_noise(z, torch.randn_like(z), times[:1].to(args.device))
        written.append(guided(args, models, scheduler, vocabulary, prompts, z, times, rng.uniform(3, 8)).half().cpu().numpy())
        picked.append(pick)
    written, picked = np.concatenate(written), np.concatenate(picked)
    error = np.sqrt(np.square(written - pool_latents(pool, picked, "cpu").numpy()).mean((1, 2, 3)))
    keep = error < 0.5              # beside a spread of 1; in the others the drawing has moved or changed, and teaches only blur
    print(f"{len(written)} latents, error {np.median(error):.3f} (median), {keep.sum()} kept", flush=True)
    np.save(args.work / "pool/written.npy", written[keep])
    np.save(args.work / "pool/written_from.npy", picked[keep])


def report(args, run, vae, scheduler, vocabulary, sprites):
    """Sample 24 prompts, half of them held-out pairs, save the grid and return their scores as text."""
    rng = np.random.default_rng(7)
    pairs = np.concatenate([draw_pairs(rng, 12), draw_pairs(rng, 12, unseen=True)])
    pictures = sample(args, run.ema, vae, scheduler, vocabulary, [prompt_of(n, c) for n, c in pairs])
    save_grid(pictures, args.work / f"grids/unet-{int(run.seconds / 60):03d}.png", 12)
    colour, noun = scores(pictures, pairs, sprites)
    return f"colour {colour[:12].mean():.0%} held out {colour[12:].mean():.0%}, noun {noun[:12].mean():.0%} held out {noun[12:].mean():.0%}"


# ---------------------------------------------------------------- export

def export(args):
    """Write the averaged weights as a diffusers folder in fp16, with the names official files have."""
    vocabulary, folder = train_tokenizer(args.work / "export/tokenizer"), args.work / "export"
    models = new_models(args, vocabulary)
    models.load_state_dict(torch.load(args.work / "unet.pt", map_location="cpu", weights_only=True)["ema"])
    models["unet"].half().save_pretrained(folder / "unet")
    load_vae(args).half().save_pretrained(folder / "vae")
    new_scheduler().save_pretrained(folder / "scheduler")
    text = models["text"].half()
    shutil.rmtree(folder / "text_encoder", ignore_errors=True)
    text.save_pretrained(folder / "text_encoder")
    weights = {f"text_model.{k.removeprefix('text_model.')}": v.contiguous() for k, v in text.state_dict().items()
               if "position_ids" not in k}
    save_file(weights, folder / "text_encoder/model.safetensors", metadata={"format": "pt"})
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1", "feature_extractor": [None, None],
             "image_encoder": [None, None], "requires_safety_checker": False, "safety_checker": [None, None],
             "scheduler": ["diffusers", "DDIMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
             "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
             "vae": ["diffusers", "AutoencoderKL"]}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text("utf-8"))
        config.pop("_name_or_path", None)  # where --init lay on the machine that trained
        path.write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for downloads, checkpoints, grids and the result")
    parser.add_argument("--stages", nargs="+", default=["vae", "pool", "unet", "write", "decoder", "export"])
    parser.add_argument("--init", help="a diffusers folder of the same shapes to train on from, instead of new weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads (one per process is best on a busy machine)")
    for name, default in (("vae-minutes", 20), ("decoder-minutes", 20), ("unet-minutes", 120), ("write-minutes", 5), ("score-minutes", 12)):
        parser.add_argument(f"--{name}", type=float, default=default)
    for name, default in (("vae-batch", 8), ("batch", 16), ("pool", 10000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rate", type=float, default=7e-4, help="peak learning rate of text encoder and UNet")
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--layers", type=int, nargs=2, default=(0, 1), help="the text layers of --init to start from")
    parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available(),
                        help="fast on GPUs and on processors with AVX512-BF16 or AMX")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(time.time_ns() % 2**31)
    args.work.mkdir(parents=True, exist_ok=True)
    sprites = load_sprites(args.work)
    stages = dict(vae=lambda: train_vae(args, sprites, True), pool=lambda: make_pool(args, sprites),
                  unet=lambda: train_unet(args, sprites),
                  write=lambda: write_latents(args), decoder=lambda: train_vae(args, sprites, False), export=lambda: export(args))
    for stage in args.stages:
        stages[stage]()


if __name__ == "__main__":
    main()
