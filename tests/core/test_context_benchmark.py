"""The context benchmark: its measurement against a world where the best possible denoiser and its error are known."""

from __future__ import annotations

from math import isinf

import numpy as np
import pytest
import torch
from torch import Tensor

from asyndm_core.hosts.diffusers import DiffusersHost
from asyndm_core.samplers import Prediction
from benchmarks.context.__main__ import advice, boxes, main, picture, table
from benchmarks.context.measure import LAGS, TIMESTEPS, Changes, changes, errors, suggested_lead

GRID = torch.linspace(-3.4, 3.0, 1000).exp()


class Flat:
    """The best denoiser of pictures of one grey each, drawn from a normal distribution: it weighs pixels by their noise."""

    law = DiffusersHost.law

    def denoise(self, x: Tensor, sigma: Tensor, *more: object) -> Prediction:
        sure = sigma.clamp(min=1e-3) ** -2
        mean = (x * sure).sum(dim=(-2, -1), keepdim=True) / (1 + sure.sum(dim=(-2, -1), keepdim=True))
        return Prediction(mean.expand_as(x))


def measured(host: Flat, count: int = 6000) -> tuple[Tensor, Tensor]:
    """Errors on many pictures of 6 x 6 pixels, a third of the rows being the region; and the region."""
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(count, 1, 1, 1, generator=generator).expand(-1, 1, 6, 6)
    unit = torch.randn(count, 1, 6, 6, generator=generator)
    region = torch.zeros(count, 1, 6, 6, dtype=torch.bool)
    region[..., :2, :] = True
    return errors(host, latents, region, GRID, lambda sigma: latents + sigma * unit), region[:1]


def test_errors_are_those_of_the_closed_form() -> None:
    """Posterior variance 1 / (1 + sum of 1 / sigma^2) at every timestep and lag; the changes lie within their errors."""
    found, region = measured(Flat())
    inside = int(region.sum())

    def expected(timestep: float, lag: float) -> float:
        ahead = GRID[int(timestep - lag)].item() if lag < timestep else 1e-3
        return 1 / (1 + inside / GRID[timestep].item() ** 2 + (36 - inside) / ahead**2)

    for row, timestep in enumerate(TIMESTEPS):
        wanted = torch.tensor([expected(timestep, lag) for lag in (0.0, *LAGS)])
        torch.testing.assert_close(found[row].mean(dim=-1), wanted, rtol=0.06, atol=1e-6)
    shown = changes(found)
    for row, timestep in enumerate(TIMESTEPS):
        for column, lag in enumerate(LAGS):
            wanted = expected(timestep, lag) / expected(timestep, 0) - 1
            assert abs(float(shown.mean[row, column]) - wanted) < 5 * float(shown.error[row, column]) + 1e-3
    assert suggested_lead(shown) == 1.0 and "to clean" in advice(1.0)


def test_what_it_suggests() -> None:
    """The lag that helps most in the first steps; none where the gain is within two errors."""
    early = [timestep >= 800 for timestep in TIMESTEPS]
    mean = torch.full((len(TIMESTEPS), len(LAGS)), 0.5)
    mean[early, LAGS.index(200)] = -0.2
    mean[[not e for e in early], LAGS.index(100)] = -0.4
    assert suggested_lead(Changes(mean, torch.full_like(mean, 0.05))) == 0.2
    assert suggested_lead(Changes(mean, torch.full_like(mean, 0.5))) == 0.0
    assert "lead 0.2" in advice(0.2) and "noised" in advice(0.0)


def test_regions_are_a_third_and_anywhere() -> None:
    made = boxes((15, 20), 50, np.random.default_rng(1))
    assert made.shape == (50, 1, 15, 20) and (made.sum(dim=(1, 2, 3)) == 5 * 6).all()
    assert len({tuple(one.nonzero()[0].tolist()) for one in made}) > 20


def test_the_command(tmp_path, capsys: pytest.CaptureFixture) -> None:
    """On a few drawings of the demo model: a table of every timestep and lag, the picture of it, and the advice."""
    assert main(["--scenes", "6", "--out", str(tmp_path)]) == 0
    said = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert said in capsys.readouterr().out and (tmp_path / "changes.png").is_file()
    rows = [line for line in said.splitlines() if line[:2] == "| " and line[2].isdigit()]
    assert len(rows) == len(TIMESTEPS) and all(row.count("%") == len(LAGS) for row in rows)
    assert isinf(LAGS[-1]) and "| clean |" in said
    assert main(["--checkpoint", "demo", "--pictures", str(tmp_path / "none")]) == 2


def test_green_helps_and_red_harms() -> None:
    mean = torch.full((len(TIMESTEPS), len(LAGS)), -0.4)
    mean[1] = 0.4
    shown = picture(Changes(mean, mean.abs()), "heading")
    colours = [colour for _, colour in shown.getcolors(1 << 20)]
    assert (38, 166, 91) in colours and (208, 56, 48) in colours
    assert "-40 ± 40 %" in table(Changes(mean, mean.abs()))
