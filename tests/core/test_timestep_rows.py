"""A timestep for every token: rows against the same functions of each row, and networks against their exact references.

The plain network has a path of its own for a timestep per token; diffusers' are held against ``exchanged``: the network run
on a copy of the batch for each timestep, whose tokens are exchanged before every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asyndm_core.hooks import hooked
from asyndm_core.timestep_rows import (
    Columns,
    Layout,
    TimestepRows,
    UnplacedError,
    folded,
    reference,
    unfolded,
    with_columns,
)

BATCH, GRID, TEXT, WIDTH, ROWS = 2, (6, 8), 19, 32, 4
TOKENS = GRID[0] * GRID[1]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pixels(patch: int = 1, rows: int = ROWS, batch: int = BATCH, grid: tuple[int, int] = GRID) -> Tensor:
    """A map of rows, the same within each patch."""
    tokens = torch.randint(0, rows, (batch, *grid), generator=torch.Generator().manual_seed(1))
    return tokens.repeat_interleave(patch, 1).repeat_interleave(patch, 2)


def layout(**more: Any) -> Layout:
    return Layout(pixels(), (1, 1), BATCH, **more)


def rows_of(*shape: int, **more: Any) -> TimestepRows:
    return TimestepRows.of(random(ROWS, *shape), layout(**more))


# --- functions -------------------------------------------------------------------------------------------------------------

SAME: dict[str, Callable[[Tensor], Any]] = {
    "arithmetic": lambda r: (2 * r + 1) / (3 - r) ** 2 - r,
    "another of its kind": lambda r: r * r.flip(-1),
    "features": lambda r: F.linear(F.silu(r), random(5, WIDTH, seed=2), random(5, seed=3)),
    "frequencies": lambda r: torch.cat([(r[:, 0, None] * random(7)).cos(), (r[:, 0, None] * random(7)).sin()], dim=-1),
    "outer": lambda r: torch.outer(r[:, 0], random(7)),
    "a table of parameters": lambda r: (random(6, WIDTH) + r[:, None]).unbind(1)[2],
    "chunks": lambda r: r.chunk(4, dim=-1)[1],
    "split, negative": lambda r: torch.split(r, [8, 24], dim=-1)[1].transpose(0, -1),
    "shapes": lambda r: r.view(BATCH, 4, -1).permute(2, 0, 1).flatten(1).unsqueeze(0)[..., None, :],
    "unflatten, repeat": lambda r: r.unflatten(-1, (4, 8)).repeat(1, 2, 1),
    "expand within the batch": lambda r: r[:, None].expand(-1, 3, -1),
    "normalised": lambda r: F.layer_norm(r, (WIDTH,)),
    "in place": lambda r: r.clone().mul_(2).add_(1).clamp_(min=0),
    "assigned": lambda r: assigned(r.clone()),
    "anything else": lambda r: torch.logsumexp(r, dim=-1) + r.max(dim=-1).values,
    "number types": lambda r: r.to(torch.float64).float(),
}


def assigned(r: Tensor) -> Tensor:
    r[:, :4] = 0
    r[..., 5] = r[..., 6]
    return r


@pytest.mark.parametrize("name", SAME)
def test_what_meets_no_token_is_the_function_of_each_row(name: str) -> None:
    function, rows = SAME[name], rows_of(BATCH, WIDTH)
    made, each = function(rows), [function(row) for row in rows.every.clone()]
    assert isinstance(made, TimestepRows)
    torch.testing.assert_close(made.every, torch.stack(each))
    assert torch.equal(reference(made), made.every[0]) and type(reference(made)) is Tensor


def test_python_sees_the_reference() -> None:
    rows = rows_of(BATCH)
    assert (rows.shape, rows.dtype, rows.ndim, len(rows)) == ((BATCH,), torch.float32, 1, BATCH)
    assert rows[0].item() == float(rows.every[0, 0])
    assert type(torch.zeros_like(rows)) is Tensor and type(rows.new_zeros(3)) is Tensor
    assert type(torch.cat([rows.view(BATCH, 1, 1).expand(-1, 1, 1), torch.zeros(BATCH, TOKENS, 1)], dim=1)) is Tensor


@pytest.mark.parametrize("opens", [True, False])
@pytest.mark.parametrize("tail", [0, 5])
def test_every_token_gets_its_own_row(opens: bool, tail: int) -> None:
    """In the picture's stream, and in one with text; what is no token of the picture gets the reference row."""
    rows = rows_of(BATCH, WIDTH, opens=opens, tail=tail)
    row = pixels().flatten(1)
    for length in (TOKENS, TOKENS + tail, TEXT + TOKENS + tail):
        tokens = random(BATCH, length, WIDTH, seed=4)
        ours = torch.addcmul(rows.unsqueeze(1), tokens, 1 + rows.unsqueeze(1))
        start = 0 if opens or length < TEXT + TOKENS else TEXT
        expected = torch.zeros(BATCH, length, dtype=torch.long)
        expected[:, start : start + TOKENS] = row
        own = rows.every[expected, torch.arange(BATCH)[:, None]]
        assert type(ours) is Tensor
        torch.testing.assert_close(ours, own + tokens * (1 + own))


@pytest.mark.parametrize("tail", [TOKENS - 20, TOKENS, TOKENS + 12])
def test_what_follows_the_picture_apart(tail: int) -> None:
    """Reference pictures, more or fewer tokens than the picture's, that a network modulates by themselves."""
    rows, tokens = rows_of(BATCH, WIDTH, tail=tail), random(BATCH, TOKENS + tail, WIDTH, seed=4)
    row = F.pad(pixels().flatten(1), (0, tail))
    expected = tokens * rows.every[row, torch.arange(BATCH)[:, None]]
    parts = [tokens[:, :TOKENS] * rows[:, None], tokens[:, TOKENS:] * rows[:, None]]
    assert all(type(part) is Tensor for part in parts)
    assert torch.equal(torch.cat(parts, dim=1), expected)
    if tail > TOKENS:
        assert torch.equal(tokens[:, TOKENS:].contiguous() * rows[:, None], expected[:, TOKENS:])


def test_pictures_joined_to_others_of_a_large_batch() -> None:
    batch = 20
    rows = TimestepRows.of(random(ROWS, batch, 1, WIDTH), Layout(pixels(batch=1), (1, 1), batch))
    zeros = torch.zeros(batch, 1, WIDTH)
    joined = torch.cat([rows, zeros], dim=0)
    assert isinstance(joined, TimestepRows)
    assert torch.equal(joined[:batch].every, rows.every) and torch.equal(joined[batch:].every, zeros.expand(ROWS, -1, -1, -1))


def test_grids_and_pixels() -> None:
    """Tokens in rows and columns, latent pixels with and without channels, and a size that is padded up to whole patches."""
    places = Layout(pixels(patch=2)[:, :11, :15], (2, 2), BATCH)
    rows = TimestepRows.of(random(ROWS, BATCH), places)
    row, picture = pixels(), torch.arange(BATCH)[:, None, None]
    whole = pixels(patch=2)
    inner = whole[:, :11, :15]
    x, wide = random(BATCH, *GRID, 3), TimestepRows.of(random(ROWS, BATCH, 3), places)
    assert torch.equal(x * wide[:, None, None], x * wide.every[row, picture])
    x = random(BATCH, 3, 12, 16)
    assert torch.equal(x * rows[:, None, None, None], x * rows.every[whole, picture][:, None])
    x = random(BATCH, 11, 15)
    assert torch.equal(x * rows[:, None, None], x * rows.every[inner, picture])


def test_slices_written_in_place() -> None:
    """A view of a longer sequence is known by its strides, also in inference mode."""
    with torch.inference_mode():
        rows, tokens = rows_of(BATCH, WIDTH), random(BATCH, TEXT + TOKENS, WIDTH, seed=5)
        row = F.pad(pixels().flatten(1), (TEXT, 0))
        expected = tokens * rows.every[row, torch.arange(BATCH)[:, None]]
        for part in (slice(0, TEXT), slice(TEXT, None)):
            tokens[:, part].mul_(rows[:, None])
        assert torch.equal(tokens, expected)
        tokens[:, TEXT:] = rows[:, None]
        assert torch.equal(tokens[:, TEXT:], rows.every[row[:, TEXT:], torch.arange(BATCH)[:, None]])


def test_one_map_for_all_pictures() -> None:
    places = Layout(pixels(batch=1), (1, 1), BATCH)
    rows = TimestepRows.of(random(ROWS, BATCH, WIDTH), places)
    own = rows.every[pixels(batch=1).flatten(1).expand(BATCH, -1), torch.arange(BATCH)[:, None]]
    assert torch.equal(torch.ones(BATCH, TOKENS, WIDTH) * rows[:, None], own)


def test_tokens_before_the_pictures_own() -> None:
    """In front of its stream, where that opens sequences; between text and picture otherwise."""
    own = pixels().flatten(1)
    assert torch.equal(layout(opens=True, head=3).sequence(TOKENS + 8), F.pad(own, (3, 5)))
    assert torch.equal(layout(head=3, tail=2).sequence(TOKENS + 8), F.pad(own, (6, 2)))
    with pytest.raises(UnplacedError, match="the 3 before it"):
        layout(opens=True, head=3).sequence(TOKENS + 2)


FRAMES = 3


@pytest.mark.parametrize("batch", [1, BATCH])
def test_a_timestep_for_each_frame(batch: int) -> None:
    """Of a clip: they stay rows, and each token gets that of its row and frame, in whatever form it meets them."""
    index = torch.stack([pixels(batch=batch), *(pixels(batch=batch).flip(dim) for dim in (1, 2))], dim=1)
    places = Layout(index, (1, 1, 1), batch, opens=True)
    scalar = TimestepRows.of(random(ROWS, batch), places)
    share = random(batch, 1, FRAMES, 1, 1, seed=2)
    told = (scalar.view(-1, 1, 1, 1, 1) * share).reshape(batch, -1)
    assert isinstance(told, TimestepRows) and told.shape == (batch, FRAMES)
    assert torch.equal(told.every, scalar.every[..., None] * share.view(batch, FRAMES))
    rows = TimestepRows.of(random(ROWS, batch, FRAMES, WIDTH), places)
    picture, frame = torch.arange(batch).view(-1, 1, 1, 1), torch.arange(FRAMES).view(-1, 1, 1)
    own = rows.every[index, picture, frame]
    tokens = random(batch, FRAMES, *GRID, WIDTH, seed=3)
    assert torch.equal(tokens * rows[:, :, None, None], tokens * own)
    each = rows.repeat_interleave(TOKENS, dim=1)
    assert type(each) is Tensor and torch.equal(each, own.flatten(1, 3))
    in_batch = tokens.flatten(0, 1).flatten(1, 2)
    assert torch.equal(in_batch * rows.flatten(0, 1)[:, None], in_batch * own.flatten(0, 1).flatten(1, 2))
    behind = torch.cat([rows, torch.zeros(batch, 1, WIDTH)], dim=1).repeat_interleave(TOKENS, dim=1)
    assert torch.equal(behind, torch.cat([own.flatten(1, 3), torch.zeros(batch, TOKENS, WIDTH)], dim=1))
    twice = rows.repeat_interleave(2, dim=1)
    assert isinstance(twice, TimestepRows) and torch.equal(twice.every, rows.every.repeat_interleave(2, dim=2))


def test_the_tokens_of_a_clip() -> None:
    """As one sequence, as a grid, and pixel by pixel; a token is two frames long."""
    index = pixels(batch=BATCH)[:, None].expand(-1, FRAMES, -1, -1).clone()
    index[:, 1] = index[:, 1].flip(1)
    whole = index.repeat_interleave(2, 1)[:, : 2 * FRAMES - 1]
    rows = TimestepRows.of(random(ROWS, BATCH, WIDTH), Layout(whole, (2, 1, 1), BATCH))
    own = rows.every[index, torch.arange(BATCH).view(-1, 1, 1, 1)]
    tokens = random(BATCH, TEXT + FRAMES * TOKENS, WIDTH, seed=4)
    assert torch.equal((tokens * rows[:, None])[:, TEXT:], tokens[:, TEXT:] * own.flatten(1, 3))
    grid = random(BATCH, FRAMES, *GRID, WIDTH, seed=5)
    assert torch.equal(grid * rows[:, None, None, None], grid * own)
    assert torch.equal(grid.movedim(0, 3) * rows[None, None, None], (grid * own).movedim(0, 3))


def test_columns_of_text_are_the_reference() -> None:
    rows = with_columns(rows_of(BATCH, WIDTH), Columns(-1, 16, 32))
    picture, text = rows.chunk(2, dim=-1)
    assert isinstance(picture, TimestepRows) and type(text) is Tensor and torch.equal(text, rows.every[0, :, 16:])
    assert type(rows[:, 20:24]) is Tensor and type(rows[..., 30]) is Tensor and isinstance(rows[..., :16], TimestepRows)
    with pytest.raises(UnplacedError, match="in part text's"):
        rows[..., 8:20]


REFUSED: dict[str, Callable[[TimestepRows], Any]] = {
    "a sequence too short for the picture": lambda r: random(BATCH, TEXT, WIDTH) * r[:, None],
    "places of another shape": lambda r: random(BATCH, 5, 7, WIDTH) * r[:, None, None],
    "written where there are no tokens": lambda r: torch.zeros(BATCH, WIDTH).add_(r),
    "one that is not spread beside one that is": lambda r: torch.addcmul(
        random(BATCH, TOKENS, WIDTH), r[:, None], r[:, :TOKENS].repeat(1, 2)[:, :TOKENS, None]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_placed_raises(name: str) -> None:
    with pytest.raises(UnplacedError):
        REFUSED[name](rows_of(BATCH, WIDTH))


def test_sequences_that_do_not_fit_raise() -> None:
    with pytest.raises(UnplacedError, match="cannot hold"):
        layout(tail=5).sequence(TOKENS + 3)
    with pytest.raises(UnplacedError, match="at least 9"):
        Layout(torch.zeros(1, 2, 4, dtype=torch.long), (1, 1), 1)


def test_folded_for_a_layer_that_must_see_an_ordinary_batch() -> None:
    rows, layer = rows_of(BATCH, 3, WIDTH), nn.Linear(WIDTH, 5)
    plain = folded(rows)
    assert type(plain) is Tensor and plain.shape == (ROWS * BATCH, 3, WIDTH)
    torch.testing.assert_close(unfolded(layer(plain), rows).every, layer(rows).every)


# --- a plain network ----------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Joint attention of picture and text, each with its adaLN-Zero. vec: (B, D), or (B, L, D) with one for every token."""

    def __init__(self) -> None:
        super().__init__()
        self.picture, self.text = nn.Linear(WIDTH, 6 * WIDTH), nn.Linear(WIDTH, 6 * WIDTH)
        self.qkv, self.out, self.mlp = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, text: Tensor, vec: Tensor, vec_text: Tensor) -> tuple[Tensor, Tensor]:
        of_x = modulation(self.picture(F.silu(vec)))
        of_text = modulation(self.text(F.silu(vec_text)))
        inputs = torch.cat([shifted(text, *of_text[:2]), shifted(x, *of_x[:2])], dim=1)
        q, k, v = self.qkv(inputs).chunk(3, dim=-1)
        seen = self.out(F.scaled_dot_product_attention(q, k, v))
        text, x = text + of_text[2] * seen[:, :TEXT], x + of_x[2] * seen[:, TEXT:]
        text = text + of_text[5] * self.mlp(shifted(text, *of_text[3:5]))
        return x + of_x[5] * self.mlp(shifted(x, *of_x[3:5])), text


def modulation(entries: Tensor) -> tuple[Tensor, ...]:
    return (entries if entries.ndim == 3 else entries[:, None]).chunk(6, dim=-1)


def shifted(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(x, (WIDTH,)), 1 + scale)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.blocks, self.last = nn.ModuleList([Block(), Block()]), nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x: Tensor, text: Tensor, t: Tensor, t_text: Tensor | None = None) -> Tensor:
        """t (B,), or (B, L) with one for every token, and that of text (B,) beside it."""
        vec = self.embedded(t)
        vec_text = vec if t_text is None else self.embedded(t_text)
        for block in self.blocks:
            x, text = block(x, text, vec, vec_text)
        shift, scale = self.last(F.silu(vec)).chunk(2, dim=-1)
        return shifted(x, *((shift, scale) if vec.ndim == 3 else (shift[:, None], scale[:, None])))

    def embedded(self, t: Tensor) -> Tensor:
        angles = t[..., None].float() * torch.linspace(0.01, 1, WIDTH // 2)
        return self.embed(torch.cat([angles.cos(), angles.sin()], dim=-1))

    def texts(self) -> Iterator[nn.Module]:
        return (block.text for block in self.blocks)


def randomised(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
        parameter.data *= 0.2 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
    return network.eval().requires_grad_(False)


@contextmanager
def text_plain(modules: Iterator[nn.Module]) -> Iterator[None]:
    """While it lasts, modules of text alone are given the reference row."""

    def plain(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return tuple(map(reference, args)), {key: reference(value) for key, value in kwargs.items()}

    with hooked(module.register_forward_pre_hook(plain, with_kwargs=True) for module in modules):
        yield


def timesteps(rows: int = ROWS) -> Tensor:
    """(rows, B); the reference of each picture first."""
    return torch.linspace(90, 5, rows)[:, None] - torch.tensor([0.0, 1.5])


@pytest.mark.parametrize("rows", [2, 20])
def test_a_plain_network(rows: int) -> None:
    network, every = randomised(Network()), timesteps(rows)
    x, text, index = random(BATCH, TOKENS, WIDTH), random(BATCH, TEXT, WIDTH, seed=1), pixels(rows=rows)
    own = every[index.flatten(1), torch.arange(BATCH)[:, None]]
    expected = network(x, text, own, every[0])
    with text_plain(network.texts()):
        ours = network(x, text, TimestepRows.of(every, Layout(index, (1, 1), BATCH)))
        level = network(x, text, TimestepRows.of(every[:1].repeat(3, 1), Layout(index % 3, (1, 1), BATCH)))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(level, network(x, text, every[0]), rtol=1e-5, atol=1e-5)
    assert (ours - level).abs().max() > 0.05


def test_compiled_in_one_graph() -> None:
    """Whole, without a break; another number of timesteps compiles it at most once more."""
    network, graphs = randomised(Network()), 0

    def backend(graph: torch.fx.GraphModule, examples: list) -> Callable:
        nonlocal graphs
        graphs += 1
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(network, backend=backend, fullgraph=True)
    x, text = random(BATCH, TOKENS, WIDTH), random(BATCH, TEXT, WIDTH, seed=1)
    with text_plain(network.texts()):
        for rows in (4, 7, 9, 12):
            given = lambda: TimestepRows.of(timesteps(rows), Layout(pixels(rows=rows), (1, 1), BATCH))  # noqa: B023, E731
            torch.testing.assert_close(compiled(x, text, given()), network(x, text, given()), rtol=1e-5, atol=1e-5)
    assert graphs <= 2


@pytest.mark.parametrize(
    "method",
    [
        lambda rows: rows.unflatten(1, (2, -1)),
        lambda rows: rows.split(2, dim=1)[1],
        lambda rows: rows.chunk(2, dim=1)[1],
        lambda rows: rows.reshape(1, 2, -1),
        lambda rows: 1 - rows,
        lambda rows: 2**rows,
    ],
)
def test_methods_keep_every_row_where_they_are_compiled(method: Callable) -> None:
    """PyTorch writes some of its methods in Python, and torch.compile looks into those."""
    torch.compiler.reset()
    rows = TimestepRows.of(random(4, 1, 6), Layout(pixels(rows=4), (1, 1), BATCH))
    assert torch.equal(torch.compile(method, backend="eager")(rows).every, method(rows).every)


# --- diffusers' transformers -----------------------------------------------------------------------------------------------


def exchanged(network: nn.Module, inputs: dict[str, Any], every: Tensor, index: Tensor, opens: bool) -> Tensor:
    """The exact reference, see the top of this file. The output is the tokens, or the pixels of those."""
    copies = every.shape[0]

    def chosen(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim != 3 or value.shape[0] != copies * BATCH:
            return value
        apart, length = value.view(copies, BATCH, *value.shape[1:]), value.shape[1]
        if length < TOKENS:
            return torch.cat([apart[0]] * copies)
        row = F.pad(index.flatten(1), (0, length - TOKENS) if opens else (length - TOKENS, 0))
        return torch.cat([apart[row, torch.arange(BATCH)[:, None], torch.arange(length)]] * copies)

    def before(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return tuple(map(chosen, args)), {key: chosen(value) for key, value in kwargs.items()}

    layers = [module for name, module in network.named_modules() if name]
    with hooked(layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers):
        given = {k: torch.cat([v] * copies) if v.shape[0] == BATCH else v for k, v in inputs.items()}
        output = network(**given, timestep=every.flatten(), return_dict=False)[0]
    apart = output.view(copies, BATCH, *output.shape[1:])
    if output.ndim == 3:
        return apart[index.flatten(1), torch.arange(BATCH)[:, None], torch.arange(TOKENS)]
    row = index.repeat_interleave(2, 1).repeat_interleave(2, 2)
    return sum((row == copy)[:, None] * apart[copy] for copy in range(copies))


def flux() -> tuple[nn.Module, dict[str, Any], int]:
    from diffusers import FluxTransformer2DModel

    network = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=32, num_attention_heads=2,
        joint_attention_dim=40, pooled_projection_dim=24, axes_dims_rope=(8, 12, 12),
    )  # fmt: skip
    places = torch.stack(torch.meshgrid(torch.arange(1), *map(torch.arange, GRID), indexing="ij"), dim=-1).view(-1, 3)
    inputs = {
        "hidden_states": random(BATCH, TOKENS, 16), "encoder_hidden_states": random(BATCH, TEXT, 40, seed=1),
        "pooled_projections": random(BATCH, 24, seed=2), "img_ids": places.float(), "txt_ids": torch.zeros(TEXT, 3),
    }  # fmt: skip
    return network, inputs, 1


def sd3() -> tuple[nn.Module, dict[str, Any], int]:
    from diffusers import SD3Transformer2DModel

    network = SD3Transformer2DModel(
        sample_size=32, patch_size=2, in_channels=16, num_layers=3, attention_head_dim=32, num_attention_heads=2,
        joint_attention_dim=40, caption_projection_dim=64, pooled_projection_dim=24, out_channels=16, pos_embed_max_size=32,
    )  # fmt: skip
    inputs = {
        "hidden_states": random(BATCH, 16, 2 * GRID[0], 2 * GRID[1]), "encoder_hidden_states": random(BATCH, TEXT, 40, seed=1),
        "pooled_projections": random(BATCH, 24, seed=2),
    }  # fmt: skip
    return network, inputs, 2


@pytest.mark.parametrize("make", [flux, sd3])
@pytest.mark.parametrize("rows", [2, 20])
def test_transformers_of_diffusers(make: Callable[[], tuple[nn.Module, dict[str, Any], int]], rows: int) -> None:
    network, inputs, patch = make()
    randomised(network)
    every, index = timesteps(rows) / 100, pixels(rows=rows)
    texts = [module for name, module in network.named_modules() if name.endswith("norm1_context")]
    with torch.no_grad():
        expected = exchanged(network, inputs, every, index, opens=False)
        with text_plain(iter(texts)):
            places = Layout(pixels(patch, rows), (patch, patch), BATCH)
            ours = network(**inputs, timestep=TimestepRows.of(every, places), return_dict=False)[0]
        level = network(**inputs, timestep=every[0], return_dict=False)[0]
    assert len(texts) >= 2 and type(ours) is Tensor
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    assert (ours - level).abs().max() > 0.05
