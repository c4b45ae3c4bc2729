"""Makes the pictures of README, help pages and templates from the running pack, so that they show it as it is.

    python -m docs.pictures                   # all of them, a few minutes on two cores
    python -m docs.pictures picker graph      # some, by name
    python -m docs.pictures --check           # writes nothing; exit code 1 where a picture shows what is no longer so

Nodes and graphs are photographed in Chromium on a real server, in Nodes 2.0; drawings come from runs of the templates on
that server, and where a picture needs what no node gives out, from the same demo model without ComfyUI. It needs what
tests/browser needs (see README), and says what is missing.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "browser"), str(ROOT / "tests" / "comfy")]

from comfy_process import Server, comfyui_path, start  # noqa: E402
from conftest import LACKING, SETTINGS  # noqa: E402

from asyndm_core.curves import CURVES  # noqa: E402
from asyndm_core.pictures import (  # noqa: E402
    INK,
    PAPER,
    one_hot,
    overlay,
    palette,
    plain_clock,
    resize_image,
    schedule_plot,
)
from asyndm_core.regions import Region, Regions, TimestepMap  # noqa: E402
from asyndm_core.words import parse_targets  # noqa: E402
from demo.__main__ import to_pil  # noqa: E402
from demo.model import load, load_transformer  # noqa: E402
from demo.sample import Result, sample_demo  # noqa: E402

Picture = Image.Image
Colour = tuple[int, int, int]

PROMPT, TARGETS, STRENGTH, SEED = "a green boat on the sea under two moons", "green boat, two moons:0.5", 0.8, 8
"""Of the templates on the demo model."""
SEED_OF_TRANSFORMER = 1
"""Of asyndm_transformer."""
THUMBNAIL = 512
BADGE = 110
"""Pixels at the top of a thumbnail that ComfyUI's template browser lays its badge over: no words there."""
QUALITY = (90, 86, 82, 78, 74, 70)
LARGEST = {"web/docs": 60_000, "docs": 160_000, "workflows": 60_000}
"""Bytes of a picture, by folder: the help pages come with the pack."""
SAME = 6.0
"""The mean difference, in 1/255, up to which two pictures show the same: other fonts, another processor's rounding."""
VIEWPORT = (1920, 1100)

_PAPER: Colour = tuple(round(255 * c) for c in PAPER)  # type: ignore[assignment]
_INK: Colour = tuple(round(160 * c) for c in INK)  # type: ignore[assignment]
_DARK: Colour = (24, 25, 27)
_ORANGE, _BLUE, _PINK = (tuple(colour) for colour in (255 * palette(3)).int().tolist())

PICTURES: dict[str, Callable[[Studio], Picture]] = {}
"""How each picture is made, by its path in the repository."""


def picture(path: str) -> Callable[[Callable[[Studio], Picture]], Callable[[Studio], Picture]]:
    """Enters a function into PICTURES."""

    def enter(make: Callable[[Studio], Picture]) -> Callable[[Studio], Picture]:
        PICTURES[path] = make
        return make

    return enter


# --- the server and the browser ---------------------------------------------------------------------------------------


class Studio:
    """A page of a real server, and runs of the templates. ``page`` is opened when a picture first needs it."""

    def __init__(self, server: Server, doors: ExitStack) -> None:
        self.server, self.doors = server, doors
        self.opened = self.runs = 0

    @cached_property
    def page(self) -> Any:
        """The window, in Nodes 2.0."""
        from page import Page, chromium

        page = Page(self.doors.enter_context(chromium()), self.server)
        wide, high = VIEWPORT
        metrics = {"width": wide, "height": high, "deviceScaleFactor": 1, "mobile": False}
        page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        page.use_renderer("nodes2")
        page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        return page

    def open(self, template: str, run: bool = False) -> None:
        """Open a template in a tab of its own, where no other graph's pictures are on its nodes; run it if asked to."""
        self.opened += 1
        workflow = json.loads((ROOT / "workflows" / f"{template}.json").read_text(encoding="utf-8"))
        self.page.settled("await app.loadGraphData(arguments[0], true, true, arguments[1])", workflow, f"{self.opened}")
        self.page.frames(8)
        if run:
            self.page.run()

    def photograph(self, *types: str, margin: int = 10, width: int | None = None) -> Picture:
        """The nodes of the given types as they are seen (none: the whole graph, with its groups), at most ``width`` wide."""
        page = self.page
        box = page.js(
            """
            const types = arguments[0]
            const nodes = testing.all().filter((n) => !types.length || types.includes(n.type))
            const others = `.lg-node:not(${nodes.map((n) => `[data-node-id="${n.id}"]`).join(', ')})`
            const style = document.createElement('style')
            style.className = 'asyndm-photo'
            style.textContent = `body *:not(:has(.lg-node), .lg-node, .lg-node *, canvas), ${others}, ${others} *
              { visibility: hidden !important }`
            document.head.append(style)
            app.canvas.deselectAll()
            const boxes = nodes.map((n) => [...n.boundingRect])
            if (!types.length) boxes.push(...app.rootGraph.groups.map((g) => [...g._bounding]))
            const left = Math.min(...boxes.map((b) => b[0])), top = Math.min(...boxes.map((b) => b[1]))
            const right = Math.max(...boxes.map((b) => b[0] + b[2])), bottom = Math.max(...boxes.map((b) => b[1] + b[3]))
            const [wide, high] = [right - left, bottom - top]
            const scale = Math.min(1, (innerWidth - 180) / wide, (innerHeight - 180) / high)
            app.canvas.ds.scale = scale
            const x = (innerWidth - wide * scale) / 2, y = (innerHeight - high * scale) / 2
            app.canvas.ds.offset = [x / scale - left, y / scale - top]
            app.canvas.setDirty(true, true)
            const canvas = app.canvas.canvas.getBoundingClientRect()
            return [x + canvas.left, y + canvas.top, x + canvas.left + wide * scale, y + canvas.top + high * scale]
            """,
            list(types),
        )
        page.frames(8)
        page.wait(
            "[...document.querySelectorAll('.lg-node img')]"
            ".every((e) => getComputedStyle(e).visibility === 'hidden' || (e.complete && e.naturalWidth))"
            " && ![...document.querySelectorAll('.lg-node')].some((e) => e.textContent.includes('Loading...'))"
        )
        page.frames(8)
        shot = Image.open(io.BytesIO(page.driver.get_screenshot_as_png())).convert("RGB")
        page.js("document.querySelector('.asyndm-photo').remove()")
        left, top, right, bottom = box
        cut = shot.crop((round(left) - margin, round(top) - margin, round(right) + margin, round(bottom) + margin))
        return cut if width is None or cut.width <= width else resized(cut, width, round(cut.height * width / cut.width))

    @cache  # noqa: B019
    def prompt_of(self, template: str) -> str:
        """What the frontend sends for a template, as JSON."""
        self.open(template)
        return json.dumps(self.page.prompt())

    def draw(self, template: str, **values: Any) -> list[Picture]:
        """The saved pictures of a template's run, the first saved first; ``values``: inputs, on every node that has them."""
        prompt = json.loads(self.prompt_of(template))
        return self.run(prompt, **values)

    def run(self, prompt: dict, **values: Any) -> list[Picture]:
        """The saved pictures of a prompt's run."""
        self.runs += 1
        prompt = copy.deepcopy(prompt)
        for node in prompt.values():
            inputs = node["inputs"]
            inputs.update({name: values[name] for name in values.keys() & inputs if not isinstance(inputs[name], list)})
            if node["class_type"] == "PrimitiveInt" and "seed" in values:
                inputs["value"] = values["seed"]
            if "filename_prefix" in inputs:
                inputs["filename_prefix"] = f"pictures/{self.runs}"  # a cached run would not be told again
        outputs = self.server.run(prompt)
        saved = [number for number, node in prompt.items() if node["class_type"] == "SaveImage"]
        return [Image.fromarray(self.server.image(outputs[number]["images"][0])) for number in sorted(saved, key=int)]


# --- drawing ----------------------------------------------------------------------------------------------------------


def resized(image: Picture, width: int, height: int | None = None) -> Picture:
    """An image at another size; a square without ``height``."""
    return image.resize((width, height or width), Image.Resampling.LANCZOS)


def font(size: int) -> Any:
    """The font of all captions."""
    return ImageFont.load_default(size)


def label(image: Picture, x: float, y: float, text: str, size: int = 16, colour: Colour = _INK, anchor: str = "la") -> None:
    """Writes a line at (x, y)."""
    ImageDraw.Draw(image).text((x, y), text, fill=colour, font=font(size), anchor=anchor)


def sheet(cells: Sequence[tuple[Picture, str]], columns: int, gap: int = 8, line: int = 22, size: int = 15) -> Picture:
    """Pictures of one size in rows, each with a caption above it (none where all are empty)."""
    wide, high = cells[0][0].size
    line = line if any(caption for _, caption in cells) else 0
    rows = -(-len(cells) // columns)
    page = Image.new("RGB", (gap + columns * (wide + gap), gap + rows * (high + line + gap)), _PAPER)
    for number, (image, caption) in enumerate(cells):
        x, y = gap + number % columns * (wide + gap), gap + number // columns * (high + line + gap)
        label(page, x, y, caption, size)
        page.paste(image, (x, y + line))
    return page


def halves(before: Picture, after: Picture, left: float, names: tuple[str, str] | None = None) -> Picture:
    """The same half of two pictures, from ``left`` (a share of the width) on, side by side with a line between them."""
    half = THUMBNAIL // 2
    page = Image.new("RGB", (THUMBNAIL, THUMBNAIL))
    for x, image in ((0, before), (half, after)):
        cut = round(left * THUMBNAIL)
        page.paste(resized(image, THUMBNAIL).crop((cut, 0, cut + half, THUMBNAIL)), (x, 0))
    pen = ImageDraw.Draw(page)
    pen.line((half, 0, half, THUMBNAIL), fill="white", width=4)
    for x, name in zip((half // 2, half + half // 2), names or (), strict=False):
        wide = pen.textlength(name, font(26)) / 2 + 12
        pen.rounded_rectangle((x - wide, THUMBNAIL - 58, x + wide, THUMBNAIL - 14), 10, (32, 33, 36))
        label(page, x, THUMBNAIL - 36, name, 26, (255, 255, 255), "mm")
    return page


def graph_thumbnail(graph: Picture, title: str) -> Picture:
    """A graph over its title, which stands at the bottom: at the top is ComfyUI's badge."""
    page = Image.new("RGB", (THUMBNAIL, THUMBNAIL), _DARK)
    room = THUMBNAIL - BADGE - 90
    scale = min(1.0, max((THUMBNAIL - 16) / graph.width, room / graph.height))
    graph = resized(graph, round(graph.width * scale), round(graph.height * scale))
    graph = graph.crop((0, 0, min(graph.width, THUMBNAIL - 16), min(graph.height, room)))
    page.paste(graph, ((THUMBNAIL - graph.width) // 2, BADGE - 30))
    label(page, THUMBNAIL / 2, THUMBNAIL - 48, title, 46, (240, 240, 240), "mm")
    return page


@cache
def drawn(prompt: str = PROMPT, targets: str = TARGETS, seed: int = SEED, strength: float = STRENGTH, **regions: Any) -> Result:
    """A run of the demo model without ComfyUI, where a picture needs what no node gives out. regions: of the targets."""
    words = Regions(parse_targets(targets), **regions)
    return sample_demo(model(), prompt, TimestepMap(words, strength=strength), [seed])


@cache
def model() -> Any:
    """The demo model."""
    return load()


def regions_over(result: Result, frame: int, size: int) -> Picture:
    """The regions of a step that was kept, in their colours over the picture that came out."""
    under = resize_image(result.images[0], size, size)
    count = len(result.plan.regions)
    return to_pil(overlay(under, one_hot(result.record.frames()[frame].owner[0], count), palette(count)))


# --- README -----------------------------------------------------------------------------------------------------------


@picture("docs/graph.jpg")
def graph(studio: Studio) -> Picture:
    """asyndm_demo after its run."""
    studio.open("asyndm_demo", run=True)
    return studio.photograph(width=1500)


@picture("docs/hero.jpg")
def hero(studio: Studio) -> Picture:
    """Before and after of the templates that change a picture, at seeds that nobody chose: 1, 2 and 3."""
    wide, pair, gap, top = 200, 4, 20, 38
    asked = {
        "asyndm_remove": "Take the moon out: by its word",
        "asyndm_edit": "Moon to sun, keep the rest: by its word",
        "asyndm_inpaint": "Paint a sun into the sky: by a hole",
    }
    page = Image.new("RGB", (gap + len(asked) * (2 * wide + pair + gap), top + 3 * (wide + 8) + 8), _PAPER)
    for column, (template, caption) in enumerate(asked.items()):
        left = gap + column * (2 * wide + pair + gap)
        label(page, left, 10, caption, 18)
        for row, seed in enumerate((1, 2, 3)):
            prompt = json.loads(studio.prompt_of(template))
            samplers = [
                node["inputs"] for _, node in sorted(prompt.items(), key=lambda each: int(each[0])) if "seed" in node["inputs"]
            ]
            for number, inputs in enumerate(samplers):  # the second samples with noise of its own
                inputs["seed"] = seed + 100 * number
            for side, image in enumerate(studio.run(prompt)):
                page.paste(resized(image, wide), (left + side * (wide + pair), top + row * (wide + 8)))
    return page


# --- help pages -------------------------------------------------------------------------------------------------------


@picture("web/docs/apply.jpg")
def apply(studio: Studio) -> Picture:
    """Where Apply AsynDM stands in a graph."""
    studio.open("asyndm_sdxl")
    types = ("AsynDM_CrossAttentionMask", "AsynDM_TimestepMap", "AsynDM_Apply", "KSampler")
    return studio.photograph(*types, margin=14, width=760)


@picture("web/docs/compare.jpg")
def compare(studio: Studio) -> Picture:
    """AsynDM Compare after a run."""
    studio.open("asyndm_compare", run=True)
    studio.page.wait("[...document.querySelectorAll('.asyndm-picture')].every((e) => e.complete && e.naturalWidth === 512)")
    return studio.photograph("AsynDM_Compare", width=400)


@picture("web/docs/curves.jpg")
def curves(studio: Studio) -> Picture:
    """The curves at strength 0.7."""
    strength, wide, high = 0.7, 560, 296
    bent = [name for name in CURVES if name != "linear"]
    colours = torch.tensor([_ORANGE, _BLUE, _PINK]) / 255
    plot = to_pil(schedule_plot(plain_clock(20), [Region(name, name, strength) for name in bent], colours, high, wide))
    page = Image.new("RGB", (wide, high + 66), _PAPER)
    page.paste(plot, (0, 0))
    pen, x = ImageDraw.Draw(page), 16
    named = zip([*bent, "linear: the background"], [_ORANGE, _BLUE, _PINK, tuple(round(255 * c) for c in INK)], strict=True)
    for name, colour in named:
        pen.rounded_rectangle((x, high + 6, x + 13, high + 19), 3, colour)
        label(page, x + 20, high + 3, name, 15)
        x += 42 + round(pen.textlength(name, font(15)))
    label(page, 16, high + 32, f"upwards: noise that is left; to the right: steps; strength {strength:g}", 15)
    return page


@picture("web/docs/demo_model.jpg")
def demo_model(studio: Studio) -> Picture:
    """Six prompts, the ordinary sampler, one seed."""
    things = {
        "a green boat on the sea": "boat",
        "a white cat in a room": "cat",
        "two red balls on a beach": "balls",
        "a purple car on a street": "car",
        "a yellow moon over a house at night": "moon",
        "three green trees in a meadow": "trees",
    }
    cells = []
    for text, word in things.items():
        cells.append((resized(to_pil(drawn(text, word, 3, 0.0).images[0]), 250), text))
    return sheet(cells, 3)


@picture("web/docs/edit.jpg")
def edit(studio: Studio) -> Picture:
    """Before and after, of asyndm_edit."""
    before, after = studio.draw("asyndm_edit")
    return sheet([(resized(before, 256), ""), (resized(after, 256), "")], 2)


@picture("web/docs/live.jpg")
def live(studio: Studio) -> Picture:
    """The live view on AsynDM KSampler after a run, in its middle, with a word lit."""
    studio.open("asyndm_demo", run=True)
    page = studio.page
    page.fit("AsynDM_KSampler")
    page.click_at(page.element(".asyndm-run .asyndm-slider"), 0.45)
    page.mouse().move_to_element(page.elements(".asyndm-run .asyndm-entry")[0]).perform()
    page.frames()
    x, y, wide, high = page.js(
        "const b = document.querySelector('.asyndm-run').getBoundingClientRect(); return [b.x, b.y, b.width, b.height]"
    )
    shot = Image.open(io.BytesIO(page.driver.get_screenshot_as_png())).convert("RGB")
    return shot.crop((round(x) - 6, round(y) - 6, round(x + wide) + 6, round(y + high) + 6))


@picture("web/docs/modes.jpg")
def modes(studio: Studio) -> Picture:
    """The three modes, of asyndm_triplet."""
    images = studio.draw("asyndm_triplet")
    names = ("synchronous", "concave", "asynchronous")
    return sheet([(resized(image, 200), name) for image, name in zip(images, names, strict=True)], 3)


@picture("web/docs/picker.jpg")
def picker(studio: Studio) -> Picture:
    """Cross-Attention Mask of asyndm_demo."""
    studio.open("asyndm_demo")
    return studio.photograph("AsynDM_CrossAttentionMask")


@picture("web/docs/regions.jpg")
def regions(studio: Studio) -> Picture:
    """The regions late in a run, at four settings."""
    ways = {"threshold 0.8": (0.8, 0), "threshold 1": (1.0, 0), "threshold 1.6": (1.6, 0), "threshold 1.6, grow 2": (1.6, 2)}
    cells = [(regions_over(drawn(threshold=threshold, grow=grow), -2, 150), name) for name, (threshold, grow) in ways.items()]
    return sheet(cells, 2)


@picture("web/docs/schedule.jpg")
def schedule(studio: Studio) -> Picture:
    """Asynchronous Timestep Map of asyndm_demo."""
    studio.open("asyndm_demo")
    return studio.photograph("AsynDM_TimestepMap")


@picture("web/docs/strength.jpg")
def strength(studio: Studio) -> Picture:
    """Three strengths, two prompts."""
    cells = []
    for text, targets, seed in ((PROMPT, "green boat, two moons", 13), ("a blue house on the sea", "blue house", 1)):
        for value in (0.0, 0.7, 0.85):
            image = to_pil(drawn(text, targets, seed, value).images[0])
            cells.append((resized(image, 150), f"strength {value:g}" if len(cells) < 3 else ""))
    return sheet(cells, 3)


@picture("web/docs/timeline.jpg")
def timeline(studio: Studio) -> Picture:
    """The timeline that AsynDM KSampler of asyndm_demo puts out."""
    prompt = json.loads(studio.prompt_of("asyndm_demo"))
    sampler = next(number for number, node in prompt.items() if node["class_type"] == "AsynDM_KSampler")
    prompt["1000"] = {"class_type": "SaveImage", "inputs": {"images": [sampler, 2], "filename_prefix": ""}}
    image = studio.run(prompt)[-1]
    return resized(image, 1060, round(1060 * image.height / image.width))


# --- thumbnails of the templates --------------------------------------------------------------------------------------


@picture("workflows/asyndm_demo.jpg")
def demo_thumbnail(studio: Studio) -> Picture:
    """The picture, and in its corner the regions in four steps."""
    page, card = with_regions(drawn(), 106)
    page.paste(card, (THUMBNAIL - card.width - 8, THUMBNAIL - card.height - 8))
    return page


@picture("workflows/asyndm_transformer.jpg")
def transformer_thumbnail(studio: Studio) -> Picture:
    """The same of the transformer; its boat is to the right."""
    targets = TimestepMap(Regions(parse_targets(TARGETS)), strength=STRENGTH)
    page, card = with_regions(sample_demo(load_transformer(), PROMPT, targets, [SEED_OF_TRANSFORMER]), 58)
    page.paste(card, (8, THUMBNAIL - card.height - 8))
    return page


def with_regions(result: Result, cell: int) -> tuple[Picture, Picture]:
    """A picture, and a card of its regions in four steps."""
    card = sheet([(regions_over(result, frame, cell), "") for frame in (1, 2, 4, -2)], 2)
    return resized(to_pil(result.images[0]), THUMBNAIL), card


@picture("workflows/asyndm_triplet.jpg")
def triplet_thumbnail(studio: Studio) -> Picture:
    """Three pictures of one seed over their schedules."""
    page = Image.new("RGB", (THUMBNAIL, THUMBNAIL), _PAPER)
    ways = {"synchronous": (), "concave": (_ORANGE,), "asynchronous": (_ORANGE, _BLUE)}
    for number, (image, (name, colours)) in enumerate(zip(studio.draw("asyndm_triplet"), ways.items(), strict=True)):
        x, wide = 8 + number * 168, 160
        strengths = (STRENGTH, 0.5)[: len(colours)]
        shown = [Region(str(value), "quadratic", value) for value in strengths]
        plot = schedule_plot(plain_clock(20), shown, torch.tensor(colours).reshape(-1, 3) / 255, 100, wide)
        page.paste(resized(image, wide), (x, BADGE))
        page.paste(to_pil(plot), (x, BADGE + wide + 10))
        label(page, x + wide / 2, BADGE + wide + 132, name, 22, _INK, "mm")
    label(page, THUMBNAIL / 2, THUMBNAIL - 48, "one seed, three clocks", 34, _INK, "mm")
    return page


@picture("workflows/asyndm_compare.jpg")
def compare_thumbnail(studio: Studio) -> Picture:
    """Without and with, under the line of AsynDM Compare."""
    return halves(*studio.draw("asyndm_compare"), 0.47, ("without", "with AsynDM"))


@picture("workflows/asyndm_edit.jpg")
def edit_thumbnail(studio: Studio) -> Picture:
    """Before and after."""
    return halves(*studio.draw("asyndm_edit"), 0.06)


@picture("workflows/asyndm_inpaint.jpg")
def inpaint_thumbnail(studio: Studio) -> Picture:
    """Before and after."""
    return halves(*studio.draw("asyndm_inpaint"), 0.5)


@picture("workflows/asyndm_remove.jpg")
def remove_thumbnail(studio: Studio) -> Picture:
    """Before and after."""
    return halves(*studio.draw("asyndm_remove"), 0.5)


@picture("workflows/asyndm_painted_mask.jpg")
def painted_thumbnail(studio: Studio) -> Picture:
    """The picture with its painted region."""
    page = resized(studio.draw("asyndm_painted_mask")[0], THUMBNAIL)
    region = (0, 0, THUMBNAIL - 1, THUMBNAIL // 2)
    tint = Image.new("RGB", page.size, _ORANGE)
    shade = Image.new("L", page.size, 0)
    ImageDraw.Draw(shade).rectangle(region, 100)
    page.paste(tint, (0, 0), shade)
    ImageDraw.Draw(page).rectangle(region, outline=_ORANGE, width=6)
    return page


@picture("workflows/asyndm_sd15.jpg")
def sd15_thumbnail(studio: Studio) -> Picture:
    """The graph."""
    studio.open("asyndm_sd15")
    return graph_thumbnail(studio.photograph("AsynDM_CrossAttentionMask", "AsynDM_TimestepMap", "AsynDM_KSampler"), "SD 1.5")


@picture("workflows/asyndm_sdxl.jpg")
def sdxl_thumbnail(studio: Studio) -> Picture:
    """The graph."""
    studio.open("asyndm_sdxl")
    types = ("AsynDM_CrossAttentionMask", "AsynDM_TimestepMap", "AsynDM_Apply", "KSampler")
    return graph_thumbnail(studio.photograph(*types), "SDXL")


def words_thumbnail(studio: Studio, name: str, title: str, *more: str) -> Picture:
    """The graph of a template for a model that is not here, from the words on. more: other nodes, before the words."""
    studio.open(name)
    shown = more or ("AsynDM_TimestepMap", "AsynDM_KSampler", "AsynDM_Apply")
    return graph_thumbnail(studio.photograph("AsynDM_CrossAttentionMask", *shown), title)


HOLE = ("AsynDM_KSampler", "ThresholdMask", "GrowMask", "SetLatentNoiseMask", "MaskPreview")


@picture("workflows/asyndm_z_image.jpg")
def z_image_thumbnail(studio: Studio) -> Picture:
    """The graph."""
    return words_thumbnail(studio, "asyndm_z_image", "Z-Image")


@picture("workflows/asyndm_z_image_remove.jpg")
def z_image_remove_thumbnail(studio: Studio) -> Picture:
    """The graph, in part."""
    return words_thumbnail(studio, "asyndm_z_image_remove", "Z-Image: remove", *HOLE)


@picture("workflows/asyndm_qwen_image.jpg")
def qwen_image_thumbnail(studio: Studio) -> Picture:
    """The graph."""
    return words_thumbnail(studio, "asyndm_qwen_image", "Qwen-Image")


@picture("workflows/asyndm_qwen_image_edit.jpg")
def qwen_image_edit_thumbnail(studio: Studio) -> Picture:
    """The graph, in part."""
    return words_thumbnail(studio, "asyndm_qwen_image_edit", "Qwen-Image-Edit", "LoadImage", "PrimitiveStringMultiline")


@picture("workflows/asyndm_krea2.jpg")
def krea2_thumbnail(studio: Studio) -> Picture:
    """The graph."""
    return words_thumbnail(studio, "asyndm_krea2", "Krea 2")


@picture("workflows/asyndm_krea2_remove.jpg")
def krea2_remove_thumbnail(studio: Studio) -> Picture:
    """The graph, in part."""
    return words_thumbnail(studio, "asyndm_krea2_remove", "Krea 2: remove", *HOLE)


@picture("workflows/asyndm_flux2_klein.jpg")
def flux2_klein_thumbnail(studio: Studio) -> Picture:
    """The graph."""
    return words_thumbnail(studio, "asyndm_flux2_klein", "Flux.2 Klein")


@picture("workflows/asyndm_flux2_klein_edit.jpg")
def flux2_klein_edit_thumbnail(studio: Studio) -> Picture:
    """The graph, in part."""
    return words_thumbnail(studio, "asyndm_flux2_klein_edit", "Flux.2 Klein: edit", "LoadImage", "PrimitiveStringMultiline")


@picture("workflows/asyndm_flux1.jpg")
def flux1_thumbnail(studio: Studio) -> Picture:
    """The graph."""
    return words_thumbnail(studio, "asyndm_flux1", "Flux.1")


@picture("workflows/asyndm_flux1_kontext_edit.jpg")
def flux1_kontext_edit_thumbnail(studio: Studio) -> Picture:
    """The graph, in part."""
    return words_thumbnail(studio, "asyndm_flux1_kontext_edit", "Flux.1 Kontext", "LoadImage", "PrimitiveStringMultiline")


@picture("workflows/asyndm_sd35.jpg")
def sd35_thumbnail(studio: Studio) -> Picture:
    """The graph."""
    return words_thumbnail(studio, "asyndm_sd35", "SD 3.5")


@picture("workflows/asyndm_sd35_edit.jpg")
def sd35_edit_thumbnail(studio: Studio) -> Picture:
    """The graph, in part."""
    return words_thumbnail(studio, "asyndm_sd35_edit", "SD 3.5: edit", "LoadImage", "AsynDM_KSampler")


@picture("workflows/asyndm_anima.jpg")
def anima_thumbnail(studio: Studio) -> Picture:
    """The graph."""
    return words_thumbnail(studio, "asyndm_anima", "Anima")


@picture("workflows/asyndm_anima_edit.jpg")
def anima_edit_thumbnail(studio: Studio) -> Picture:
    """The graph, in part."""
    return words_thumbnail(studio, "asyndm_anima_edit", "Anima: edit", "LoadImage", "AsynDM_KSampler")


@picture("workflows/asyndm_wan22_t2v.jpg")
def wan22_t2v_thumbnail(studio: Studio) -> Picture:
    """The graph, in part."""
    return words_thumbnail(studio, "asyndm_wan22_t2v", "Wan 2.2", "AsynDM_TimestepMap", "AsynDM_Apply", "KSamplerAdvanced")


@picture("workflows/asyndm_wan22_i2v.jpg")
def wan22_i2v_thumbnail(studio: Studio) -> Picture:
    """The graph, in part."""
    return words_thumbnail(studio, "asyndm_wan22_i2v", "Wan 2.2: from a frame", "LoadImage", "EmptyImage", "ImageToMask")


@picture("workflows/asyndm_wan22_5b_edit.jpg")
def wan22_5b_edit_thumbnail(studio: Studio) -> Picture:
    """The graph, in part."""
    return words_thumbnail(studio, "asyndm_wan22_5b_edit", "Wan 2.2: edit", "KSampler", "AsynDM_KSampler")


@picture("workflows/asyndm_wan22_5b_inpaint.jpg")
def wan22_5b_inpaint_thumbnail(studio: Studio) -> Picture:
    """The graph, in part."""
    return words_thumbnail(studio, "asyndm_wan22_5b_inpaint", "Wan 2.2: inpaint", "AsynDM_KSampler")


@picture("workflows/asyndm_ltxv.jpg")
def ltxv_thumbnail(studio: Studio) -> Picture:
    """The graph."""
    return words_thumbnail(studio, "asyndm_ltxv", "LTX-Video")


@picture("workflows/asyndm_minimax_h3.jpg")
def minimax_h3_thumbnail(studio: Studio) -> Picture:
    """The graph."""
    return words_thumbnail(studio, "asyndm_minimax_h3", "MiniMax H3")


# --- the command ------------------------------------------------------------------------------------------------------


def as_jpeg(image: Picture, path: str) -> bytes:
    """The picture as a file, in the best quality that is not too large for its folder."""
    for quality in QUALITY:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality, optimize=True, progressive=True)
        if file.tell() <= LARGEST[str(Path(path).parent)]:
            return file.getvalue()
    raise ValueError(f"{path} is larger than {LARGEST[str(Path(path).parent)]} bytes at every quality: make it smaller.")


def difference(path: Path, image: Picture) -> float:
    """The mean difference, in 1/255, of a picture's file and what it would be now; infinite for another size."""
    with Image.open(path) as there:
        if there.size != image.size:
            return float("inf")
        return float(np.abs(np.asarray(there.convert("RGB"), float) - np.asarray(image, float)).mean())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    by_name = {Path(path).stem if "workflows" not in path else f"{Path(path).stem}_thumbnail": path for path in PICTURES}
    parser = argparse.ArgumentParser(prog="python -m docs.pictures", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which pictures, of: {', '.join(by_name)}; empty: all")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a picture is out of date")
    flags = parser.parse_args(arguments)
    unknown = [name for name in flags.names if name not in by_name]
    if unknown:
        parser.error(f"there is no picture {', '.join(unknown)}: it is one of {', '.join(by_name)}")
    if LACKING:
        parser.error(LACKING.removeprefix("tests/browser skipped: "))
    comfyui, stale = comfyui_path(), []
    with ExitStack() as doors:
        base = Path(doors.enter_context(tempfile.TemporaryDirectory())) / "base"
        studio = Studio(doors.enter_context(start(comfyui, base, SETTINGS)), doors)
        for name in flags.names or by_name:
            path = by_name[name]
            image = PICTURES[path](studio).convert("RGB")
            if not flags.check:
                (ROOT / path).write_bytes(as_jpeg(image, path))
                logging.info("%s: %d x %d", path, *image.size)
            elif (apart := difference(ROOT / path, image)) > SAME:
                stale.append(path)
                logging.info("%s is out of date (mean difference %.1f of 255)", path, apart)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
