"""What a screen is sent of a run: small, seldom, and true."""

from __future__ import annotations

import pytest
import torch

from asyndm_core.attention import Attention
from asyndm_core.live import FRAMES, LARGEST, LEVEL, Frame, Live, progress_palette
from asyndm_core.pictures import progress_map
from asyndm_core.run import Snapshot


def snapshot(step: int = 0, height: int = 6, width: int = 4, batch: int = 2, words: int = 2, seen: bool = True) -> Snapshot:
    """A step of some run: the first region owns the left column, and is one step behind."""
    x = torch.randn(batch, 4, height, width, generator=torch.Generator().manual_seed(step))
    owner = torch.full((batch, height, width), -1)
    owner[..., 0] = 1
    progress = torch.full((batch, height, width), float(step))
    progress[..., 0] -= 1
    shares = torch.rand(batch, words, height // 2, width // 2) / 77
    attention = Attention(shares, torch.ones(1, words, 1, 1)) if seen else None
    return Snapshot(step, x, x, None, progress, owner, attention)


def to_rgb(latents: torch.Tensor) -> torch.Tensor:
    """Three of the latents' channels as a picture."""
    return latents[:3].movedim(0, -1).sigmoid()


def maps(frame: Frame) -> dict[str, torch.Tensor]:
    """The maps of a frame, in their shapes."""
    sizes = [int(torch.tensor(shape).prod()) for shape in frame.planes.values()]
    parts = frame.data.split(sizes)
    return {name: part.view(shape) for (name, shape), part in zip(frame.planes.items(), parts, strict=True)}


class Screen:
    """Keeps what is sent, and when, by a clock that a test turns."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sent: list[tuple[float, list[Frame]]] = []

    def send(self, frames: list[Frame]) -> None:
        """Take in some frames."""
        self.sent.append((self.now, frames))

    def run(self, steps: int, seconds: float, **sizes: int) -> list[Frame]:
        """A run of ``steps`` steps that take ``seconds`` each; all its frames."""
        with Live(steps, self.send, to_rgb, clock=lambda: self.now) as live:
            for step in range(steps):
                self.now += seconds
                live(snapshot(step, **sizes))
        return [frame for _, frames in self.sent for frame in frames]


def test_a_frame_tells_the_first_picture_of_the_batch() -> None:
    taken = snapshot(5)
    (frame,) = [f for f in _frames_of(taken, steps=20) if f.step == 5]
    told = maps(frame)
    assert torch.equal(told["owner"].long() - 1, taken.owner[0])
    assert (told["image"].float() / 255 - to_rgb(taken.denoised[0])).abs().max() < 0.003
    behind = (LEVEL - told["progress"].float()) / (LEVEL - 1) * 20 / 4
    assert (behind - (5 - taken.progress[0])).abs().max() < 0.03
    heat, seen = told["heat"].float(), taken.attention.shares[0]
    assert heat.amin(dim=(1, 2)).tolist() == [0, 0] and heat.amax(dim=(1, 2)).tolist() == [255, 255]
    assert torch.equal(heat.flatten(1).argsort(), seen.flatten(1).argsort())


def _frames_of(taken: Snapshot, steps: int) -> list[Frame]:
    screen = Screen()
    with Live(steps, screen.send, to_rgb) as live:
        live(taken)
    return [frame for _, frames in screen.sent for frame in frames]


def test_without_attention_or_preview_the_rest_is_told() -> None:
    sent: list[Frame] = []
    with Live(4, sent.extend) as live:
        live(snapshot(seen=False))
    assert list(maps(sent[0])) == ["owner", "progress"]


def test_maps_are_small_however_large_the_latents() -> None:
    for height, width in ((64, 300), (129, 128), (512, 512), (1, 1000)):
        frames = Screen().run(2, 1.0, height=height, width=width, seen=height > 1)
        for frame in frames:
            for name, shape in frame.planes.items():
                sides = shape[-2:] if name == "heat" else shape[:2]
                assert max(sides) <= LARGEST, (name, shape)
            assert frame.data.dtype == torch.uint8 and frame.data.numel() <= (3 + 1 + 1 + 2) * LARGEST**2


@pytest.mark.parametrize("seconds", [0.001, 0.01, 0.05, 0.11, 0.13, 1.0])
def test_at_most_ten_messages_in_any_second(seconds: float) -> None:
    screen = Screen()
    screen.run(200, seconds)
    times = [time for time, _ in screen.sent]
    assert max(sum(start <= time < start + 1 for time in times) for start in times) <= 10
    assert len(times) >= min(200 * seconds, 40) - 1


def test_all_steps_of_a_short_run_arrive_and_a_long_one_is_thinned() -> None:
    assert [frame.step for frame in Screen().run(20, 0.01)] == list(range(20))
    steps = [frame.step for frame in Screen().run(1000, 0.01)]
    assert len(steps) == FRAMES and (steps[0], steps[-1]) == (0, 999) and steps == sorted(steps)


def test_after_an_error_nothing_more_is_sent() -> None:
    screen = Screen()
    with pytest.raises(RuntimeError), Live(9, screen.send, clock=lambda: 0.0) as live:
        for step in range(3):
            live(snapshot(step))
        raise RuntimeError
    assert [frame.step for _, frames in screen.sent for frame in frames] == [0]


def test_the_palette_is_that_of_the_progress_map() -> None:
    progress = torch.linspace(0, 19, 40)[None]
    drawn = progress_map(progress, 10, 20, 1, 40)
    lead = ((progress - 10) / 5).clamp(-1, 1)
    ours = progress_palette()[(lead * (LEVEL - 1) + LEVEL).round().long()]
    assert (ours - drawn).abs().max() < 0.02
