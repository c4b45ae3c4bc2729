"""Pictures of a run: regions in their colours, who lags behind, the schedule, the run as a sheet.

Tensors in, image tensors (H, W, 3) float32 in [0, 1] out, as ComfyUI's IMAGE without its batch axis. No text: a host
that has fonts adds its own captions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .clock import Clock, NoiseGrid, paper_clock, table_clock
from .record import SHOWN, Frame, shown_frames
from .regions import Region

PAPER = (0.98, 0.98, 0.97)
GRID = (0.89, 0.89, 0.88)
INK = (0.36, 0.38, 0.42)

COLOURS: tuple[tuple[int, int, int], ...] = (
    (232, 119, 34),
    (46, 134, 222),
    (214, 60, 138),
    (38, 166, 91),
    (142, 92, 217),
    (20, 170, 175),
    (208, 56, 48),
    (158, 148, 20),
)
"""One colour per region, in sRGB bytes; the same in every picture and on the canvas. Of middle lightness, so that they
read on white and on black."""

_LEVEL = (0.93, 0.93, 0.91)
_LAGS = ((0.99, 0.77, 0.35), (0.89, 0.35, 0.24), (0.42, 0.07, 0.38))
_LEADS = ((0.62, 0.85, 0.80), (0.16, 0.60, 0.60), (0.02, 0.31, 0.38))


def palette(count: int) -> Tensor:
    """One colour per region: (count, 3). After eight, the colours come again darker, then paler."""
    table = torch.tensor(COLOURS) / 255
    index = torch.arange(count)
    rounds = index // len(COLOURS)
    pale = (rounds % 2 == 0).float()[:, None].expand(-1, 3)
    return torch.lerp(table[index % len(COLOURS)], pale, 0.4 * (rounds > 0).float()[:, None])


def blank(height: int, width: int, colour: Sequence[float] = PAPER) -> Tensor:
    """An image (height, width, 3) of one colour."""
    return torch.tensor(colour, dtype=torch.float32).expand(height, width, 3).clone()


def resize(values: Tensor, height: int, width: int, smooth: bool = True) -> Tensor:
    """Maps (..., h, w) at (..., height, width): bilinear, or the nearest value if not ``smooth``."""
    flat = values.float().reshape(-1, 1, *values.shape[-2:])
    mode = {"mode": "bilinear", "antialias": True} if smooth else {"mode": "nearest-exact"}
    return F.interpolate(flat, size=(height, width), **mode).reshape(*values.shape[:-2], height, width)


def resize_image(image: Tensor, height: int, width: int, smooth: bool = True) -> Tensor:
    """An image (h, w, 3) at (height, width, 3)."""
    return resize(image.movedim(-1, 0), height, width, smooth).movedim(0, -1).clamp(0, 1)


def shown(maps: Tensor, dims: int) -> Tensor:
    """Maps of clips (..., T, h, w), ``dims`` 3, as one of a picture, (..., H, W): some frames, row by row. Maps of pictures,
    ``dims`` 2, as they are."""
    if dims == 2:
        return maps
    frames = shown_frames(maps, dims).unbind(-3)
    across = 2 if len(frames) == SHOWN else len(frames)
    rows = [torch.cat(frames[first : first + across], dim=-1) for first in range(0, len(frames), across)]
    return torch.cat(rows, dim=-2)


def shade(values: Tensor, stops: Sequence[Sequence[float]]) -> Tensor:
    """Values (h, w) in [0, 1] as colours (h, w, 3): evenly spaced ``stops``, straight lines between them."""
    table = torch.tensor([tuple(stop) for stop in stops], dtype=torch.float32)
    position = values.clamp(0, 1) * (len(stops) - 1)
    low = position.floor().clamp(max=len(stops) - 2).long()
    return torch.lerp(table[low], table[low + 1], (position - low)[..., None])


def heat_map(values: Tensor, colour: Tensor, height: int, width: int) -> Tensor:
    """A map (h, w) in [0, 1] as an image (height, width, 3): near black, the region's ``colour`` (3,), near white."""
    stops = (
        (0.05, 0.05, 0.07),
        tuple((0.85 * colour).tolist()),
        tuple(torch.lerp(colour, torch.ones(3), 0.8).tolist()),
    )
    return shade(resize(values, height, width), stops)


def one_hot(owner: Tensor, count: int) -> Tensor:
    """Owners (h, w), -1 for nobody, as weights (count, h, w) of 0 and 1."""
    return (owner == torch.arange(count).view(-1, 1, 1)).float()


def overlay(image: Tensor, weights: Tensor, colours: Tensor, opacity: float = 0.55) -> Tensor:
    """Regions in their colours over an image (H, W, 3), each with its outline.

    weights: (R, h, w) in [0, 1], any size; owners come through ``one_hot``. colours: (R, 3). opacity in [0, 1] of the
    fill. Where nobody is, the image is a little paler, so that regions stand out.
    """
    height, width = image.shape[:2]
    result = torch.lerp(image, image.mean(dim=-1, keepdim=True).expand_as(image), 0.6 * opacity)
    result = torch.lerp(result, torch.ones_like(result), 0.25 * opacity)
    line = max(1, round(min(height, width) / 80))
    for weight, colour in zip(resize(weights, height, width, smooth=False), colours, strict=True):
        tinted = torch.lerp(image, colour.expand_as(image), opacity)
        result = torch.lerp(result, tinted, weight[..., None])
        result = torch.where(_outline(weight, line)[..., None], colour, result)
    return result


def _outline(weight: Tensor, line: int) -> Tensor:
    """The pixels (H, W) within ``line`` of the edge of the region weight >= 0.5, inside it. The border is no edge."""
    inside = (weight >= 0.5).float()
    eroded = -F.max_pool2d(-inside[None, None], 2 * line + 1, stride=1, padding=line)[0, 0]
    return (inside - eroded) > 0.5


def lag(progress: Tensor, step: int, steps: int) -> Tensor:
    """How far progress q, in steps, is behind the background (q = step): 1 is a quarter of the run, the most that a
    quadratic lags. Below 0: ahead."""
    return (step - progress) / (steps / 4)


def shade_lag(lags: Tensor) -> Tensor:
    """Lags (h, w) as colours (h, w, 3): level is pale grey, behind is yellow, red, purple, ahead is green."""
    behind = shade(lags, (_LEVEL, *_LAGS))
    return torch.where((lags < 0)[..., None], shade(-lags, (_LEVEL, *_LEADS)), behind)


def progress_map(progress: Tensor, step: int, steps: int, height: int, width: int) -> Tensor:
    """Who lags and who leads at ``step``: progress q (h, w) in steps as an image (height, width, 3).

    Level with the background (q = step) is pale grey; behind it yellow, red, purple; before it (a region that was given
    a shorter denoise) green. The scale is fixed, see ``lag``.
    """
    return shade_lag(lag(resize(progress, height, width, smooth=False), step, steps))


def plain_clock(steps: int, paper: bool = False) -> Clock:
    """A clock of ``steps`` even steps without a model, for plots; ``paper`` as the paper preset counts."""
    grid = NoiseGrid(torch.linspace(0, 1, 1000))
    positions = torch.linspace(1000 - 1000 / steps, 0, steps)
    table = torch.cat([grid.at(positions), torch.zeros(1)])
    return (paper_clock if paper else table_clock)(table, torch.cat([positions, torch.zeros(1)]), grid)


def progress_line(clock: Clock, curve: str, strength: float, denoise: float = 1.0) -> Tensor:
    """The progress (N + 1,) at every step of a pixel that follows one curve all the time, from its own denoise on."""
    if denoise == 0:
        return torch.full((clock.steps + 1,), float(clock.steps))
    state = clock.start(()) if denoise == 1 else clock.start_at(torch.tensor(denoise, device=clock.sigmas.device))
    line = []
    for step in range(clock.anchor, clock.steps):
        if step >= 0:
            line.append(clock.progress(state, step))
        state = clock.advance(state, step, curve, strength)
    return torch.stack([*line, clock.progress(state, clock.steps)]).cpu()


def schedule_plot(clock: Clock, regions: Sequence[Region], colours: Tensor, height: int = 240, width: int = 360) -> Tensor:
    """The schedules of ``regions`` in their ``colours`` (R, 3), over the background's straight line.

    To the right: steps of the run. Upwards: the share of the schedule that is still to go, as in the paper's figures,
    so a region that stays noisy longer arches above the background. Returns (height, width, 3).
    """
    margin = max(4, round(min(height, width) / 20))
    thick = max(1.5, min(height, width) / 90)
    rows = torch.arange(height)[:, None] + 0.5
    columns = torch.arange(width)[None] + 0.5
    across = (columns - margin) / (width - 2 * margin)
    frame = ((across >= 0) & (across <= 1)).float()

    def height_of(line: Tensor) -> Tensor:
        """The rows (1, W) of a line (N + 1,) of progress."""
        return margin + (1 - _left_at(line, across.clamp(0, 1))) * (height - 2 * margin)

    def stroke(line: Tensor, wide: float) -> Tensor:
        """Coverage of a line given by its rows (1, W)."""
        slope = torch.gradient(line[0])[0]
        return _stroke((rows - line).abs() / (1 + slope**2).sqrt(), wide) * frame

    image = blank(height, width)
    for tick in torch.linspace(0, 1, 5).tolist():
        upright = _stroke((columns - margin - tick * (width - 2 * margin)).abs(), 1.0)
        level = _stroke((rows - margin - tick * (height - 2 * margin)).abs(), 1.0) * frame
        image = _paint(image, upright * ((rows >= margin) & (rows <= height - margin)), GRID)
        image = _paint(image, level, GRID)
    background = height_of(progress_line(clock, "linear", 0.0))
    lines = [height_of(progress_line(clock, region.curve, region.strength, region.denoise)) for region in regions]
    for line, colour in zip(lines, colours, strict=True):
        wedge = (rows - line + 0.5).clamp(0, 1) * (background - rows + 0.5).clamp(0, 1) * frame
        image = _paint(image, 0.1 * wedge, colour.tolist())
    image = _paint(image, stroke(background, 0.8 * thick), INK)
    schedules = [(region.curve, region.strength) for region in regions]
    for index, (line, colour) in enumerate(zip(lines, colours, strict=True)):
        # Of regions on the same line, the earlier is drawn wider, so that each of them is seen.
        same = schedules[index + 1 :].count(schedules[index])
        image = _paint(image, stroke(line, thick * (1 + same)), colour.tolist())
    return image


def _left_at(progress: Tensor, across: Tensor) -> Tensor:
    """What is left of the schedule at shares of the run (1, W), in [0, 1], of a line of progress (N + 1,)."""
    steps = progress.shape[0] - 1
    position = across * steps
    low = position.floor().clamp(max=steps - 1).long()
    return 1 - torch.lerp(progress[low], progress[low + 1], position - low) / steps


def _stroke(distance: Tensor, thick: float) -> Tensor:
    """Coverage in [0, 1] of a stroke ``thick`` pixels wide at a distance from its centre."""
    return (thick / 2 + 0.5 - distance).clamp(0, 1)


def _paint(image: Tensor, coverage: Tensor, colour: Sequence[float]) -> Tensor:
    return torch.lerp(image, torch.tensor(tuple(colour)).expand_as(image), coverage.float()[..., None])


def timeline(
    frames: Sequence[Frame],
    steps: int,
    colours: Tensor,
    images: Sequence[Tensor] | None = None,
    item: int = 0,
    cell: int = 160,
) -> Tensor:
    """The run as a sheet (H, W, 3): a column for each frame, with a bar on top that fills as the run goes on.

    Rows: the picture as the model sees it (``images``, one (h, w, 3) for each frame, if given), regions in their
    ``colours`` (R, 3) over it, and who lags. item: which image of the batch; of a clip some of its frames are shown, see
    ``shown``, and images are of these. cell: height of a cell in pixels.
    Raises ValueError if there is no frame.
    """
    if not frames:
        raise ValueError("The record of the run holds no step, so there is nothing to show: the run was stopped early.")
    dims = frames[0].progress.ndim - 1
    latent_height, latent_width = shown(frames[0].progress[item], dims).shape
    size = (cell, max(1, round(cell * latent_width / latent_height)))
    columns = []
    for number, frame in enumerate(frames):
        bar = blank(max(2, cell // 40), size[1], GRID)
        bar[:, : max(1, round(size[1] * frame.step / max(steps - 1, 1)))] = torch.tensor(INK)
        picture = blank(*size) if images is None else resize_image(images[number], *size)
        regions = overlay(picture, one_hot(shown(frame.owner[item], dims), len(colours)), colours)
        lag = progress_map(shown(frame.progress[item], dims), frame.step, steps, *size)
        columns.append(stack([bar, *([] if images is None else [picture]), regions, lag], dim=0, gap=cell // 32))
    return stack(columns, dim=1, gap=cell // 32, border=True)


def stack(images: Sequence[Tensor], dim: int, gap: int, border: bool = False) -> Tensor:
    """Images of one height (dim 1) or width (dim 0) side by side, ``gap`` pixels of paper between, and around."""
    parts: list[Tensor] = []
    for image in images:
        height, width = image.shape[:2]
        if parts:
            parts.append(blank(gap, width) if dim == 0 else blank(height, gap))
        parts.append(image)
    sheet = torch.cat(parts, dim=dim)
    if not border:
        return sheet
    framed = blank(sheet.shape[0] + 2 * gap, sheet.shape[1] + 2 * gap)
    framed[gap : gap + sheet.shape[0], gap : gap + sheet.shape[1]] = sheet
    return framed
