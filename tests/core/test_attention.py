"""The capture of attention: against an explicit softmax, an explicit attention processor, and no capture at all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from asyndm_core.attention import (
    Attention,
    AttentionSum,
    BlockMean,
    LayerSum,
    Sequences,
    between_rows,
    choose_factor,
    fit_columns,
    token_columns,
    watching,
)
from asyndm_core.hosts.diffusers import cross_attention_layers


def seen_in(query: Tensor, key: Tensor, heads: int, columns: Tensor) -> Tensor:
    """What one layer of a row of queries saw: (B, words, queries)."""
    total = LayerSum(columns)
    total.add(query, key, heads, 1, query.shape[1])
    return total.mean().flatten(2)


def test_more_words_than_a_head_is_wide() -> None:
    """Each is the same as alone."""
    query, key, columns = torch.randn(2, 7, 12), torch.randn(2, 9, 12), torch.eye(9)
    alone = torch.cat([seen_in(query, key, 3, columns[:, word : word + 1]) for word in range(9)], dim=1)
    torch.testing.assert_close(seen_in(query, key, 3, columns), alone)


@pytest.mark.parametrize("own_prompts", [False, True])
def test_probabilities_are_an_explicit_softmax(own_prompts: bool) -> None:
    """Mean over heads of softmax(q k^T / sqrt(d)), the words' columns picked by hand."""
    heads, width, tokens = 3, 5, 11
    query, key = torch.randn(2, 7, heads * width), torch.randn(2, tokens, heads * width)
    columns = token_columns([[2], [4, 5, 9]], tokens)
    got = seen_in(query, key, heads, columns.expand(2, -1, -1) if own_prompts else columns)
    wanted = torch.zeros(2, 2, 7)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        for image in range(2):
            for pixel in range(7):
                logits = torch.stack([query[image, pixel, part] @ key[image, t, part] for t in range(tokens)])
                share = torch.exp(logits / width**0.5)
                share = share / share.sum()
                wanted[image, 0, pixel] += share[2] / heads
                wanted[image, 1, pixel] += (share[4] + share[5] + share[9]) / 3 / heads
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_repeated_conditionings_sum_over_their_copies() -> None:
    """A conditioning repeated along the tokens changes no output, and no map: the mass is spread over the copies."""
    query, key = torch.randn(1, 6, 8), torch.randn(1, 5, 8)
    once = seen_in(query, key, 2, token_columns([[1, 3], [4]], 5))
    thrice = seen_in(query, key.repeat(1, 3, 1), 2, token_columns([[1, 3], [4]], 5))
    torch.testing.assert_close(thrice, once)


def test_token_columns() -> None:
    """Words are the mean of their tokens; a word of another prompt (no positions) sees nothing."""
    columns = fit_columns(token_columns([[1, 2], [], [0]], 4), 2 * 4)
    assert columns.tolist() == [[0, 0, 1], [0.5, 0, 0], [0.5, 0, 0], [0, 0, 0]] * 2


@pytest.mark.parametrize(
    ("factors", "chosen"),
    [([1, 2, 4, 8], 4), ([4], 4), ([1, 2], 2), ([2, 8], 2), ([8, 16], 8), ([2, 4, 2, 4], 4)],
)
def test_choose_factor(factors: list[int], chosen: int) -> None:
    """The paper's 1/4 where there is one, else the next finer, else the least coarse."""
    assert choose_factor(factors) == chosen


def test_choose_factor_needs_a_layer() -> None:
    """An unconditional model cannot follow words."""
    with pytest.raises(ValueError, match="painted mask"):
        choose_factor([])


class ExplicitAttention:
    """An attention processor written out: keeps the probabilities (B, heads, queries, tokens) of every call."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(
        self, attn: torch.nn.Module, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: object
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer, x in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        share = torch.softmax(query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5, dim=-1)
        self.seen.append(share)
        return attn.to_out[1](attn.to_out[0]((share @ value).transpose(1, 2).flatten(2)))


def inputs(height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents of two images, a timestep, and a conditioning of 9 tokens."""
    return torch.randn(2, 4, height, width), torch.tensor(321), torch.randn(2, 9, 24)


@pytest.mark.parametrize("size", [(16, 16), (20, 12)])
def test_watching_changes_nothing_and_sees_what_the_model_does(
    make_unet: Callable[..., UNet2DConditionModel], size: tuple[int, int]
) -> None:
    """Output bit for bit that of the undisturbed UNet; maps those of the explicit processor; hooks gone afterwards.

    Two transformer blocks per layer, so that there is something to sum.
    """
    unet = make_unet(transformer_layers_per_block=2)
    x, timestep, context = inputs(*size)
    stock = unet(x, timestep, encoder_hidden_states=context).sample
    columns = token_columns([[3], [5, 6]], 9)
    layers = cross_attention_layers(unet)
    assert sorted(layers) == [1, 2, 4]
    for factor, watched in layers.items():
        total, calls = LayerSum(columns), []

        def seen(
            query: Tensor,
            key: Tensor,
            heads: int,
            height: int,
            width: int,
            total: LayerSum = total,
            calls: list = calls,
        ) -> None:
            calls.append((height, width))
            total.add(query, key, heads, height, width)

        with watching(watched, seen):
            assert torch.equal(unet(x, timestep, encoder_hidden_states=context).sample, stock)
        assert torch.equal(unet(x, timestep, encoder_hidden_states=context).sample, stock)
        attentions = [attention for layer in watched for attention in layer.attentions]
        assert calls == [tuple(-(-side // factor) for side in size)] * len(attentions)

        explicit = ExplicitAttention()
        processors = [attention.processor for attention in attentions]
        for attention in attentions:
            attention.set_processor(explicit)
        unet(x, timestep, encoder_hidden_states=context)
        for attention, processor in zip(attentions, processors, strict=True):
            attention.set_processor(processor)
        share = torch.stack(explicit.seen).mean(dim=(0, 2))
        wanted = torch.stack([share[..., 3], share[..., 5:7].mean(dim=-1)], dim=1).unflatten(-1, calls[0])
        torch.testing.assert_close(total.mean(), wanted, rtol=1e-4, atol=1e-6)


def test_hooks_go_away_after_an_error(unet: UNet2DConditionModel) -> None:
    """A cancelled step leaves the model as it was."""
    calls: list[int] = []
    with (
        pytest.raises(RuntimeError, match="cancelled"),
        watching(cross_attention_layers(unet)[4], lambda *_: calls.append(1)),
    ):
        raise RuntimeError("cancelled")
    unet(*inputs(16, 16)[:2], encoder_hidden_states=torch.randn(2, 9, 24))
    assert calls == []


@pytest.mark.parametrize("own_prompts", [False, True])
def test_layers_of_any_size_and_heads_count_alike(own_prompts: bool) -> None:
    """The sum of several layers is the mean of each layer's own; sizes follow the first."""
    columns = token_columns([[2], [4, 5]], 7)
    columns = torch.stack([columns, columns.flip(0)]) if own_prompts else columns
    total, apart = LayerSum(columns), []
    assert total.mean() is None
    for heads, height, width in ((2, 4, 6), (2, 4, 6), (4, 4, 6), (2, 2, 3), (2, 4, 6)):
        query, key = torch.randn(2, height * width, 8), torch.randn(2, 7, 8)
        total.add(query, key, heads, height, width)
        alone = seen_in(query, key, heads, columns).unflatten(-1, (height, width))
        apart.append(torch.nn.functional.interpolate(alone, size=(4, 6), mode="bilinear"))
    torch.testing.assert_close(total.mean(), torch.stack(apart).mean(dim=0))


def of_words(*values: float) -> Tensor:
    """A number for each word, alike everywhere."""
    return torch.tensor(values).view(1, -1, 1, 1)


def test_a_word_is_the_mean_over_the_prompts_that_have_it() -> None:
    """Weighted as they count; a word that no prompt has is 0, without weight."""
    total = AttentionSum()
    assert total.mean() is None
    total.add(Attention(torch.full((1, 3, 2, 2), 4.0), of_words(1, 0, 0)))
    total.add(Attention(of_words(1, 3, 9).expand(1, 3, 2, 2), of_words(0.5, 2, 0)))
    shares, weight = total.mean()
    assert shares[0, :, 1, 0].tolist() == [3.0, 3.0, 0.0] and shares.shape == (1, 3, 2, 2)
    assert weight.flatten().tolist() == [1.5, 2.0, 0.0]


def test_pixels_count_by_their_own_weight() -> None:
    """A prompt in the left half beside one everywhere, and beside one in the lower half: by hand at every pixel."""
    left, lower = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    left[..., 0], lower[..., 1, :] = 1, 0.5
    seen = torch.full((1, 1, 2, 2), 1.0), torch.full((1, 1, 2, 2), 4.0)
    beside, apart = AttentionSum(), AttentionSum()
    beside.add(Attention(seen[0], torch.ones(1, 1, 1, 1)))
    beside.add(Attention(seen[1], left))
    assert beside.mean().shares.flatten().tolist() == [2.5, 1.0, 2.5, 1.0]
    apart.add(Attention(seen[0], left))
    apart.add(Attention(seen[1], lower))
    assert apart.mean().shares.flatten().tolist() == [1.0, 0.0, 2.0, 4.0]
    assert apart.mean().weight.flatten().tolist() == [1.0, 0.0, 1.5, 0.5]


def test_maps_of_other_sizes_are_brought_to_the_largest() -> None:
    """So that the edge of a mask at latent size stays where it is."""
    coarse = Attention(torch.full((1, 1, 2, 2), 1.0), torch.ones(1, 1, 1, 1))
    half = torch.cat([torch.ones(1, 1, 4, 2), torch.zeros(1, 1, 4, 2)], dim=-1)
    for order in (1, -1):
        total = AttentionSum()
        for seen in (coarse, Attention(torch.full((1, 1, 4, 4), 3.0), half))[::order]:
            total.add(seen)
        assert torch.equal(total.mean().shares, 1 + half) and torch.equal(total.mean().weight, 1 + half)


# --- transformers: picture and text in one sequence ------------------------------------------------------------------------


def of_blocks(blocks: int, layout: Sequences, heads: int = 4, shared: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Queries and keys of some blocks, of two pictures."""
    generator = torch.Generator().manual_seed(3)
    shapes = ((2, heads, layout.queries, 8), (2, heads // shared, layout.keys, 8))
    return [tuple(torch.randn(shape, generator=generator) for shape in shapes) for _ in range(blocks)]


@pytest.mark.parametrize("shared", [1, 2])
@pytest.mark.parametrize("masked", ["no", "keys", "scores"])
@pytest.mark.parametrize("grid, beside", [((5, 6), 0), ((4, 4), 3), ((1, 1), 0)])
def test_the_mean_of_blocks(grid: tuple[int, int], beside: int, masked: str, shared: int) -> None:
    """Each by its own mean over the picture, at every second row and column; from the softmax of all keys, in float64."""
    height, width = grid
    tokens = height * (width + beside)
    layout = Sequences(7 + tokens + 2, 7 + tokens + 2, 7, grid, beside)
    positions = [(1,), (2, 3), ()]
    mask = None
    if masked == "keys":
        mask = (torch.arange(layout.keys) != 2).expand(2, 1, 1, -1)
    elif masked == "scores":
        mask = torch.randn(1, 1, layout.queries, layout.keys, generator=torch.Generator().manual_seed(4))
    mean, want = BlockMean(token_columns(positions, layout.keys), layout), 0
    for query, key in of_blocks(3, layout, shared=shared):
        mean.add(query, key, mask, 0.5)
        scores = 0.5 * query.double() @ key.double().repeat_interleave(shared, dim=1).transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if masked == "keys" else scores + mask.double()
        shares = scores.softmax(dim=-1)[:, :, 7 : 7 + tokens].unflatten(2, (height, width + beside))[:, :, ::2, :width:2]
        maps = torch.stack([shares[..., list(where)].sum(-1) / max(len(where), 1) for where in positions], dim=1).mean(dim=2)
        want = want + maps / maps.mean(dim=(-2, -1), keepdim=True).clamp(min=1e-300) / 3
    got = mean.mean()
    assert got.shape == (2, 3, height, width)
    torch.testing.assert_close(got[..., ::2, ::2].double(), want, atol=1e-5, rtol=1e-5)
    assert not got[:, 2].any()


def test_rows_between() -> None:
    """The mean of their neighbours; at the edge the last that was read."""
    read = torch.arange(6.0).view(1, 1, 2, 3)
    got = between_rows(read, (4, 5))[0, 0]
    assert torch.equal(got[0], torch.tensor([0, 0.5, 1, 1.5, 2])) and torch.equal(got[2], torch.tensor([3, 3.5, 4, 4.5, 5]))
    assert torch.equal(got[1], (got[0] + got[2]) / 2) and torch.equal(got[3], got[2])


def test_small_shares_in_half_precision() -> None:
    """Of thousands of keys a word has next to nothing: it is read all the same."""
    layout = Sequences(4096 + 256, 4096 + 256, 256, (64, 64))
    query, key = of_blocks(1, layout, heads=1)[0]
    maps = []
    for dtype in (torch.float16, torch.float64):
        mean = BlockMean(token_columns([(5,)], layout.keys), layout)
        mean.add(query[:1].to(dtype), key[:1].to(dtype))
        maps.append(mean.mean().double())
    assert (maps[0] - maps[1]).abs().max() < 0.02 * maps[1].max()
