"""Which blocks show the words: the figures in closed form, and the maps against the host's own reading."""

from __future__ import annotations

import torch

from asyndm_core.attention import token_columns
from asyndm_core.hosts.diffusers_transformers import DiffusersTransformerHost
from benchmarks.alignment.blocks import BLOCKS, GRID, KEYS, Watch, coarse, in_order, measure, overlap
from benchmarks.alignment.scenes import choose_scenes
from demo.config import LATENT_CHANNELS, MAX_TOKENS, TEXT_WIDTH
from demo.model import load_transformer
from demo.sample import token_positions


def test_in_order_is_the_share_of_pairs() -> None:
    things = torch.zeros(GRID, GRID, dtype=torch.bool)
    things[3:6, 4:9] = True
    maps = torch.randn(5, GRID, GRID, generator=torch.Generator().manual_seed(1))
    pairs = (maps[:, things][:, :, None] > maps[:, ~things][:, None]).float().mean(dim=(1, 2))
    torch.testing.assert_close(in_order(maps, things), pairs)
    assert in_order(things.float() + 0.1 * maps[0].clamp(-1, 1), things) == 1


def test_overlap_is_of_what_is_at_least_the_mean() -> None:
    things, maps = torch.zeros(GRID, GRID, dtype=torch.bool), torch.zeros(GRID, GRID)
    things[:4], maps[2:6] = True, 1.0
    assert overlap(maps, things) == 2 / 6


def test_maps_are_what_the_host_reads() -> None:
    """Of the block that it reads, of all keys: at every second row and column the same."""
    model, prompt = load_transformer(), "a green boat on the sea under two moons"
    positions = token_positions(model, prompt, ["boat", "two moons"])
    columns, x = token_columns(positions, MAX_TOKENS), torch.randn(1, LATENT_CHANNELS, GRID, GRID)
    cond = {"encoder_hidden_states": model.encode_text([prompt]), "pooled_projections": torch.zeros(1, TEXT_WIDTH)}
    host = DiffusersTransformerHost(model.transformer, cond, words=columns)
    with Watch(columns[None]) as watch:
        host.denoise(x, torch.full((1, 1, GRID, GRID), 0.7), watch=True)
    seen, (block,) = host.attention(), host.blocks
    assert seen is not None and {keys: len(found) for keys, found in watch.maps.items()} == dict.fromkeys(KEYS, BLOCKS)
    maps = coarse(watch.maps["all keys"][block][None])[0]
    mean = lambda each: each / each.mean(dim=(-2, -1), keepdim=True)  # noqa: E731
    torch.testing.assert_close(mean(maps), mean(seen.shares), rtol=1e-4, atol=1e-5)
    assert (mean(watch.maps["text keys"][block]) - mean(watch.maps["all keys"][block])).abs().max() > 0.1


def test_a_small_measurement() -> None:
    found = measure(load_transformer(), choose_scenes(2, 77, "common"), 6)
    assert all(values.shape[1:] == (6, BLOCKS, 2) for name, values in found.items() if "means" not in name)
    assert all(values.min() >= 0 and values.max() <= 1 for values in found.values())
    assert found["all keys"][:, :, 1, 0].mean() > 0.75, "the last double block shows the words"
