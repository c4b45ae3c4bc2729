"""What the tests of the core share: one thread, fixed seeds, and tiny UNets of the kinds that are served."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(Path(__file__).parents[1]))
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from asyndm_core.hosts.diffusers import DiffusersHost  # noqa: E402 (the repository is on the path now)

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Every test starts from the same random state and computes no gradients."""
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.fixture(scope="session")
def alphas() -> Tensor:
    """Stable Diffusion's cumulative alphas (1000,), "scaled linear"."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


@pytest.fixture(scope="session")
def make_unet() -> Callable[..., UNet2DConditionModel]:
    """Builds a random UNet of three levels (cross-attention at 1/1, 1/2 and, in its middle block, 1/4)."""

    def make(**changes: object) -> UNet2DConditionModel:
        torch.manual_seed(7)
        config: dict = {
            "sample_size": 16,
            "block_out_channels": (16, 32, 32),
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            "layers_per_block": 1,
            "cross_attention_dim": 24,
            "attention_head_dim": 2,
            "norm_num_groups": 4,
        }
        unet = UNet2DConditionModel(**{**config, **changes})
        for name, weight in unet.named_parameters():
            # Away from the default start, where attention is flat and the timestep hardly matters.
            if "attn2.to_" in name or "time_e" in name:
                weight.data.mul_(2)
        return unet.eval().requires_grad_(False)

    return make


@pytest.fixture(scope="session")
def unet(make_unet: Callable[..., UNet2DConditionModel]) -> UNet2DConditionModel:
    """The plain one."""
    return make_unet()


@pytest.fixture
def host(unet: UNet2DConditionModel, alphas: Tensor) -> DiffusersHost:
    """The tiny UNet, with two words to follow."""
    cond, uncond = torch.randn(2, 1, 9, 24, generator=torch.Generator().manual_seed(3)).unbind()
    return DiffusersHost(unet, alphas, "epsilon", cond, uncond, 3.0, words=[[2], [5, 6]])
