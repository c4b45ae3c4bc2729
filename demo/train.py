"""Trains the demo models from nothing, on a GPU or a CPU: python -m demo.train all --minutes 7 --device cuda --folder F.

`all` draws the world, trains the autoencoder, then the UNet and the transformer at the same time, each with its text
encoder, and scores their pictures; it ends when its minutes do. The stages can be run one by one as well:
data | vae | latents | decoder | unet | transformer | export. Everything is kept in one working folder (--folder);
`export` writes the shipped files into demo/weights, `all` its files into --out.
A trained model goes on in another world with `--from WEIGHTS` (latents, unet), such as that of `data --busy`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import Pool, get_context
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from .config import (
    END,
    FOLDER,
    LATENT_CHANNELS,
    MAX_TOKENS,
    START,
    TOKENIZER,
    TRAIN_STEPS,
    TRANSFORMER_WEIGHTS,
    WEIGHTS,
)
from .evaluate import sample_pictures, score_pictures, some_scenes, tally
from .model import (
    DemoModel,
    FlowModel,
    alphas_cumprod,
    build,
    build_tokenizer_files,
    build_transformer,
    flow_velocity,
    load,
)
from .muon import Average, make_optimizers
from .vae import DemoVAE
from .world import SIZE, draw, sample_scene

log = logging.getLogger("demo.train")

FILES = {"unet": WEIGHTS.name, "transformer": TRANSFORMER_WEIGHTS.name}
ENDS = {"data": 0.09, "vae": 0.22, "decoder": 0.42, "networks": 0.89, "all": 1.0}
"""When each part of `all` ends, as a share of its minutes. The autoencoder begins while the world is still drawn; its
decoder is trained on beside the networks."""
PICTURES_FOR_VAE = (10_000, 60_000)
"""The autoencoder begins with so many pictures, and needs no more than so many."""
ARMS: dict[str, dict[str, dict[str, float]]] = {
    "unet": {f"cfg {cfg}": {"cfg": cfg} for cfg in (4.5, 3.0, 6.0)},
    "transformer": {
        f"cfg {cfg} shift {shift}": {"cfg": cfg, "shift": shift}
        for cfg, shift in ((4.5, 1.0), (4.5, 2.0), (4.5, 3.0), (3.0, 2.0), (6.0, 2.0))
    },
}
"""How `all` samples each network's pictures; the first is shown on the sheets."""


# --- the world -------------------------------------------------------------------------------------------------------


def _draw_block(task: tuple[str, int, int, bool]) -> list[str]:
    path, start, stop, busy = task
    rng = np.random.default_rng([2510, start])
    images, prompts = [], []
    for _ in range(start, stop):
        scene = sample_scene(rng)
        images.append(draw(scene, rng, busy))
        prompts.append(scene.prompt())
    with Path(path).open("r+b") as file:
        file.seek(start * SIZE * SIZE * 3)
        file.write(np.stack(images).tobytes())
    return prompts


def _be_nice() -> None:
    if hasattr(os, "nice"):
        os.nice(5)


def make_data(folder: Path, count: int, workers: int, busy: bool = False, until: float = float("inf")) -> None:
    """Draws `count` training scenes, in busy places or plain: images.bin, uint8 (count, 128, 128, 3), and prompts.json.

    Fewer where the time `until` comes first. The file drawn holds how many are there already.
    """
    path = folder / "images.bin"
    with path.open("wb") as file:
        file.truncate(count * SIZE * SIZE * 3)
    tasks = [(str(path), start, min(start + 1000, count), busy) for start in range(0, count, 1000)]
    prompts: list[str] = []
    with get_context("spawn").Pool(workers, _be_nice) as pool:  # a fork of a process that holds much may be refused
        for block in pool.imap(_draw_block, tasks):
            prompts += block
            _write(folder / "drawn", str(len(prompts)))
            if time.time() > until:
                break
    with path.open("r+b") as file:
        file.truncate(len(prompts) * SIZE * SIZE * 3)
    _write(folder / "prompts.json", json.dumps(prompts))
    log.info("data %d scenes", len(prompts))


def _write(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


def drawn(folder: Path) -> int:
    """How many scenes of the folder are drawn."""
    path = folder / "drawn"
    return int(path.read_text()) if path.exists() else 0


def load_images(folder: Path, count: int | None = None) -> np.ndarray:
    """The drawn scenes (the first `count`), uint8 (count, 128, 128, 3), read as needed."""
    count = min(drawn(folder), count or drawn(folder))
    return np.memmap(folder / "images.bin", np.uint8, "c", shape=(count, SIZE, SIZE, 3))


def to_signal(images: np.ndarray | Tensor) -> Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, H, W) in [-1, 1]."""
    return torch.as_tensor(images).permute(0, 3, 1, 2).float() / 127.5 - 1


# --- the autoencoder -------------------------------------------------------------------------------------------------


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def _difference(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """L1 of pixels, and of the differences of neighbours."""
    error = y.float() - x
    return error.abs().mean(), error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def _descend(parameters: list[nn.Parameter], lr: float, minutes: float, loss_of: Callable[[int], Tensor], name: str) -> None:
    """AdamW on `loss_of(step)` for so many minutes, the learning rate falling to zero."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=1e-4)
    start, step, done = time.time(), 0, 0.0
    while done < 1:
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 100) * (1 - done) + 1e-6
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        if step % 200 == 0:
            log.info("%s step %d loss %.4f", name, step, loss.item())
        elif step % 10 == 0:
            loss.item()
        done = (time.time() - start) / (60 * minutes) if minutes > 0 else 1.0
    log.info("%s %d steps, loss %.4f", name, step, loss.item())


def _batches(device: torch.device) -> tuple[int, int]:
    """The autoencoder's batch, and the side of the crops it sees."""
    return (128, SIZE) if device.type == "cuda" else (20, 72)


def train_vae(folder: Path, minutes: float, device: torch.device) -> None:
    """Trains the autoencoder on crops, with L1 on pixels and on their differences, and noise on the latents."""
    torch.manual_seed(0)
    batch, side = _batches(device)
    vae = DemoVAE().to(device, memory_format=torch.channels_last)
    images = torch.from_numpy(load_images(folder, PICTURES_FOR_VAE[1])).to(device)

    def loss_of(step: int) -> Tensor:
        nonlocal images
        if step % 100 == 0 and len(images) < PICTURES_FOR_VAE[1] and (
            drawn(folder) >= PICTURES_FOR_VAE[1] or ((folder / "prompts.json").exists() and len(images) < drawn(folder))
        ):  # fmt: skip
            images = torch.from_numpy(load_images(folder, PICTURES_FOR_VAE[1])).to(device)
        rows = torch.randint(len(images), (batch,), device=device)
        y, x = (8 * np.random.randint(0, (SIZE - side) // 8 + 1, 2)).tolist()
        truth = to_signal(images[rows, y : y + side, x : x + side])
        with _autocast(device):
            latents = vae.encoder(truth).float()
            spread = latents.std((0, 2, 3), keepdim=True).detach()  # every channel is to bear the same share of noise
            noise = 0.2 * spread * torch.rand(batch, 1, 1, 1, device=device) * torch.randn_like(latents)
            pixel, edge = _difference(truth, vae.decoder(latents + noise))
        power = latents.square().mean()
        return pixel + 0.5 * edge + 1e-2 * (power - 1).clamp(min=0) + 1e-4 * power

    _descend(list(vae.parameters()), 2e-3, minutes, loss_of, "vae")
    torch.save(vae.cpu().state_dict(), folder / "vae.pt")


@torch.no_grad()
def make_latents(folder: Path, origin: Path | None = None, device: torch.device | None = None) -> None:
    """Encodes every scene: latents.npy, float16 (count, 12, 16, 16), and sets the autoencoder's mean and spread.

    origin: weights whose autoencoder is used as it is, with the mean and spread that its UNet knows; else vae.pt's.
    """
    device = device or torch.device("cpu")
    images = load_images(folder)
    vae = load(origin).vae if origin else DemoVAE()
    if not origin:
        vae.load_state_dict(torch.load(folder / "vae.pt"))
        vae.mean.zero_()
        vae.spread.fill_(1)
    vae.to(device)
    size = 2000 if device.type == "cuda" else 250
    starts = range(0, len(images), size)
    raw = torch.cat([vae.encode(to_signal(torch.from_numpy(images[n : n + size]).to(device))) for n in starts])
    if not origin:
        vae.mean.copy_(raw.mean((0, 2, 3)))
        vae.spread.copy_(raw.std((0, 2, 3)))
        raw = (raw - vae.mean[:, None, None]) / vae.spread[:, None, None]
    torch.save(vae.cpu().state_dict(), folder / "vae.pt")
    (folder / "decoder.pt").unlink(missing_ok=True)
    with (folder / "latents.part").open("wb") as file:
        np.save(file, raw.half().cpu().numpy())
    (folder / "latents.part").replace(folder / "latents.npy")
    log.info("latents %s, spread of the raw channels %s", tuple(raw.shape), vae.spread.tolist())


def train_decoder(folder: Path, minutes: float, device: torch.device, noise: float = 0.35) -> None:
    """Trains the decoder on (the encoder, and so the latents, stay as they are) to bear a sampler's imperfect latents.

    Each picture's latents get white noise of a spread between 0 and `noise`.
    """
    torch.manual_seed(1)
    batch = _batches(device)[0] // 2
    images = torch.from_numpy(load_images(folder, PICTURES_FOR_VAE[1])).to(device)
    latents = torch.from_numpy(np.load(folder / "latents.npy", mmap_mode="c")[: len(images)]).to(device)
    vae = DemoVAE()
    vae.load_state_dict(torch.load(folder / "vae.pt"))
    vae.to(device, memory_format=torch.channels_last)

    def loss_of(step: int) -> Tensor:
        rows = torch.randint(len(latents), (batch,), device=device)
        truth, z = to_signal(images[rows]), latents[rows].float()
        with _autocast(device):
            y = vae.decode(z + noise * torch.rand(batch, 1, 1, 1, device=device) * torch.randn_like(z))
            pixel, edge = _difference(truth, y)
        return pixel + 0.5 * edge

    _descend(list(vae.decoder.parameters()), 1e-3, minutes, loss_of, "decoder")
    torch.save(vae.cpu().state_dict(), folder / "decoder.part")
    (folder / "decoder.part").replace(folder / "decoder.pt")


def trained_vae(folder: Path) -> dict[str, Tensor]:
    """The autoencoder's weights, with its decoder as far as it is trained."""
    decoder = folder / "decoder.pt"
    state: dict[str, Tensor] = torch.load(decoder if decoder.exists() else folder / "vae.pt")
    return state


# --- the networks ----------------------------------------------------------------------------------------------------


class _ExactLinear(nn.Linear):
    """Float32 also where the rest is bfloat16: diffusers' transformer gives its timesteps this layer's type."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


class Trained(nn.Module):
    """Text encoder and network as one module: pictures' latents, levels in [0, 1] and tokens in, the loss out."""

    def __init__(self, model: DemoModel | FlowModel) -> None:
        super().__init__()
        self.text_encoder = model.text_encoder
        if isinstance(model, FlowModel):
            self.transformer = model.transformer
            self.transformer.x_embedder.__class__ = _ExactLinear
            self.velocity = self._flow
        else:
            self.unet = model.unet
            self.velocity = self._v
            self.register_buffer("alphas", alphas_cumprod(), persistent=False)

    def _v(self, noisy: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        return self.unet(noisy, timesteps, states, return_dict=False)[0]

    def _flow(self, noisy: Tensor, times: Tensor, states: Tensor) -> Tensor:
        return flow_velocity(self.transformer, noisy, times, states)

    def forward(self, x: Tensor, levels: Tensor, tokens: Tensor) -> Tensor:
        """(B, 12, 16, 16), (B,), (B, 77) -> the mean squared error of the velocity."""
        states = self.text_encoder(input_ids=tokens).last_hidden_state
        noise = torch.randn_like(x)
        if hasattr(self, "transformer"):
            level = levels[:, None, None, None]
            velocity, target = self.velocity((1 - level) * x + level * noise, levels, states), noise - x
        else:
            timesteps = (levels * TRAIN_STEPS).long().clamp(0, TRAIN_STEPS - 1)
            alpha, sigma = (value.sqrt()[:, None, None, None] for value in (self.alphas[timesteps], 1 - self.alphas[timesteps]))
            velocity, target = self.velocity(alpha * x + sigma * noise, timesteps, states), alpha * noise - sigma * x
        return F.mse_loss(velocity.float(), target)


def _levels(batch: int, device: torch.device) -> Tensor:
    """Spread evenly through a distribution with more weight on the middle noise levels: (B,) in [0, 1]."""
    even = (torch.arange(batch, device=device) + torch.rand(batch, device=device)) / batch
    middle = torch.sigmoid(0.3 + 1.1 * torch.special.ndtri(even.clamp(1e-4, 1 - 1e-4)))
    uniform = torch.rand(batch, device=device)
    return torch.where(torch.rand(batch, device=device) < 0.25, uniform, middle)


def token_ids(prompts: list[str]) -> np.ndarray:
    """Prompts of the world -> token ids, int16 (count, 77), as the tokenizer gives them: each word is one token."""
    vocabulary = json.loads((TOKENIZER / "vocab.json").read_text(encoding="utf-8"))
    ids = np.full((len(prompts), MAX_TOKENS), vocabulary[END], np.int16)
    ids[:, 0] = vocabulary[START]
    for row, prompt in zip(ids, prompts, strict=True):
        words = [vocabulary[word + "</w>"] for word in prompt.split()]
        row[1 : 1 + len(words)] = words
    return ids


def _make_tokenizer() -> None:
    if not (TOKENIZER / "vocab.json").is_file():
        build_tokenizer_files(TOKENIZER)


def _compile(module: Trained, batch: int, device: torch.device, until: float | None) -> None:
    """Compiles the network and runs it twice; left as it is where that fails, or is not done by the time `until`."""
    plain = module.velocity
    x = torch.randn(batch, LATENT_CHANNELS, SIZE // 8, SIZE // 8, device=device)
    tokens = torch.from_numpy(token_ids(["a boat"] * batch)).long().to(device)
    start = time.time()

    def stop(*_: object) -> None:
        raise TimeoutError("compiling takes too long")

    if until:
        signal.signal(signal.SIGALRM, stop)
        signal.alarm(max(1, int(until - start)))
    try:
        module.velocity = torch.compile(plain, dynamic=False)
        for _ in range(2):
            with _autocast(device):
                loss = module(x, _levels(batch, device), tokens)
            loss.backward()
        log.info("compiled in %.0f s", time.time() - start)
    except Exception:  # whatever a compiler may raise: training goes on without it
        log.exception("not compiled, after %.0f s", time.time() - start)
        module.velocity = plain
    finally:
        if until:
            signal.alarm(0)
    module.zero_grad()


def train_network(
    kind: str, folder: Path, minutes: float, batch: int, lr: float, muon: bool, max_steps: int = 10**9,
    checkpoints: int = 0, origin: Path | None = None, device: torch.device | None = None, compiled: bool = False,
    until: float | None = None, compiled_by: float | None = None, out: Path | None = None,
) -> DemoModel | FlowModel:  # fmt: skip
    """Trains a network, "unet" (v-prediction) or "transformer" (flow matching), and its text encoder together.

    Goes on from unet.pt or transformer.pt where there is one, else from the weights `origin` (of the UNet), else from
    fresh ones. The learning rate falls linearly to zero at the end of the time given, over all runs. Returns the model
    with the averaged weights.

    checkpoints: how many, evenly spread over the time, to keep in the folder, in the form that ships. until: the end, in
    the place of `minutes`; the latents are then waited for. compiled_by: when compiling is given up. out: a folder where
    the form that ships is kept, every minute.
    """
    device = device or torch.device("cpu")
    torch.manual_seed(0)
    _make_tokenizer()
    model: DemoModel | FlowModel = build_transformer() if kind == "transformer" else load(origin) if origin else build()
    if kind == "transformer" and device.type == "cuda":  # the fused kernels' backward reads memory that is not theirs
        for switch in ("enable_flash_sdp", "enable_mem_efficient_sdp", "enable_cudnn_sdp"):
            getattr(torch.backends.cuda, switch)(False)
    module = Trained(model).requires_grad_(True).train().to(device)
    average = Average(module)
    optimizers = make_optimizers(module, muon)
    parameters = [p for p in module.parameters() if p.requires_grad]
    if compiled:
        _compile(module, batch, device, compiled_by)
    while until and not (folder / "latents.npy").exists():
        if time.time() > until:
            raise RuntimeError("There are no latents to train on: the autoencoder failed.")
        time.sleep(0.2)
    latents = torch.from_numpy(np.load(folder / "latents.npy")).to(device)
    prompts = json.loads((folder / "prompts.json").read_text())
    tokens, empty = (torch.from_numpy(token_ids(texts)).to(device) for texts in (prompts, [""]))
    step, spent, path = 0, 0.0, folder / f"{kind}.pt"
    if path.exists():
        saved = torch.load(path, map_location=device)
        module.load_state_dict(saved["weights"])
        for name, value in saved["average"].items():
            average.state[name].copy_(value)
        step, spent = saved["step"], saved["spent"]
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
    torch.manual_seed(1000 * step)
    total = max(1e-6, spent + until - time.time() if until else 60 * minutes)

    def keep() -> None:
        states = [optimizer.state_dict() for optimizer in optimizers]
        saved = {"weights": module.state_dict(), "average": average.state, "step": step, "spent": spent}
        torch.save({**saved, "optimizers": states}, folder / f"{kind}.part")
        (folder / f"{kind}.part").replace(path)
        if out:
            save(folder, average.state, out / FILES[kind])

    losses: list[Tensor] = []
    slower, good = 1.0, [value.clone() for value in module.state_dict().values()]
    last, kept, kept_percent = time.time(), time.time(), int(100 * spent / total)
    log.info("%s begins at step %d, for %.0f s, on %d scenes", kind, step, total - spent, len(latents))
    while ((done := spent / total) < 1 or step % 25) and step < max_steps:
        rate = slower * lr * min(1, (step + 1) / 200) * max(0.0, 1 - done)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        rows = torch.randint(len(latents), (batch,), device=device)
        x, words = latents[rows].float(), tokens[rows].long()
        words = torch.where(torch.rand(batch, 1, device=device) < 0.1, empty.long(), words)
        with _autocast(device):
            loss = module(x, _levels(batch, device), words)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        average.update(step)
        losses.append(loss.detach())
        if step % 25 == 0:
            if torch.isfinite(torch.stack([*losses[-25:], norm])).all():
                torch._foreach_copy_(good, list(module.state_dict().values()))
            else:  # back to the last good weights, and slower
                log.warning("%s step %d: not finite", kind, step)
                slower /= 2
                for weights in (module.state_dict(), average.state):
                    torch._foreach_copy_(list(weights.values()), good)
                for optimizer in optimizers:
                    optimizer.state.clear()
                losses.clear()
        spent, last = spent + time.time() - last, time.time()
        percent = int(checkpoints * spent / total) * 100 // max(checkpoints, 1)
        if percent > kept_percent:
            kept_percent = percent
            save(folder, average.state, folder / f"checkpoint_{min(percent, 100)}.safetensors")
        if step % (500 if device.type == "cuda" else 25) == 0 and losses:
            mean = torch.stack(losses[-500:]).mean().item()
            log.info("%s step %d loss %.4f lr %.1e spent %.0f s", kind, step, mean, rate, spent)
            del losses[:-500]
        if time.time() - kept > (60 if out else 240):
            keep()
            kept = time.time()
    log.info("%s ends at step %d after %.0f s", kind, step, spent)
    keep()
    module.load_state_dict(average.state)
    return model


def preview_factors(folder: Path, count: int = 500) -> tuple[Tensor, Tensor]:
    """The linear map from a latent pixel to its mean colour in [-1, 1], by least squares: (12, 3) and (3,)."""
    latents = torch.from_numpy(np.load(folder / "latents.npy", mmap_mode="r")[:count].astype(np.float32))
    colours = F.avg_pool2d(to_signal(load_images(folder, count)), 8).movedim(1, -1).reshape(-1, 3)
    inputs = latents.movedim(1, -1).reshape(-1, latents.shape[1])
    solution = torch.linalg.lstsq(torch.cat([inputs, torch.ones(len(inputs), 1)], 1), colours).solution
    return solution[:-1], solution[-1]


def save(folder: Path, weights: dict[str, Tensor], path: Path) -> None:
    """Writes weights of a network and its text encoder in float16; beside the UNet also autoencoder and preview colours."""
    state = {name: value.cpu() for name, value in weights.items()}
    if any(name.startswith("unet.") for name in state):
        state.update({"vae." + name: value for name, value in trained_vae(folder).items()})
        state["preview.factors"], state["preview.bias"] = preview_factors(folder)
    part = path.with_suffix(".part")
    save_file({name: value.half().contiguous() for name, value in state.items()}, part)
    part.replace(path)
    log.info("%s: %.2f MB", path.name, path.stat().st_size / 1e6)


def export(folder: Path, last: bool = False) -> None:
    """Writes the averaged (or the last) weights of the networks in the folder to demo/weights."""
    for kind, name in FILES.items():
        if (folder / f"{kind}.pt").exists():
            saved = torch.load(folder / f"{kind}.pt", map_location="cpu")
            save(folder, saved["weights" if last else "average"], FOLDER / name)


# --- all of it -------------------------------------------------------------------------------------------------------


def _wait_for(done: Callable[[], bool], until: float) -> None:
    while not done() and time.time() < until:
        time.sleep(0.2)


def _minutes_to(moment: float) -> float:
    return max(0.0, (moment - time.time()) / 60)


def _autoencoder(folder: Path, ends: dict[str, float], device: torch.device) -> None:
    """The autoencoder's part of `all`, in a process of its own."""
    if not (folder / "latents.npy").exists():
        done = (folder / "prompts.json").exists
        _wait_for(lambda: drawn(folder) >= PICTURES_FOR_VAE[0] or done(), ends["vae"])
        train_vae(folder, _minutes_to(ends["vae"]), device)
        _wait_for(done, ends["networks"])
        make_latents(folder, device=device)
    train_decoder(folder, _minutes_to(ends["decoder"]), device)


def _network(kind: str, folder: Path, out: Path, ends: dict[str, float], device: torch.device,
             compiled: bool, pictures: int, batch: int, lr: float) -> None:  # fmt: skip
    """A network's part of `all`, in a process of its own: training, then pictures for the scorer."""
    model = train_network(kind, folder, 0, batch, lr, True, device=device, compiled=compiled, until=ends["networks"],
                          compiled_by=(2 * ends["vae"] + ends["decoder"]) / 3, out=out)  # fmt: skip
    vae = trained_vae(folder)
    model.vae.load_state_dict({name: value.half().float() for name, value in vae.items()})
    for part in (model.vae, model.text_encoder, model.transformer if isinstance(model, FlowModel) else model.unet):
        part.half().float().to(device).eval().requires_grad_(False)
    for arm, options in ARMS[kind].items():
        for held_out in (False, True):
            scenes = some_scenes(pictures, 2026, held_out)
            name = f"{kind}_{'rare' if held_out else 'trained'}_{arm.replace(' ', '_')}"
            with (folder / "pictures.part").with_name(f"{name}.part").open("wb") as file:
                np.save(file, sample_pictures(scenes, model, 20, batch=150, **options))
            (folder / f"{name}.part").replace(folder / f"{name}.npy")
        log.info("%s: pictures with %s", kind, arm)


def _score_all(folder: Path, out: Path, pictures: int, pool: Any) -> None:
    """Scores all pictures that are there, and puts the first of each network on a sheet."""
    found: dict[str, dict[str, float]] = {}
    for kind, arms in ARMS.items():
        for number, arm in enumerate(arms):
            for held_out in (False, True):
                name = f"{kind}_{'rare' if held_out else 'trained'}"
                path = folder / f"{name}_{arm.replace(' ', '_')}.npy"
                if not path.exists():
                    continue
                images, scenes = np.load(path), some_scenes(pictures, 2026, held_out)
                found[f"{name} {arm}"] = tally(scenes, score_pictures(images, scenes, pool))
                log.info("%s %s: %s", name, arm, found[f"{name} {arm}"])
                if number == 0:
                    sheet = np.concatenate(
                        [np.concatenate(list(images[n : n + 6]), 1) for n in range(0, min(36, pictures) // 6 * 6, 6)]
                    )
                    Image.fromarray(sheet).save(out / f"{name}.jpg", quality=92)
                    prompts = [scene.prompt() for scene in scenes[:36]]
                    found[f"{name} {arm}"]["prompts"] = prompts  # type: ignore[assignment]
    (out / "scores.json").write_text(json.dumps(found, indent=1))


def train_all(folder: Path, out: Path, minutes: float, count: int, workers: int, device: str, compiled: bool, pictures: int,
              batches: dict[str, int]) -> None:  # fmt: skip
    """All stages, in at most so many minutes. One network's failure does not stop the other."""
    start = time.time()
    ends = {name: start + 60 * minutes * share for name, share in ENDS.items()}
    _make_tokenizer()
    for stale in ("images.bin", "prompts.json", "drawn", "latents.npy", "vae.pt", "decoder.pt", "unet.pt", "transformer.pt",
                  *(path.name for path in folder.glob("*_*.npy"))):  # fmt: skip
        (folder / stale).unlink(missing_ok=True)
    (folder / "ends.json").write_text(json.dumps(ends))
    base = [sys.executable, "-m", "demo.train"]
    flags = ["--folder", str(folder), "--out", str(out), "--device", device, "--pictures", str(pictures)]
    running: dict[str, subprocess.Popen[bytes]] = {}
    tries = dict.fromkeys(("autoencoder", "unet", "transformer"), 0)
    with (out / "train.log").open("ab") as lines:

        def begin(part: str, lines: IO[bytes] = lines) -> None:
            extra = ["--compile"] if compiled and not tries[part] else []
            extra += ["--batch", str(batches[part])] if part in batches else []
            tries[part] += 1
            running[part] = subprocess.Popen([*base, "part", "--part", part, *flags, *extra], stdout=lines, stderr=lines)

        with Pool(workers) as pool:  # scores in the end; begins before anything here can touch the GPU
            for part in tries:
                begin(part)
            try:
                make_data(folder, count, workers, until=ends["data"])
                while running and time.time() < ends["all"] - 0.03 * 60 * minutes:
                    time.sleep(0.3)
                    for part, process in list(running.items()):
                        if (code := process.poll()) is None:
                            continue
                        del running[part]
                        log.info("%s ends with %d", part, code)
                        if code and tries[part] < 2 and time.time() < ends["networks"]:
                            begin(part)
                        elif code and part == "autoencoder" and not (folder / "latents.npy").exists():
                            raise RuntimeError(f"The autoencoder failed twice: see {out / 'train.log'}.")
            finally:
                for part, process in running.items():
                    log.warning("%s is stopped", part)
                    process.kill()
            _score_all(folder, out, pictures, pool)
    log.info("all in %.0f s", time.time() - start)


def main() -> None:
    """Reads the command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(prog="demo.train", description=__doc__)
    stages = ["all", "data", "vae", "latents", "decoder", "unet", "transformer", "export", "part"]
    parser.add_argument("stage", choices=stages, metavar=" | ".join(stages[:-1]))
    parser.add_argument("--folder", type=Path, required=True, help="working folder")
    parser.add_argument("--out", type=Path, help="where `all` puts its files; in the working folder, unless given")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--count", type=int, default=60000, help="scenes to draw, at most")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--batch", type=int, nargs="+", default=[16], help="of `all`: the UNet's and the transformer's")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--adam", action="store_true", help="AdamW for every weight, instead of Muon and AdamW")
    parser.add_argument("--compile", action="store_true", help="compile the networks; `all` does so while others work")
    parser.add_argument("--pictures", type=int, default=300, help="how many `all` scores, of each network and setting")
    parser.add_argument("--last", action="store_true", help="export the last weights, not their average")
    parser.add_argument("--checkpoints", type=int, default=0, help="how many to keep on the way")
    parser.add_argument("--max-steps", type=int, default=10**9)
    parser.add_argument("--busy", action="store_true", help="data of busy places")
    parser.add_argument("--from", dest="origin", type=Path, help="weights to go on from, for latents and unet")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder, device = options.folder, torch.device(options.device)
    out = options.out or folder / "out"
    folder.mkdir(parents=True, exist_ok=True)
    batch = options.batch[0]
    if options.stage == "all":
        out.mkdir(parents=True, exist_ok=True)
        batches = dict(zip(("unet", "transformer"), (2 * options.batch)[:2], strict=True))
        train_all(folder, out, options.minutes, options.count, options.workers, options.device, options.compile,
                  options.pictures, batches)  # fmt: skip
    elif options.stage == "part":
        ends = json.loads((folder / "ends.json").read_text())
        if options.part == "autoencoder":
            _autoencoder(folder, ends, device)
        else:
            _network(options.part, folder, out, ends, device, options.compile, options.pictures, batch,
                     2e-3 if device.type == "cuda" else options.lr)  # fmt: skip
    elif options.stage == "data":
        make_data(folder, options.count, options.workers, options.busy)
    elif options.stage == "vae":
        train_vae(folder, options.minutes, device)
    elif options.stage == "latents":
        make_latents(folder, options.origin, device)
    elif options.stage in FILES:
        train_network(options.stage, folder, options.minutes, batch, options.lr, not options.adam, options.max_steps,
                      options.checkpoints, options.origin, device, options.compile)  # fmt: skip
    elif options.stage == "decoder":
        train_decoder(folder, options.minutes, device)
    else:
        export(folder, options.last)


if __name__ == "__main__":
    main()
