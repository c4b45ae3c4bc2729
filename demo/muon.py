"""Muon, for matrices and convolution kernels, beside AdamW for the rest, and the moving average of the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

OUTER = ("embed", "conv_in", "conv_out", "transformer.proj_out")
"""Parts of the names of a network's first and last layers, which are AdamW's."""


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: for matrices and convolution kernels (Jordan et al. 2024, scale of Liu et al. 2025).

    The update is the nearest semi-orthogonal matrix of the momentum, found by five Newton-Schulz iterations, scaled so
    that its root mean square is 0.2, like Adam's. Matrices of one shape are taken together.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.01) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One optimisation step."""
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(tuple(parameter.shape), []).append(parameter)
            for shape, parameters in shapes.items():
                gradients = [parameter.grad for parameter in parameters]
                velocities = [self.state[p].setdefault("velocity", torch.zeros_like(p)) for p in parameters]
                torch._foreach_lerp_(velocities, gradients, 1 - group["momentum"])
                ahead = torch._foreach_lerp(gradients, velocities, group["momentum"])
                matrices = orthogonalise(torch.stack([g.reshape(shape[0], -1) for g in ahead]))
                matrices *= 0.2 * max(matrices.shape[1:]) ** 0.5
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["decay"])
                torch._foreach_add_(parameters, [m.reshape(shape) for m in matrices.unbind()], alpha=-group["lr"])


def orthogonalise(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Matrices (..., m, n) with all singular values brought near 1, by Newton-Schulz iterations of the fifth order.

    On a GPU in bfloat16.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    if x.is_cuda:
        x = x.bfloat16()
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


def make_optimizers(module: nn.Module, muon: bool) -> list[torch.optim.Optimizer]:
    """Muon for the inner matrices (if asked), AdamW for the rest."""
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    inner = [p for name, p in named if muon and p.ndim >= 2 and not any(word in name for word in OUTER)]
    taken = {id(p) for p in inner}
    rest = [p for _, p in named if id(p) not in taken]
    fused = rest[0].is_cuda
    adam = torch.optim.AdamW(rest, lr=1.0, betas=(0.9, 0.98), weight_decay=0.01, fused=fused)
    return [adam, Muon(inner, lr=1.0)] if inner else [adam]


class Average:
    """Exponential moving average of a module's weights."""

    def __init__(self, module: nn.Module) -> None:
        self._now = module.state_dict()
        self.state = {name: value.detach().clone() for name, value in self._now.items()}
        self._moving = [name for name, value in self._now.items() if value.is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the average towards the weights; quickly in the beginning."""
        decay = min(0.9992, (1 + step) / (20 + step))
        now, state = ([weights[name] for name in self._moving] for weights in (self._now, self.state))
        torch._foreach_lerp_(state, now, 1 - decay)
