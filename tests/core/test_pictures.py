"""Pictures show what they say, and the record of a run keeps what it should, and no more."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asyndm_core.attention import Attention
from asyndm_core.pictures import (
    PAPER,
    heat_map,
    one_hot,
    overlay,
    palette,
    plain_clock,
    progress_line,
    progress_map,
    schedule_plot,
    stack,
    timeline,
)
from asyndm_core.record import Frame, RunRecord, chosen_steps
from asyndm_core.regions import Region
from asyndm_core.run import Snapshot


def luminance(colour: Tensor) -> float:
    """WCAG's relative luminance of an sRGB colour (3,)."""
    linear = torch.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    return (linear @ torch.tensor([0.2126, 0.7152, 0.0722])).item()


def test_palette_reads_on_white_and_on_black() -> None:
    """The eight colours have a contrast of at least 2.5 to both, are far from each other, and keep their places."""
    colours = palette(8)
    for colour in colours:
        assert 1.05 / (luminance(colour) + 0.05) > 2.5
        assert (luminance(colour) + 0.05) / 0.05 > 2.5
    assert min((a - b).norm().item() for a, b in combinations(colours, 2)) > 0.2
    many = palette(24)
    assert torch.equal(many[:8], colours)
    assert min((a - b).norm().item() for a, b in combinations(many, 2)) > 0.1
    assert palette(0).shape == (0, 3)


def test_heat_map_goes_from_black_over_the_colour_to_white() -> None:
    """Brightness rises with the value, and the middle has the region's hue."""
    colour = palette(2)[1]
    image = heat_map(torch.linspace(0, 1, 32).expand(4, 32), colour, 8, 64)
    assert image.shape == (8, 64, 3)
    assert (image.mean(dim=-1).diff(dim=1) >= -1e-6).all()
    assert image[:, 0].max() < 0.1
    assert image[:, -1].min() > 0.75
    torch.testing.assert_close(image[4, 31:33].mean(dim=0), 0.85 * colour, rtol=0, atol=0.05)


def test_overlay_tints_regions_and_leaves_their_shape() -> None:
    """A region's inside is mixed with its colour as opacity says, its edge is the colour itself."""
    image, colours = torch.full((40, 60, 3), 0.5), palette(2)
    owner = torch.full((4, 6), -1)
    owner[1:3, 1:5] = 0
    painted = overlay(image, one_hot(owner, 2), colours, 0.4)
    assert painted.shape == (40, 60, 3)
    torch.testing.assert_close(painted[20, 30], torch.lerp(image[0, 0], colours[0], 0.4))
    assert torch.equal(painted[10, 30], colours[0])
    assert (painted[2, 2] > 0.5).all()
    assert torch.equal(painted[0], painted[-1])
    untouched = overlay(image, one_hot(owner, 2), colours, 0.0)
    assert torch.equal(untouched[20, 30], image[0, 0])


def test_overlay_draws_no_edge_at_the_border_of_the_picture() -> None:
    """A region of all pixels is a plain tint."""
    painted = overlay(torch.zeros(20, 20, 3), torch.ones(1, 2, 2), palette(1), 0.5)
    assert torch.equal(painted, painted[:1, :1].expand_as(painted))


def test_progress_map_shows_lag_and_lead() -> None:
    """Level is pale, behind is warm and the darker the later, before is green; the scale is a quarter of the run."""
    progress = torch.tensor([[10.0, 9.0, 7.5, 5.0, 0.0, 12.0]])
    level, little, half, full, beyond, lead = progress_map(progress, 10, 20, 1, 6)[0]
    assert level.min() > 0.9
    assert level.mean() > little.mean() > half.mean() > full.mean()
    assert torch.equal(full, beyond)
    assert little[0] > little[2] + 0.1
    assert lead[1] > lead[0]


@pytest.mark.parametrize("paper", [False, True])
@pytest.mark.parametrize("steps", [2, 7, 20, 50])
def test_plain_clock_needs_no_model(steps: int, paper: bool) -> None:
    """Its lines begin and end with the run; the background's is straight; regions lag; the paper's lag at once."""
    clock = plain_clock(steps, paper)
    straight = torch.arange(steps + 1).float()
    torch.testing.assert_close(progress_line(clock, "linear", 0.0), straight, rtol=0, atol=1e-3)
    line = progress_line(clock, "quadratic", 0.7)
    assert line.shape == (steps + 1,)
    assert (line <= straight + 1e-3).all()
    torch.testing.assert_close(line[-2:], straight[-2:], rtol=0, atol=1e-3)
    assert (line[0] < -0.01) == paper


def test_schedule_plot_draws_each_region_above_the_background() -> None:
    """In the middle of the run: the region's colour where its line is, the background's ink on the straight line."""
    regions, colours = [Region("a", "quadratic", 0.8), Region("b", "exponential", 0.4)], palette(2)
    height, width, steps = 240, 360, 20
    plot = schedule_plot(plain_clock(steps), regions, colours, height, width)
    assert plot.shape == (height, width, 3)
    assert plot.min() >= 0
    assert plot.max() <= 1
    margin = 12
    column = margin + (width - 2 * margin) // 2
    rows = []
    for region, colour in zip(regions, colours, strict=True):
        left = 1 - progress_line(plain_clock(steps), region.curve, region.strength)[steps // 2].item() / steps
        row = round(margin + (1 - left) * (height - 2 * margin) - 0.5)
        nearest = (plot[row - 2 : row + 3, column] - colour).norm(dim=-1).min()
        assert nearest < 0.05
        rows.append(row)
    assert rows[0] < rows[1] < height / 2
    torch.testing.assert_close(plot[height - 5, width // 3], torch.tensor(PAPER))


def test_regions_on_one_line_are_both_seen() -> None:
    """Targets mostly share strength and curve: the first is drawn wider under the second."""
    colours = palette(2)
    plot = schedule_plot(plain_clock(20), [Region("a", "quadratic", 0.7), Region("b", "quadratic", 0.7)], colours)
    for colour in colours:
        assert ((plot - colour).norm(dim=-1) < 0.02).sum() > 100


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 9), st.integers(0, 4), st.booleans())
def test_timeline_of_any_size(height: int, width: int, count: int, regions: int, previews: bool) -> None:
    """A column for each frame, a row more with previews; values are colours."""
    size = (2, height, width)
    frames = [Frame(n, torch.rand(size) * n, torch.randint(-1, max(regions, 0), size), None) for n in range(count)]
    images = [torch.rand(8, 8, 3) for _ in frames] if previews else None
    sheet = timeline(frames, 10, palette(regions), images, item=1, cell=32)
    cell_width = max(1, round(32 * width / height))
    rows = 2 + previews
    assert sheet.shape == (2 + rows * 32 + rows + 2, count * cell_width + (count - 1) + 2, 3)
    assert sheet.min() >= 0
    assert sheet.max() <= 1


def test_timeline_shows_the_frames() -> None:
    """Previews, then owners in their colours over them, then lag; the bar grows."""
    owner = torch.full((1, 4, 4), -1)
    owner[:, :2] = 0
    frames = [Frame(n, torch.full((1, 4, 4), float(n)), owner, None) for n in (0, 5, 9)]
    image = torch.full((4, 4, 3), 0.25)
    sheet = timeline(frames, 10, palette(1), [image] * 3, cell=64)
    gap, bar, cell = 2, 2, 64
    preview_top = gap + bar + gap
    torch.testing.assert_close(sheet[preview_top : preview_top + cell, gap : gap + cell], torch.full((cell, cell, 3), 0.25))
    owners_top = preview_top + cell + gap
    torch.testing.assert_close(sheet[owners_top + 10, gap + 10], torch.lerp(torch.full((3,), 0.25), palette(1)[0], 0.55))
    dark = [(sheet[gap, gap + n * (cell + gap) :][:cell].mean(dim=-1) < 0.5).sum().item() for n in range(3)]
    assert dark == [1, 36, 64]


def test_timeline_needs_a_frame() -> None:
    """A run that was stopped before its first step."""
    with pytest.raises(ValueError, match="stopped early"):
        timeline([], 10, palette(1))


def test_stack_keeps_what_it_is_given() -> None:
    """Images side by side with paper between and around."""
    a, b = torch.rand(3, 4, 3), torch.rand(3, 5, 3)
    sheet = stack([a, b], dim=1, gap=2, border=True)
    assert sheet.shape == (7, 15, 3)
    assert torch.equal(sheet[2:5, 2:6], a)
    assert torch.equal(sheet[2:5, 8:13], b)
    torch.testing.assert_close(sheet[3, 7], torch.tensor(PAPER))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 1000), st.integers(1, 12))
def test_chosen_steps(steps: int, count: int) -> None:
    """First and last, increasing, no more than asked for."""
    chosen = chosen_steps(steps, count)
    assert len(chosen) == min(steps, count)
    assert list(chosen) == sorted(set(chosen))
    assert chosen[0] == 0
    assert chosen[-1] == (steps - 1 if len(chosen) > 1 else 0)


def snapshot(step: int, attention: Tensor | None) -> Snapshot:
    """A step of some run on latents (2, 4, 6, 8)."""
    x, level = torch.randn(2, 4, 6, 8), torch.full((2, 6, 8), float(step))
    seen = None if attention is None else Attention(attention, torch.ones(1, attention.shape[1], 1, 1))
    return Snapshot(step, x, x + 1, level[:, None], level, level.long(), seen)


@pytest.mark.parametrize("previews", [False, True])
def test_record_keeps_a_few_frames_and_the_mean_attention(previews: bool) -> None:
    """However long the run: 8 frames with just what is needed, and one map for each word."""
    record, steps = RunRecord(100, previews=previews), 100
    maps = torch.rand(steps, 2, 3, 4, 5)
    for step in range(steps):
        record(snapshot(step, maps[step]))
    frames = record.frames()
    assert [f.step for f in frames] == [0, 14, 28, 42, 57, 71, 85, 99]
    assert all((f.progress == f.step).all() and (f.owner == f.step).all() for f in frames)
    assert all((f.denoised is not None) == previews for f in frames)
    torch.testing.assert_close(record.attention().shares, maps.mean(dim=0))


def test_masks_are_stretched_to_the_whole_range() -> None:
    """Each map from 0 to 1 at the size asked for; a flat one is 0; none where no word was watched."""
    record = RunRecord(2)
    attention = torch.rand(2, 3, 4, 5) * 1e-3 + 0.01
    attention[1, 2] = 0.02
    record(snapshot(0, attention))
    record(snapshot(1, attention))
    masks = record.masks(16, 20)
    assert masks.shape == (2, 3, 16, 20)
    varied = masks.flatten(2).flatten(0, 1)[:5]
    torch.testing.assert_close(varied.amin(dim=1), torch.zeros(5))
    torch.testing.assert_close(varied.amax(dim=1), torch.ones(5))
    assert (masks[1, 2] == 0).all()
    enlarged = torch.nn.functional.interpolate(attention, size=(16, 20), mode="bilinear")[0, 0]
    assert masks[0, 0].argmax() == enlarged.argmax()
    empty = RunRecord(1)
    empty(snapshot(0, None))
    assert empty.masks(16, 20) is None
    assert empty.attention() is None
