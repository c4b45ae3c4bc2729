"""Per-pixel timesteps: against a naive UNet that embeds every pixel, and against stock calls where they are equal."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asyndm_core.embedding import STRIDES, BlockTimesteps, PixelTimesteps, at_size, gather, grouped
from asyndm_core.hosts.diffusers import pixel_timesteps

ODD_SIZES = [(16, 16), (18, 22), (13, 17), (16, 9)]


def naive(unet: UNet2DConditionModel, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
    """The UNet with a timestep of its own for every pixel (B, H, W), by brute force.

    Every pixel is embedded, every residual block (written out here) projects all of them, and takes those under its own
    pixels: a block of stride 2^k starts at pixel 0 and takes every 2^k-th, as its convolutions do.
    """
    rows = unet.time_proj(timesteps.flatten())
    embedded = unet.time_embedding(rows).unflatten(0, timesteps.shape)

    def block_forward(block: ResnetBlock2D, hidden: Tensor, *_: object) -> Tensor:
        shift = block.time_emb_proj(block.nonlinearity(embedded)).permute(0, 3, 1, 2)
        features = block.conv1(block.nonlinearity(block.norm1(hidden)))
        stride = next(s for s in (1, 2, 4, 8) if -(-timesteps.shape[1] // s) == features.shape[2])
        features = features + shift[:, :, ::stride, ::stride]
        features = block.conv2(block.nonlinearity(block.norm2(features)))
        return (hidden if block.conv_shortcut is None else block.conv_shortcut(hidden)) + features

    with patch.object(ResnetBlock2D, "forward", block_forward):
        return unet(x, 0, encoder_hidden_states=context).sample


def distinct(timesteps: Tensor) -> PixelTimesteps:
    """The map in its distinct values."""
    return grouped(timesteps).of(timesteps)


def timestep_map(size: tuple[int, int], values: int = 1000) -> Tensor:
    """Random timesteps (2, H, W) out of ``values`` distinct ones."""
    return torch.randint(values, (2, *size)) * (1000 // values)


@pytest.mark.parametrize("size", ODD_SIZES)
@pytest.mark.parametrize("values", [3, 1000])
def test_a_map_of_timesteps_is_the_naive_reference(unet: UNet2DConditionModel, size: tuple[int, int], values: int) -> None:
    """Any map, any size, to rounding (the same sums in another order)."""
    x, context, timesteps = torch.randn(2, 4, *size), torch.randn(2, 9, 24), timestep_map(size, values)
    with pixel_timesteps(unet, distinct(timesteps)):
        got = unet(x, 0, encoder_hidden_states=context).sample
    wanted = naive(unet, x, timesteps, context)
    torch.testing.assert_close(got, wanted, rtol=0, atol=2e-5 * wanted.std().item())
    # The test can fail: the map matters.
    other = unet(x, timesteps[0, 0, 0], encoder_hidden_states=context).sample
    assert (other - wanted).abs().max() > 0.05 * wanted.std()


@pytest.mark.parametrize("size", ODD_SIZES)
def test_a_uniform_map_is_the_scalar_call(unet: UNet2DConditionModel, size: tuple[int, int]) -> None:
    """The same timestep everywhere: the stock call, to rounding."""
    x, context = torch.randn(2, 4, *size), torch.randn(2, 9, 24)
    stock = unet(x, torch.tensor(417), encoder_hidden_states=context).sample
    with pixel_timesteps(unet, distinct(torch.full((2, *size), 417))):
        got = unet(x, 0, encoder_hidden_states=context).sample
    torch.testing.assert_close(got, stock, rtol=0, atol=1e-5 * stock.std().item())


def test_images_of_a_batch_have_their_own_timesteps(unet: UNet2DConditionModel) -> None:
    """Two uniform maps in one batch are two scalar calls."""
    x, context = torch.randn(2, 4, 16, 16), torch.randn(2, 9, 24)
    timesteps = torch.tensor([40, 900])
    with pixel_timesteps(unet, distinct(timesteps.view(2, 1, 1).expand(2, 16, 16))):
        got = unet(x, 0, encoder_hidden_states=context).sample
    stock = unet(x, timesteps, encoder_hidden_states=context).sample
    torch.testing.assert_close(got, stock, rtol=0, atol=1e-5 * stock.std().item())


def test_sdxl_conditions_are_added_to_every_timestep(make_unet: Callable[..., UNet2DConditionModel]) -> None:
    """text_time: the pooled text and the sizes join the embedding of each timestep, image by image."""
    unet = make_unet(
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 20
    )
    x, context = torch.randn(2, 4, 16, 16), torch.randn(2, 9, 24)
    added = {"text_embeds": torch.randn(2, 20), "time_ids": torch.rand(2, 6) * 1000}
    timesteps = torch.tensor([40, 900])
    stock = unet(x, timesteps, encoder_hidden_states=context, added_cond_kwargs=added).sample
    with pixel_timesteps(unet, distinct(timesteps.view(2, 1, 1).expand(2, 16, 16))):
        got = unet(x, 0, encoder_hidden_states=context, added_cond_kwargs=added).sample
    torch.testing.assert_close(got, stock, rtol=0, atol=1e-5 * stock.std().item())


def test_the_unet_is_as_before_afterwards(unet: UNet2DConditionModel) -> None:
    """Hooks go away, after an error too."""
    x, context = torch.randn(1, 4, 16, 16), torch.randn(1, 9, 24)
    stock = unet(x, 417, encoder_hidden_states=context).sample
    with pytest.raises(RuntimeError, match="cancelled"), pixel_timesteps(unet, distinct(timestep_map((16, 16))[:1])):
        raise RuntimeError("cancelled")
    assert torch.equal(unet(x, 417, encoder_hidden_states=context).sample, stock)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 7, 1000]), st.integers(0, 2**32))
def test_groups_are_the_distinct_values(batch: int, height: int, width: int, values: int, seed: int) -> None:
    """The values of torch.unique, which has to wait for the device; first those of the coarsest grid, then of the next."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.randint(values, (batch, height, width), generator=generator) * 0.1
    groups = grouped(level)
    found = groups.of(level)
    assert torch.equal(found.values[found.index], level) and torch.equal(found.values.sort().values, level.unique())
    assert groups.count == len(found.values) and groups.least == level.min()
    assert torch.equal(found.rows(batch), found.values.repeat_interleave(batch))
    of_images = torch.rand(batch, 2)
    assert torch.equal(found.beside_rows(of_images), of_images.repeat(groups.count, 1))
    for stride, count in zip(STRIDES, groups.counts, strict=True):
        assert torch.equal(found.values[:count].sort().values, level[:, ::stride, ::stride].unique())


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([1, 2, 5]), st.sampled_from([1, 3, 40]), st.integers(0, 2**32))
def test_groups_of_two_maps_hold_for_what_is_computed_from_both(one: int, other: int, seed: int) -> None:
    """As many as there are pairs, and a map of both is put together from its values."""
    generator = torch.Generator().manual_seed(seed)
    sigma, sigma_next = (torch.randint(n, (2, 5, 7), generator=generator).float() for n in (one, other))
    groups = grouped(sigma).split(grouped(sigma_next))
    assert groups.count == len(torch.stack([sigma, sigma_next], dim=-1).flatten(0, 2).unique(dim=0))
    between = sigma * sigma_next + sigma
    found = groups.of(between)
    assert torch.equal(found.values[found.index], between)


@pytest.mark.parametrize("images", [1, 3], ids=["rows for all images", "rows for each image"])
def test_gather_picks_the_row_of_each_pixel(images: int) -> None:
    """Image b, pixel (y, x) of a block at half the size gets row index[b, 2 y, 2 x] of image b."""
    index = torch.randint(5, (3, 4, 13))
    pixels = PixelTimesteps(torch.arange(5.0), index)
    embedded = 10 * pixels.rows(images)[:, None] + torch.arange(images).repeat(5)[:, None] + torch.rand(1, 4)
    got = gather(embedded, pixels.at_size(2, 7))
    assert got.shape == (3, 4, 2, 7)
    image = torch.arange(3)[:, None, None] % images
    assert torch.equal(got, (10 * index[:, ::2, ::2] + image)[:, None] + embedded[0, :, None, None])


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 3), st.booleans(), st.booleans(), st.booleans(), st.sampled_from([1, 7, 300]),
    st.sampled_from([(24, 40, 1), (12, 20, 2), (6, 10, 4), (3, 5, 8), (2, 3, 8), (9, 9, None)]), st.integers(0, 2**32),
)  # fmt: skip
def test_blocks_project_their_own_timesteps(
    images: int, alike: bool, each: bool, known: bool, values: int, block: tuple[int, int, int | None], seed: int
) -> None:
    """A block adds what a gather of all projected rows gives, and projects no timestep that none of its pixels has.

    All are projected where the counts are not known, and in a block whose size no convolutions of stride 2 make. A block
    at 1/16 projects those at 1/8.
    """
    height, width, stride = block
    generator = torch.Generator().manual_seed(seed)
    level = torch.randint(values, (1 if alike else images, 24, 40), generator=generator).float()
    pixels = grouped(level).of(level)
    everything = PixelTimesteps(pixels.values, pixels.index)
    count = len(pixels.values)
    embedded = torch.randn(images * count if each else count, 5, generator=generator)
    projection = torch.randn(5, 2, generator=generator)
    timesteps = BlockTimesteps(pixels if known else everything)
    rows = timesteps.to_project(embedded, height, width)
    own = len(level[:, ::stride, ::stride].unique()) if known and stride else count
    assert len(rows) == own * (images if each else 1)
    wanted = gather(embedded @ projection, everything.at_size(height, width))
    torch.testing.assert_close(timesteps.to_pixels(rows @ projection, height, width), wanted)
    assert wanted.shape == (images if each else len(level), 2, height, width)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 4))
def test_at_size_follows_strided_convolutions(height: int, width: int, halvings: int) -> None:
    """The pixels that k convolutions of stride 2 (kernel 3, padding 1) are centred on, for any size, odd too."""
    index = torch.arange(height * width).view(1, height, width)
    centre = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    centre[..., 1, 1] = 1
    features = index[None].double()
    for _ in range(halvings):
        features = torch.nn.functional.conv2d(features, centre, stride=2, padding=1)
    assert torch.equal(at_size(index, *features.shape[-2:]), features[0].long())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 50), st.integers(1, 50))
def test_at_size_of_any_size(height: int, width: int, to_height: int, to_width: int) -> None:
    """Hosts that resize features get the nearest pixels, in order, none out of range."""
    index = torch.arange(height * width).view(1, height, width)
    got = at_size(index, to_height, to_width)
    assert got.shape == (1, to_height, to_width)
    rows, columns = got[0] // width, got[0] % width
    assert (rows.diff(dim=0) >= 0).all()
    assert (columns.diff(dim=1) >= 0).all()
    assert (rows == rows[:, :1]).all()
    assert (columns == columns[:1]).all()
