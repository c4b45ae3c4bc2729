"""The demo, on one sheet: a thing taken out by its word, and one seed sampled three ways. python -m demo "a boat at night"

Most seeds hardly change. So that the sheet shows what AsynDM does, it takes of the first eight seeds the one that it changes
most, for better or worse, says so, and shows all eight.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, NoReturn

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from asyndm_core.attention import token_columns
from asyndm_core.curves import CURVES
from asyndm_core.pictures import (
    INK,
    PAPER,
    heat_map,
    palette,
    plain_clock,
    resize_image,
    schedule_plot,
    timeline,
)
from asyndm_core.regions import KNOWN_PIXELS, MODES, Regions, Target, TimestepMap, make_plan
from asyndm_core.words import prompt_words

from .config import FACTOR, MAX_TOKENS, TRANSFORMER_WEIGHTS, WEIGHTS
from .model import LOADERS, DemoModel, FlowModel
from .sample import (
    SAMPLER_NAMES,
    Inpaint,
    Result,
    Settings,
    check,
    choose_targets,
    decode,
    sample_demo,
    sample_plan,
    token_positions,
)
from .world import vocabulary

PROMPT = "a green boat on the sea under two moons"
REMOVED, LEFT = "moons", "a green boat on the sea"
"""What is taken out of the default prompt's picture, and the prompt that names only what is left."""
NEEDED = {"unet": [WEIGHTS], "transformer": [WEIGHTS, TRANSFORMER_WEIGHTS]}
"""The files that the demo models need."""
SEEDS = range(1, 9)
"""Looked at where no seed is given."""
HOLE, GROW = 0.4, 2
"""A pixel is drawn anew where the model saw the removed word at least so much (of 1), and so many latent pixels around."""
CAPTIONS = {
    "synchronous": "stock: one clock for all pixels",
    "concave": "all pixels on the slower clock",
    "asynchronous": "the words wait for their context",
}

_MARGIN, _GAP = 36, 16
_PICTURE, _WORD, _CELL, _SMALL = 352, 168, 131, 122
_PAPER = tuple(round(255 * c) for c in PAPER)
_INK = tuple(round(160 * c) for c in INK)
_PALE = tuple(round(255 * c) for c in INK)


class _Parser(argparse.ArgumentParser):
    """Ends with one line and exit code 2 where a flag is wrong."""

    def error(self, message: str) -> NoReturn:
        """Replaces the usage text that argparse would print."""
        sys.stderr.write(f"error: {message} (--help lists all flags)\n")
        sys.exit(2)


def read_flags(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = _Parser(prog="python -m demo", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("prompt", nargs="?", default=PROMPT, help="what the picture shows")
    parser.add_argument("--targets", default="", help='words to follow, "boat, moons:0.4"; empty: chosen automatically')
    parser.add_argument("--network", choices=list(NEEDED), default="unet", help="which of the demo models")
    parser.add_argument("--seed", type=int, help="the same for all pictures; none: of the first eight the most changed")
    parser.add_argument("--remove", default="", metavar="WORD", help="a thing to take out of the picture; see --left")
    parser.add_argument("--left", default="", metavar="PROMPT", help="the prompt that names only what is left then")
    parser.add_argument("--steps", type=int, default=20, help="steps of each run")
    parser.add_argument("--strength", type=float, default=0.7, help="how long words stay noisy, from 0 to 1")
    parser.add_argument("--curve", choices=list(CURVES), default="quadratic", help="how their lag comes and goes")
    parser.add_argument("--cfg", type=float, default=Settings.cfg, help="guidance scale")
    parser.add_argument("--sampler", default=Settings.sampler, help=f"one of {', '.join(SAMPLER_NAMES)}")
    parser.add_argument("--output", type=Path, default=Path("asyndm_demo.png"), help="the sheet, a PNG file")
    return parser.parse_args(arguments)


class Survey(NamedTuple):
    """The first seeds, sampled both ways.

    ordinary, asynchronous: pictures (B, H, W, 3). changes: their mean difference (B,), in 1/255.
    """

    seeds: Sequence[int]
    ordinary: Tensor
    asynchronous: Tensor
    changes: Tensor

    @property
    def chosen(self) -> int:
        """The seed whose picture changes most."""
        return self.seeds[int(self.changes.argmax())]


class Removal(NamedTuple):
    """A word's thing taken out of a picture.

    image: (H, W, 3) before. seen: (H, W), where the model saw the word. hole: (H, W), what is drawn anew. emptied: the pictures
    (H, W, 3) afterwards, by how the model was shown the rest.
    """

    word: str
    image: Tensor
    seen: Tensor
    hole: Tensor
    emptied: dict[str, Tensor]


def run(flags: argparse.Namespace) -> str:
    """Samples, writes the sheet, and says what was done. Raises ValueError or OSError."""
    settings = Settings(flags.steps, flags.cfg, flags.sampler)
    targets = choose_targets(flags.prompt, flags.targets)
    asked = TimestepMap(Regions(targets), flags.curve, flags.strength)
    check(settings, asked)
    if flags.output.suffix.lower() != ".png":
        raise ValueError(f"The output is {flags.output}: name a file that ends with .png.")
    if bool(flags.remove) != bool(flags.left):
        raise ValueError("To take a thing out, give both --remove (its word) and --left (the prompt without it).")
    word, left = (REMOVED, LEFT) if flags.prompt == PROMPT and not flags.remove else (flags.remove, flags.left)
    model = load_model(flags.network)
    token_positions(model, flags.prompt, [*[target.text for target in targets], *([word] if word else [])])
    begun = time.perf_counter()
    survey = None if flags.seed is not None else look_at(model, flags.prompt, asked, SEEDS, settings)
    seed = flags.seed if survey is None else survey.chosen
    results = {
        mode: sample_demo(model, flags.prompt, replace(asked, mode=mode), [seed], settings)
        for mode in sorted(MODES, key=list(CAPTIONS).index)
    }
    removal = remove(model, flags.prompt, word, left, seed, settings) if word else None
    seconds = time.perf_counter() - begun
    draw_sheet(model, flags, seed, targets, results, survey, removal).save(flags.output)
    count = len(results) + (0 if survey is None else 2 * len(SEEDS)) + (0 if removal is None else len(removal.emptied))
    chosen = "" if survey is None else f" Of seeds {SEEDS[0]} to {SEEDS[-1]}, {seed} changes most."
    return (
        f"{flags.output}: {count} pictures in {seconds:.1f} s.{chosen} "
        f"Words that waited: {', '.join(target.text for target in targets)}."
    )


def look_at(model: DemoModel | FlowModel, prompt: str, asked: TimestepMap, seeds: Sequence[int], settings: Settings) -> Survey:
    """Samples every seed both ways."""
    ordinary, asynchronous = (
        sample_demo(model, prompt, replace(asked, mode=mode), seeds, settings).images
        for mode in ("synchronous", "asynchronous")
    )
    return Survey(seeds, ordinary, asynchronous, 255 * (ordinary - asynchronous).abs().mean(dim=(1, 2, 3)))


def remove(model: DemoModel | FlowModel, prompt: str, word: str, left: str, seed: int, settings: Settings) -> Removal:
    """Draws the prompt, makes a hole where the model saw ``word``, and fills it by the prompt ``left``."""
    watched = TimestepMap(Regions((Target(word),)), strength=0.0)
    drawn = sample_demo(model, prompt, watched, [seed], settings)
    height, width = drawn.latents.shape[-2:]
    seen = drawn.record.masks(height, width)[:, :1]
    hole = F.max_pool2d((seen >= HOLE).float(), 2 * GROW + 1, 1, GROW)
    emptied = {}
    kept = choose_targets(left)[:1]
    columns = token_columns(token_positions(model, left, [target.text for target in kept]), MAX_TOKENS)
    for how in KNOWN_PIXELS:
        plan = make_plan(TimestepMap(Regions(kept), strength=0.0, known_pixels=how), height, width)
        inpaint = Inpaint(drawn.latents, hole)
        latents = sample_plan(model, [left], columns, plan, [seed + 1], settings, inpaint=inpaint)
        emptied[how] = decode(model, latents)[0]
    return Removal(word, drawn.images[0], seen[0, 0], hole[0, 0], emptied)


def load_model(network: str = "unet") -> DemoModel | FlowModel:
    """A demo model, see ``model.LOADERS``; FileNotFoundError where its weights are not there."""
    for weights in NEEDED[network]:
        if not weights.is_file():
            raise FileNotFoundError(
                f"The demo model's weights are missing: {weights}. Get the whole repository, with git clone."
            )  # fmt: skip
    return LOADERS[network]()


# --- the sheet -------------------------------------------------------------------------------------------------------


def to_pil(image: Tensor) -> Image.Image:
    """An image tensor (H, W, 3) in [0, 1] for Pillow."""
    return Image.fromarray((image.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())


class Sheet:
    """A page that is filled from the top down."""

    def __init__(self, width: int) -> None:
        self.page = Image.new("RGB", (width, 4000), _PAPER)
        self.pen = ImageDraw.Draw(self.page)
        self.top = _MARGIN

    def text(self, x: int, y: int, text: str, size: int = 15, colour: tuple[int, ...] = _INK) -> int:
        """Writes one line, cut where the page ends; returns the x where it stops."""
        font = ImageFont.load_default(size)
        room = self.page.width - _MARGIN - x
        while self.pen.textlength(text, font) > room and len(text) > 2:
            text = text[:-2] + "…"
        self.pen.text((x, y), text, fill=colour, font=font)
        return x + round(self.pen.textlength(text, font))

    def heading(self, title: str, explanation: str) -> None:
        """A section's title and what it shows."""
        end = self.text(_MARGIN, self.top, title, 18)
        self.text(end + 12, self.top + 3, explanation, 14, _PALE)
        self.top += 32

    def paste(self, x: int, y: int, image: Tensor) -> None:
        """Puts an image tensor (H, W, 3) at (x, y)."""
        self.page.paste(to_pil(image), (x, y))

    def done(self) -> Image.Image:
        """The page, cut below its last line."""
        return self.page.crop((0, 0, self.page.width, self.top + _MARGIN - _GAP))


def draw_sheet(
    model: DemoModel | FlowModel, flags: argparse.Namespace, seed: int, targets: Sequence[Target], results: dict[str, Result],
    survey: Survey | None, removal: Removal | None,
) -> Image.Image:  # fmt: skip
    """What is removed by its word, one seed three ways, all seeds, where the model looks for the words, and the run."""
    asynchronous = results["asynchronous"]
    colours = palette(len(targets))
    sheet = Sheet(2 * _MARGIN + 3 * _PICTURE + 2 * _GAP)
    _draw_title(sheet, flags, seed, targets, colours)
    if removal is not None:
        _draw_removal(sheet, removal, seed)
    _draw_pictures(sheet, results, seed, survey)
    if survey is not None:
        _draw_seeds(sheet, survey)
    _draw_words(sheet, asynchronous, targets, colours)
    _draw_run(sheet, model, asynchronous, colours)
    return sheet.done()


def _draw_removal(sheet: Sheet, removal: Removal, seed: int) -> None:
    """Five cells: the picture, where the word is, the hole, and what it is filled with in two ways."""
    sheet.heading(
        f"“{removal.word}” taken out by its word",
        f"seed {seed}; nothing is painted: the model's own attention says where it is (template asyndm_remove)",
    )
    size = (sheet.page.width - 2 * _MARGIN - 4 * _GAP) // 5
    hole = removal.hole[..., None].repeat_interleave(FACTOR, 0).repeat_interleave(FACTOR, 1)
    cells = {
        "the picture": removal.image,
        f"where it saw “{removal.word}”": heat_map(removal.seen, palette(1)[0], size, size),
        "what is drawn anew": torch.lerp(removal.image, torch.ones(3), 0.75 * hole),
        "the rest shown clean": removal.emptied["clean"],
        "… shown noised, as usual": removal.emptied["noised"],
    }
    for number, (caption, image) in enumerate(cells.items()):
        x = _MARGIN + number * (size + _GAP)
        sheet.paste(x, sheet.top, resize_image(image, size, size))
        sheet.text(x, sheet.top + size + 4, caption, 15)
    sheet.top += size + 24 + 2 * _GAP


def _draw_seeds(sheet: Sheet, survey: Survey) -> None:
    """Every seed that was looked at: above as always, below asynchronous, and how much it changed."""
    low, middle, high = (survey.changes.quantile(share).item() for share in (0.0, 0.5, 1.0))
    sheet.heading(
        f"seeds {survey.seeds[0]} to {survey.seeds[-1]}, none left out",
        f"above synchronous, below asynchronous; mean difference of 255: {low:.1f} to {high:.1f}, median {middle:.1f}",
    )
    for number, seed in enumerate(survey.seeds):
        x = _MARGIN + number * (_SMALL + _GAP)
        if seed == survey.chosen:
            frame = (x - 4, sheet.top - 4, x + _SMALL + 3, sheet.top + 2 * _SMALL + 7)
            sheet.pen.rectangle(frame, outline=_INK, width=2)
        for row, images in enumerate((survey.ordinary, survey.asynchronous)):
            sheet.paste(x, sheet.top + row * (_SMALL + 4), resize_image(images[number], _SMALL, _SMALL))
        sheet.text(x, sheet.top + 2 * _SMALL + 10, f"seed {seed}: {survey.changes[number]:.1f}", 14, _PALE)
    sheet.top += 2 * _SMALL + 30 + 2 * _GAP


def _draw_title(sheet: Sheet, flags: argparse.Namespace, seed: int, targets: Sequence[Target], colours: Tensor) -> None:
    sheet.text(_MARGIN, sheet.top, f"“{flags.prompt}”", 28)
    sheet.top += 44
    x = sheet.text(_MARGIN, sheet.top, "words that wait:", 15, _PALE) + 12
    for target, colour in zip(targets, colours, strict=True):
        sheet.pen.rounded_rectangle((x, sheet.top + 2, x + 16, sheet.top + 18), 4, tuple((colour * 255).int().tolist()))
        strength = flags.strength if target.strength is None else target.strength
        x = sheet.text(x + 22, sheet.top, f"{target.text} ({strength:g})") + 20
    details = f"seed {seed} · {flags.steps} steps · {flags.sampler} · cfg {flags.cfg:g} · {flags.curve}"
    room = sheet.page.width - _MARGIN - round(sheet.pen.textlength(details, ImageFont.load_default(15))) - 1
    sheet.text(max(x, room), sheet.top, details, 15, _PALE)
    sheet.top += 38


def _draw_pictures(sheet: Sheet, results: dict[str, Result], seed: int, survey: Survey | None) -> None:
    how = "as it was asked for"
    if survey is not None:
        how = f"chosen: of seeds {survey.seeds[0]} to {survey.seeds[-1]} the one that changes most, for better or worse"
    sheet.heading(f"seed {seed}, three ways", how)
    for number, (mode, result) in enumerate(results.items()):
        x = _MARGIN + number * (_PICTURE + _GAP)
        end = sheet.text(x, sheet.top, mode, 18)
        sheet.text(end + 10, sheet.top + 3, CAPTIONS[mode], 14, _PALE)
        sheet.paste(x, sheet.top + 28, resize_image(result.images[0], _PICTURE, _PICTURE))
    sheet.top += _PICTURE + 28 + 2 * _GAP


def _draw_words(sheet: Sheet, result: Result, targets: Sequence[Target], colours: Tensor) -> None:
    """A cell for each word, as many as there is room for, and the schedules to the right."""
    sheet.heading("where the model looks for each word", "mean over the run; to the right, how each word's noise falls")
    masks = result.record.masks(_WORD, _WORD)
    plot = 2 * _WORD
    room = (sheet.page.width - 2 * _MARGIN - plot) // (_WORD + _GAP)
    shown = [] if masks is None else list(zip(targets, colours, masks[0], strict=True))[:room]
    picture = resize_image(result.images[0], _WORD, _WORD)
    for number, (target, colour, mask) in enumerate(shown):
        x = _MARGIN + number * (_WORD + _GAP)
        glow = heat_map(mask, colour, _WORD, _WORD)
        grey = picture.mean(dim=-1, keepdim=True)
        sheet.paste(x, sheet.top, torch.lerp(0.6 * grey.expand(-1, -1, 3), glow, 0.65 * mask[..., None]))
        sheet.text(x, sheet.top + _WORD + 4, target.text, 15, tuple((colour * 200).int().tolist()))
    schedule = schedule_plot(plain_clock(result.record.steps), result.plan.regions, colours, _WORD, plot)
    x = sheet.page.width - _MARGIN - plot
    sheet.paste(x, sheet.top, schedule)
    sheet.text(x, sheet.top + _WORD + 4, "noise left, over the steps; grey: everything else", 14, _PALE)
    sheet.top += _WORD + 24 + 2 * _GAP


def _draw_run(sheet: Sheet, model: DemoModel | FlowModel, result: Result, colours: Tensor) -> None:
    """The asynchronous run, a column for each of a few steps."""
    sheet.heading(
        "the asynchronous run",
        "the picture so far · which word owns a pixel · how far it lags (pale: not at all, then yellow, red)",
    )
    frames = result.record.frames()
    previews = [decode(model, frame.denoised)[0] for frame in frames if frame.denoised is not None]
    strip = timeline(frames, result.record.steps, colours, previews, cell=_CELL)
    gap = _CELL // 32
    for number, frame in enumerate(frames):
        sheet.text(_MARGIN + gap + number * (_CELL + gap), sheet.top, f"step {frame.step + 1}", 14, _PALE)
    sheet.paste(_MARGIN, sheet.top + 20, strip)
    sheet.top += strip.shape[0] + 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    flags = read_flags(arguments)
    known = {*vocabulary(), "the"}
    strange = [word for word in prompt_words(flags.prompt.lower()) if word not in known]
    if strange:
        sys.stdout.write(f"The small demo model has never seen: {', '.join(strange)}. It knows: {', '.join(vocabulary())}.\n")
    try:
        sys.stdout.write(run(flags) + "\n")
    except (ValueError, OSError) as problem:
        sys.stderr.write(f"error: {problem}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
