"""Trains the demo model from nothing on a CPU: python -m demo.train data | vae | latents | unet | decoder | export.

Everything is kept in one working folder (--folder); `export` writes the shipped files into demo/weights.
The UNet trains fastest with one process per core: torchrun --nproc-per-node 2 -m demo.train unet ...
A trained model goes on in another world with `--from WEIGHTS` (latents, unet), such as that of `data --busy`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from .config import TOKENIZER, TRAIN_STEPS, WEIGHTS
from .model import DemoModel, alphas_cumprod, build, build_tokenizer_files, load, tokenize
from .vae import DemoVAE
from .world import SIZE, draw, sample_scene

log = logging.getLogger("demo.train")


def _draw_block(task: tuple[str, int, int, int, bool]) -> list[str]:
    path, total, start, stop, busy = task
    images = np.memmap(path, np.uint8, "r+", shape=(total, SIZE, SIZE, 3))
    rng = np.random.default_rng([2510, start])
    prompts = []
    for n in range(start, stop):
        scene = sample_scene(rng)
        images[n] = draw(scene, rng, busy)
        prompts.append(scene.prompt())
    return prompts


def make_data(folder: Path, count: int, workers: int, busy: bool = False) -> None:
    """Draws `count` training scenes, in busy places or plain: images.bin, uint8 (count, 128, 128, 3), and prompts.json."""
    path = folder / "images.bin"
    np.memmap(path, np.uint8, "w+", shape=(count, SIZE, SIZE, 3)).flush()
    tasks = [(str(path), count, start, min(start + 1000, count), busy) for start in range(0, count, 1000)]
    with Pool(workers) as pool:
        prompts = [prompt for block in pool.imap(_draw_block, tasks) for prompt in block]
    (folder / "prompts.json").write_text(json.dumps(prompts))


def load_images(folder: Path) -> np.ndarray:
    """The drawn scenes, uint8 (count, 128, 128, 3), read as needed."""
    return np.memmap(folder / "images.bin", np.uint8, "r").reshape(-1, SIZE, SIZE, 3)


def to_signal(images: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _edges(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def _crops(images: np.ndarray, rng: np.random.Generator, batch: int, side: int) -> np.ndarray:
    rows = rng.integers(0, len(images), batch)
    corners = 8 * rng.integers(0, (SIZE - side) // 8 + 1, (batch, 2))
    return np.stack([images[n, y : y + side, x : x + side] for n, (y, x) in zip(rows, corners, strict=True)])


def train_vae(folder: Path, minutes: float, batch: int = 20, side: int = 72) -> None:
    """Trains the autoencoder on crops, with L1 on pixels and on their differences, and noise on the latents."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    images = load_images(folder)
    vae = DemoVAE().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=1e-4)
    start, step = time.time(), 0
    while (done := (time.time() - start) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 100) * (1 - done) ** 0.7 + 1e-6
        x = to_signal(_crops(images, rng, batch, side)).to(memory_format=torch.channels_last)
        latents = vae.encoder(x)
        y = vae.decoder(latents + 0.1 * torch.randn_like(latents))
        (dx, dy), (ex, ey) = _edges(x), _edges(y)
        pixel = F.l1_loss(y, x)
        edge = F.l1_loss(ex, dx) + F.l1_loss(ey, dy)
        # Latents near unit spread, so that the added noise has a meaning.
        loss = pixel + 0.5 * edge + 1e-3 * (latents.square().mean() - 1).clamp(min=0) + 1e-4 * latents.square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 200 == 0:
            values = [value.item() for value in (loss, pixel, latents.std())]
            log.info("vae step %d loss %.4f pixel %.4f spread %.3f", step, *values)
    torch.save(vae.state_dict(), folder / "vae.pt")


@torch.no_grad()
def make_latents(folder: Path, origin: Path | None = None) -> None:
    """Encodes every scene: latents.npy, float16 (count, 12, 16, 16), and sets the autoencoder's mean and spread.

    origin: weights whose autoencoder is used as it is, with the mean and spread that its UNet knows; else vae.pt's.
    """
    images = load_images(folder)
    vae = load(origin).vae if origin else DemoVAE()
    if not origin:
        vae.load_state_dict(torch.load(folder / "vae.pt"))
        vae.mean.zero_()
        vae.spread.fill_(1)
    raw = torch.cat([vae.encode(to_signal(images[n : n + 250])) for n in range(0, len(images), 250)])
    if not origin:
        vae.mean.copy_(raw.mean((0, 2, 3)))
        vae.spread.copy_(raw.std((0, 2, 3)))
        raw = (raw - vae.mean[:, None, None]) / vae.spread[:, None, None]
    np.save(folder / "latents.npy", raw.half().numpy())
    torch.save(vae.state_dict(), folder / "vae.pt")
    (folder / "decoder.pt").unlink(missing_ok=True)
    log.info("latents %s, spread of the raw channels %s", tuple(raw.shape), vae.spread.tolist())


def train_decoder(folder: Path, minutes: float, batch: int = 8, noise: float = 0.3) -> None:
    """Trains the decoder on (the encoder, and so the latents, stay as they are) to bear a sampler's imperfect latents.

    Each picture's latents get white noise of a spread between 0 and `noise`.
    """
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    images, latents = load_images(folder), np.load(folder / "latents.npy", mmap_mode="r")
    vae = DemoVAE()
    vae.load_state_dict(torch.load(folder / "vae.pt"))
    optimizer = torch.optim.AdamW(vae.decoder.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=1e-4)
    start, step = time.time(), 0
    while (done := (time.time() - start) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / 100) * (1 - done) + 1e-6
        rows = rng.integers(0, len(latents), batch)
        x, z = to_signal(images[rows]), torch.from_numpy(latents[rows]).float()
        y = vae.decode(z + noise * torch.rand(batch, 1, 1, 1) * torch.randn_like(z))
        (dx, dy), (ex, ey) = _edges(x), _edges(y)
        pixel = F.l1_loss(y, x)
        loss = pixel + 0.5 * (F.l1_loss(ex, dx) + F.l1_loss(ey, dy))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.decoder.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 200 == 0:
            log.info("decoder step %d loss %.4f pixel %.4f", step, loss.item(), pixel.item())
    torch.save(vae.state_dict(), folder / "decoder.pt")


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: for matrices and convolution kernels (Jordan et al. 2024, scale of Liu et al. 2025).

    The update is the nearest semi-orthogonal matrix of the momentum, found by five Newton-Schulz iterations, scaled so
    that its root mean square is 0.2, like Adam's.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.01) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One optimisation step. Where several processes train together, each does its share of the iterations."""
        rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        for group in self.param_groups:
            updates = []
            for n, parameter in enumerate(group["params"]):
                gradient = parameter.grad
                velocity = self.state[parameter].setdefault("velocity", torch.zeros_like(parameter))
                velocity.lerp_(gradient, 1 - group["momentum"])
                if n % processes == rank:
                    matrix = orthogonalise(gradient.lerp(velocity, group["momentum"]).reshape(len(gradient), -1))
                    updates.append(0.2 * max(matrix.shape) ** 0.5 * matrix.reshape(gradient.shape))
                else:
                    updates.append(torch.zeros_like(gradient))
            for parameter, update in zip(group["params"], _sum_over_processes(updates), strict=True):
                parameter.mul_(1 - group["lr"] * group["decay"]).add_(update, alpha=-group["lr"])


def orthogonalise(matrix: Tensor, iterations: int = 5) -> Tensor:
    """A matrix (m, n) with all its singular values brought near 1, by Newton-Schulz iterations of the fifth order."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def _sum_over_processes(tensors: list[Tensor]) -> list[Tensor]:
    """Adds the tensors of all processes that train together."""
    if not dist.is_initialized():
        return tensors
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


class Average:
    """Exponential moving average of a model's weights."""

    def __init__(self, module: nn.Module) -> None:
        self.state = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Moves the average towards the weights; quickly in the beginning."""
        decay = min(0.9992, (1 + step) / (20 + step))
        for name, value in module.state_dict().items():
            self.state[name].lerp_(value, 1 - decay)


class Trained(nn.Module):
    """Text encoder and UNet as one module: noisy latents, timesteps and tokens in, velocity out."""

    def __init__(self, model: DemoModel) -> None:
        super().__init__()
        self.text_encoder, self.unet = model.text_encoder, model.unet

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """(B, 12, 16, 16), (B,), (B, 77) -> (B, 12, 16, 16)."""
        states = self.text_encoder(input_ids=tokens).last_hidden_state
        return self.unet(noisy, timesteps, states, return_dict=False)[0]


def _optimizers(module: nn.Module, muon: bool) -> list[torch.optim.Optimizer]:
    """Muon for the inner matrices (if asked), AdamW for the rest."""
    outer = ("embedding", "conv_in", "conv_out")
    inner = [p for n, p in module.named_parameters() if muon and p.ndim >= 2 and not any(word in n for word in outer)]
    taken = {id(p) for p in inner}
    rest = [p for p in module.parameters() if id(p) not in taken]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, lr=1.0, betas=(0.9, 0.98), weight_decay=0.01)]
    return [*optimizers, Muon(inner, lr=1.0)] if inner else optimizers


def _timesteps(batch: int) -> Tensor:
    """Spread evenly through a distribution with more weight on the middle noise levels."""
    even = (torch.arange(batch) + torch.rand(batch)) / batch
    middle = torch.sigmoid(0.3 + 1.1 * torch.special.ndtri(even.clamp(1e-4, 1 - 1e-4)))
    return (torch.where(torch.rand(batch) < 0.25, torch.rand(batch), middle) * TRAIN_STEPS).long().clamp(0, TRAIN_STEPS - 1)


def train_unet(
    folder: Path, minutes: float, batch: int, lr: float, muon: bool, max_steps: int = 10**9, checkpoints: int = 0,
    origin: Path | None = None,
) -> None:  # fmt: skip
    """Trains UNet and text encoder together by v-prediction; goes on from unet.pt where there is one.

    origin: weights to begin with where there is none; fresh ones without it. The learning rate falls along a cosine to
    zero at the end of the time given, over all runs. `batch` is of each process where several train together.
    `checkpoints`: how many, evenly spread over the time, to keep in the folder, in the form that ships.
    """
    torch.manual_seed(0)
    first = True
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
        first = dist.get_rank() == 0
    build_tokenizer_files(TOKENIZER)
    model = load(origin) if origin else build()
    latents = torch.from_numpy(np.load(folder / "latents.npy"))
    prompts = json.loads((folder / "prompts.json").read_text())
    tokens = tokenize(model.tokenizer, prompts).to(torch.int16)
    empty = tokenize(model.tokenizer, [""])[0]
    module = Trained(model).requires_grad_(True).train()
    average = Average(module)
    optimizers = _optimizers(module, muon)
    step, spent, path = 0, 0.0, folder / "unet.pt"
    if path.exists():
        saved = torch.load(path)
        module.load_state_dict(saved["weights"])
        average.state, step, spent = saved["average"], saved["step"], saved["spent"]
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
    torch.manual_seed(1000 * step + int(os.environ.get("RANK", 0)))
    processes = dist.get_world_size() if dist.is_initialized() else 1
    parameters = [p for p in module.parameters() if p.requires_grad]
    alphas = alphas_cumprod()
    losses: list[float] = []
    last, kept, kept_percent = time.time(), time.time(), int(100 * spent / (60 * minutes))
    while (done := spent / (60 * minutes)) < 1 or step % 25:
        if step >= max_steps:
            break
        rate = lr * min(1, (step + 1) / 200) * (0.5 + 0.5 * float(np.cos(np.pi * min(1, done))))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        rows = torch.randint(len(latents), (batch,))
        x, words = latents[rows].float(), tokens[rows].long()
        words[torch.rand(batch) < 0.1] = empty
        timesteps = _timesteps(batch)
        alpha = alphas[timesteps].sqrt()[:, None, None, None]
        sigma = (1 - alphas[timesteps]).sqrt()[:, None, None, None]
        noise = torch.randn_like(x)
        velocity = module(alpha * x + sigma * noise, timesteps, words)
        loss = F.mse_loss(velocity, alpha * noise - sigma * x)
        loss.backward()
        gradients = _sum_over_processes([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient / processes
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        if first:
            average.update(module, step)
        losses.append(loss.item())
        spent, last = spent + time.time() - last, time.time()
        if dist.is_initialized() and step % 25 == 0:  # one clock for all
            clock = torch.tensor([spent], dtype=torch.float64)
            dist.broadcast(clock, 0)
            spent = clock.item()
        if not first:
            continue
        percent = int(checkpoints * spent / (60 * minutes)) * 100 // max(checkpoints, 1)
        if percent > kept_percent:
            kept_percent = percent
            save(folder, average.state, folder / f"checkpoint_{min(percent, 100)}.safetensors")
        if step % 25 == 0:
            log.info("unet step %d loss %.4f lr %.1e spent %.0f s", step, np.mean(losses[-200:]), rate, spent)
        if time.time() - kept > 240 or (spent >= 60 * minutes and step % 25 == 0):
            kept = time.time()
            states = [optimizer.state_dict() for optimizer in optimizers]
            saved = {"weights": module.state_dict(), "average": average.state, "step": step, "spent": spent}
            torch.save({**saved, "optimizers": states}, folder / "unet.part")
            (folder / "unet.part").replace(path)


def preview_factors(folder: Path, count: int = 500) -> tuple[Tensor, Tensor]:
    """The linear map from a latent pixel to its mean colour in [-1, 1], by least squares: (12, 3) and (3,)."""
    latents = torch.from_numpy(np.load(folder / "latents.npy", mmap_mode="r")[:count].astype(np.float32))
    colours = F.avg_pool2d(to_signal(load_images(folder)[:count]), 8).movedim(1, -1).reshape(-1, 3)
    inputs = latents.movedim(1, -1).reshape(-1, latents.shape[1])
    solution = torch.linalg.lstsq(torch.cat([inputs, torch.ones(len(inputs), 1)], 1), colours).solution
    return solution[:-1], solution[-1]


def save(folder: Path, weights: dict[str, Tensor], path: Path) -> None:
    """Writes weights of UNet and text encoder, the autoencoder and the preview colours in float16."""
    state = dict(weights)
    decoder = folder / "decoder.pt"
    autoencoder = torch.load(decoder if decoder.exists() else folder / "vae.pt")
    state.update({"vae." + name: value for name, value in autoencoder.items()})
    state["preview.factors"], state["preview.bias"] = preview_factors(folder)
    save_file({name: value.half().contiguous() for name, value in state.items()}, path)
    log.info("%s: %.2f MB", path.name, path.stat().st_size / 1e6)


def export(folder: Path, last: bool = False) -> None:
    """Writes the averaged (or the last) weights to demo/weights."""
    save(folder, torch.load(folder / "unet.pt")["weights" if last else "average"], WEIGHTS)


def main() -> None:
    """Reads the command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(prog="demo.train", description=__doc__)
    parser.add_argument("stage", choices=["data", "vae", "latents", "unet", "decoder", "export"])
    parser.add_argument("--folder", type=Path, required=True, help="working folder")
    parser.add_argument("--count", type=int, default=60000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--adam", action="store_true", help="AdamW for every weight, instead of Muon and AdamW")
    parser.add_argument("--last", action="store_true", help="export the last weights, not their average")
    parser.add_argument("--checkpoints", type=int, default=0, help="how many to keep on the way")
    parser.add_argument("--max-steps", type=int, default=10**9)
    parser.add_argument("--busy", action="store_true", help="data of busy places")
    parser.add_argument("--from", dest="origin", type=Path, help="weights to go on from, for latents and unet")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.stage == "data":
        make_data(options.folder, options.count, options.workers, options.busy)
    elif options.stage == "vae":
        train_vae(options.folder, options.minutes)
    elif options.stage == "latents":
        make_latents(options.folder, options.origin)
    elif options.stage == "unet":
        train_unet(options.folder, options.minutes, options.batch, options.lr, not options.adam,
                   options.max_steps, options.checkpoints, options.origin)  # fmt: skip
    elif options.stage == "decoder":
        train_decoder(options.folder, options.minutes)
    else:
        export(options.folder, options.last)


if __name__ == "__main__":
    main()
