"""The pure part of the web side against Python's: numbers that Python makes (golden.json, refusals.json), read by
``node --test``.

``python -m tests.web.test_web`` writes them anew.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from asyndm_core import words
from asyndm_core.clock import Clock
from asyndm_core.curves import CURVES
from asyndm_core.pictures import COLOURS, palette, plain_clock, progress_line
from asyndm_core.regions import MODES, Regions, Target, TimestepMap, make_plan
from asyndm_core.run import Lead, known_progress, progress

HERE = Path(__file__).parent
GOLDEN = HERE / "golden.json"
REFUSALS = HERE / "refusals.json"
PROMPTS = (
    "a green boat on the sea, in winter",
    "masterpiece, (red fox:1.3) with a \\(small\\) hat | best quality",
    "at night in a meadow",
    "",
    "A Rabbit's tea-party; embedding:my_style two cats_and dogs, 4 x 4!",
    "ein großer Bär – 狐 und “mirrors”",
    "a red cat \\(pet\\) & a hat BREAK blue 🦊 moon, cafe\u0301",
    "score_9, score_8_up, rating_safe, masterpiece, 1girl, tracer \\(overwatch\\), orange_hair, <lora:add_detail:0.8>",
    "[dog:cat:0.5] in a {red|{blue|green}} house with __animal__ and embedding:glim, 3 moons",
    "35mm film photo of a standing king wearing a (ring:1.3), ((hat)), (tree:0.7), detailed skin, f/1.8, depth of field",
    "oil painting, white background",
    "one of the boats\nbuilding, string (x), ((a) b:1.2) c) (d",
    "一只兔子在草地上，两个月亮，杰作，最佳质量",
    "草原の赤い狐、きつねとカメラ 토끼가 뛴다 กระต่าย",
)
FOUND = {
    "1girl, tracer \\(overwatch\\), orange_hair, (tracer \\(overwatch\\):1.2)": (
        "tracer \\(overwatch\\)", "tracer overwatch", "Tracer (overwatch)", "orange hair", "orange_hair", "hair", "girl",
        "1girl", "over",
    ),
    "a [red fox], 'neon sign', cat! \"red fox\", \"Red\" fox; red, fox (red:1.2) fox": (
        "red fox", '"red fox"', "cat!", "cat", "neon sign", "!",
    ),
    "black-and-white cat, the fox's hat, cafés, embedding:glim, x": (
        "black", "fox", "fox's", "black-and", "café", "glim", "embedding:glim",
    ),
    "一只兔子在草地上，赤いきつね、토끼가 🦊🦊 cat猫": ("兔子", "草地", "きつね", "赤い", "토끼", "🦊", "cat", "猫", "狗"),
    "": ("fox", "!"),
}  # fmt: skip
TYPED = (
    "",
    "兔子，草地",
    "兔子：0.8、月 ： ．５",
    "rabbit, basketball:0.4",
    " red  fox : .5 ,\nhat:1\n",
    "a:b, c:0.25:0.5",
    "tea-party, Rabbit's",
    "x, y,, z:+1.",
)


def exact_line(clock: Clock, curve: str, strength: float, denoise: float) -> list[float]:
    """``pictures.progress_line`` in float64."""
    if denoise == 0:
        return progress_line(clock, curve, strength, denoise).tolist()
    state = clock.start(()).double() if denoise == 1 else clock.start_at(torch.tensor(denoise, dtype=torch.float64))
    line = []
    for step in range(clock.anchor, clock.steps):
        if step >= 0:
            line.append(float(clock.progress(state, step)))
        state = clock.advance(state, step, curve, strength)
    return [*line, float(clock.progress(state, clock.steps))]


def schedules() -> list[dict[str, Any]]:
    """Progress lines of every curve, for few and many steps, by both presets; in the default one from any denoise."""
    counts = [(steps, paper) for steps in (1, 2, 3, 20, 50) for paper in (False, True) if steps > 1 or not paper]
    clocks = [(steps, paper, plain_clock(steps, paper)) for steps, paper in counts]
    return [
        {"steps": steps, "curve": curve, "strength": k, "paper": paper, "denoise": d, "line": exact_line(clock, curve, k, d)}
        for steps, paper, clock in clocks
        for curve in CURVES
        for k in (0.0, 0.15, 0.4, 0.8, 1.0)
        for d in ((1.0,) if paper or k == 0.15 else (1.0, 0.55, 0.02, 0.0))
    ]


def plans() -> list[dict[str, Any]]:
    """Chains of timestep maps and the regions that they make."""
    rabbit, ball, sky = Target("rabbit"), Target("ball", 0.25), Target("sky", 0.9)
    mask = torch.ones(4, 4)
    chains: list[list[dict[str, Any]]] = [
        [{"targets": (rabbit, ball)}],
        [{"targets": (rabbit,), "mode": "concave"}, {"targets": (sky,), "curve": "exponential", "strength": 0.3}],
        [{"targets": (ball,), "mode": "synchronous"}, {"targets": (sky, rabbit), "strength": 0.5}],
        [{"targets": (rabbit, ball), "mask": mask, "mask_mode": "limit"}],
        [{"targets": (rabbit,), "mask": mask, "mask_mode": "add"}, {"targets": (), "mask": mask, "mask_mode": "replace"}],
        [{"targets": (), "mask": mask, "mask_mode": "replace", "mode": "concave", "strength": 0.6}],
        [{"targets": (rabbit,), "region_denoise": 0.8, "background_denoise": 0.2}],
        [
            {"targets": (ball,), "mode": "concave", "region_denoise": 0.3, "background_denoise": 0.5},
            {"targets": (rabbit,), "mask": mask, "mask_mode": "add", "region_denoise": 0.8, "background_denoise": 0.0},
        ],
        [{"targets": (rabbit,), "mode": "synchronous", "region_denoise": 0.8, "background_denoise": 0.2}],
        [{"targets": (rabbit,), "region_denoise": 0.0, "background_denoise": 0.0}],
    ]
    result = []
    for chain in chains:
        timestep_map, layers = None, []
        for given in chain:
            layer = {"curve": "quadratic", "strength": 0.7, "mode": MODES[0], "mask": None, "mask_mode": "limit", **given}
            own = {name: layer.get(name, 1.0) for name in ("region_denoise", "background_denoise")}
            regions = Regions(layer["targets"], mask=layer["mask"], mask_mode=layer["mask_mode"])
            timestep_map = TimestepMap(regions, layer["curve"], layer["strength"], layer["mode"], previous=timestep_map, **own)
            layers.append(
                {
                    "targets": [{"text": t.text, "strength": t.strength} for t in layer["targets"]],
                    "curve": layer["curve"],
                    "strength": layer["strength"],
                    "mode": layer["mode"],
                    "painted": layer["mask"] is not None,
                    "maskMode": layer["mask_mode"],
                    "regionDenoise": own["region_denoise"],
                    "backgroundDenoise": own["background_denoise"],
                }
            )
        assert timestep_map is not None
        plan = make_plan(timestep_map, 4, 4)
        made = [{"name": r.name, "curve": r.curve, "strength": r.strength, "denoise": r.denoise} for r in plan.regions]
        result.append({"layers": layers, "regions": made, "background": plan.background_denoise})
    return result


def led_line(clock: Clock, lead: Lead, curve: str = "linear", strength: float = 0.0) -> list[float]:
    """What a run shows of a pixel that leads, in float64."""
    state, line = clock.start(()).double(), []
    for step in range(clock.steps):
        line.append(float(progress(clock, state, step, None, lead)))
        state = clock.advance(state, step, curve, strength)
    return [*line, float(progress(clock, state, clock.steps, None, lead))]


def leads() -> list[dict[str, Any]]:
    """Timestep maps whose known pixels run ahead: the lines of their regions, of the background and of what a mask keeps."""
    result = []
    for changes in (
        {},
        {"mode": "concave", "lead": 0.1},
        {"region_denoise": 0.7, "background_denoise": 0.3},
        {"region_denoise": 1.0, "background_denoise": 0.0, "lead": 0.35, "curve": "exponential"},
    ):
        timestep_map = TimestepMap(Regions((Target("rabbit", 0.5),)), **{"known_pixels": "ahead", **changes})
        clock, plan = plain_clock(20), make_plan(timestep_map, 4, 4)
        known = known_progress(clock, plan)
        lines = [
            led_line(clock, Lead(torch.tensor(1.0 - denoise, dtype=torch.float64), known), curve, strength)
            for curve, strength, denoise in (
                *((region.curve, region.strength, region.denoise) for region in plan.regions),
                ("linear", 0.0, plan.background_denoise),
            )
        ]
        layer = {
            "targets": [{"text": "rabbit", "strength": 0.5}],
            "curve": timestep_map.curve,
            "strength": timestep_map.strength,
            "mode": timestep_map.mode,
            "preset": timestep_map.preset,
            "knownPixels": timestep_map.known_pixels,
            "lead": timestep_map.lead,
            "painted": False,
            "maskMode": "limit",
            "regionDenoise": timestep_map.region_denoise,
            "backgroundDenoise": timestep_map.background_denoise,
        }
        result.append({"layer": layer, "lines": [*lines, known]})
    return result


def found(prompt: str, target: str) -> list[list[int]]:
    """Where a target is in the plain text, counted as JavaScript counts: a character beyond U+FFFF is two."""
    text = words.plain_text(prompt)
    return [[len(text[:n].encode("utf-16-le")) // 2 for n in place] for place in words.places(text, target)]


def refusals() -> dict[str, Any]:
    """Chains of timestep maps, with what ``make_plan`` says against each ("": nothing), and whether its plan is idle."""
    rabbit = Regions((Target("rabbit"),))
    fixed = Regions((Target("ball"),), update="fixed")
    mask = Regions((Target("sky"),), update="fixed", mask=torch.ones(4, 4), mask_mode="replace")
    paper = {"preset": "paper"}
    edit = {"region_denoise": 0.7, "background_denoise": 0.3}
    chains: list[list[tuple[Regions, dict[str, Any]]]] = [
        [(rabbit, {})],
        [(rabbit, {"strength": 0.0})],
        [(rabbit, {"strength": 0.0, **edit})],
        [(rabbit, {"curve": "linear"})],
        [(rabbit, {"mode": "synchronous"})],
        [(rabbit, {}), (rabbit, paper)],
        [(rabbit, {}), (rabbit, {"known_pixels": "clean"})],
        [(rabbit, {"known_pixels": "clean"}), (rabbit, {"known_pixels": "ahead"})],
        [(rabbit, {"known_pixels": "ahead"}), (rabbit, {"known_pixels": "ahead", "lead": 0.3})],
        [(rabbit, {"known_pixels": "ahead"}), (fixed, {"known_pixels": "ahead", "lead": 0.3})],
        [(rabbit, {}), (rabbit, {"lead": 0.3})],
        [(rabbit, {}), (fixed, {})],
        [(rabbit, {}), (mask, {})],
        [(rabbit, {"mode": "synchronous"}), (fixed, {})],
        [(rabbit, edit), (rabbit, {})],
        [(rabbit, {**edit, "mode": "synchronous"}), (rabbit, {"region_denoise": 0.7, "background_denoise": 0.7})],
        [(rabbit, {**paper, **edit})],
        [(rabbit, {**paper, **edit, "mode": "synchronous"})],
        [(rabbit, {**paper, "region_denoise": 0.5, "background_denoise": 0.5})],
        [(rabbit, {**paper, "known_pixels": "clean"})],
        [(rabbit, {**paper, "known_pixels": "clean", "mode": "synchronous"})],
        [(rabbit, {**paper, "known_pixels": "clean", "mode": "concave"})],
        [(rabbit, {**paper, "known_pixels": "ahead"})],
        [(rabbit, {**paper, "known_pixels": "ahead", "lead": 0.0})],
        [(rabbit, {**paper, "known_pixels": "ahead", "mode": "synchronous"})],
    ]
    result = []
    for chain in chains:
        timestep_map, layers, refused, idle = None, [], "", False
        for regions, given in chain:
            timestep_map = TimestepMap(regions, previous=timestep_map, **given)
            layers.append(
                {
                    "targets": [{"text": t.text, "strength": t.strength} for t in regions.targets if regions.followed],
                    "curve": timestep_map.curve,
                    "strength": timestep_map.strength,
                    "mode": timestep_map.mode,
                    "preset": timestep_map.preset,
                    "knownPixels": timestep_map.known_pixels,
                    "lead": timestep_map.lead,
                    "update": regions.update,
                    "followed": regions.followed,
                    "painted": regions.mask is not None,
                    "maskMode": regions.mask_mode,
                    "regionDenoise": timestep_map.region_denoise,
                    "backgroundDenoise": timestep_map.background_denoise,
                }
            )
        assert timestep_map is not None
        try:
            idle = make_plan(timestep_map, 4, 4).idle
        except ValueError as error:
            refused = str(error)
        result.append({"layers": layers, "refused": refused, "idle": idle})
    return {"chains": result}


def golden() -> dict[str, Any]:
    """All that the JavaScript has to agree with."""
    return {
        "schedules": schedules(),
        "plans": plans(),
        "leads": leads(),
        "colours": {"table": COLOURS, "palette": (palette(28) * 255).tolist()},
        "words": words.WORD_LISTS,
        "prompts": [
            {
                "prompt": prompt,
                "plain": words.plain_text(prompt),
                "words": words.prompt_words(prompt),
                "phrases": words.content_phrases(prompt),
            }
            for prompt in PROMPTS
        ],
        "found": [
            {"prompt": prompt, "target": target, "places": found(prompt, target)}
            for prompt, targets in FOUND.items()
            for target in targets
        ],
        "typed": [
            {"typed": typed, "targets": [{"text": t.text, "strength": t.strength} for t in words.parse_targets(typed)]}
            for typed in TYPED
        ],
    }


def rounded(value: Any) -> Any:
    """Numbers to ten digits, tuples as lists: what is written down."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(entry) for entry in value]
    return round(value, 10) if isinstance(value, float) else value


def test_golden_is_what_python_says() -> None:
    """To 1e-8, so that it holds on other machines."""
    written, now = json.loads(GOLDEN.read_text(encoding="utf-8")), rounded(golden())
    for entry, fresh in zip(written["schedules"], now["schedules"], strict=True):
        assert entry.pop("line") == pytest.approx(fresh.pop("line"), abs=1e-8), entry
        assert entry == fresh
    for entry, fresh in zip(written["leads"], now["leads"], strict=True):
        for line, wanted in zip(entry.pop("lines"), fresh.pop("lines"), strict=True):
            assert line == pytest.approx(wanted, abs=1e-8), entry
    for entry, fresh in zip(written["colours"].pop("palette"), now["colours"].pop("palette"), strict=True):
        assert entry == pytest.approx(fresh, abs=1e-3)
    assert written == now, "run: python -m tests.web.test_web"


def test_refusals_are_what_python_says() -> None:
    assert json.loads(REFUSALS.read_text(encoding="utf-8")) == rounded(refusals()), "run: python -m tests.web.test_web"


def test_javascript_agrees() -> None:
    """``node --test`` over the pure modules."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("tests/web needs Node.js 20 or newer: install it (Debian: apt install nodejs) to test web/lib")
    files = sorted(str(path) for path in HERE.glob("*.test.mjs"))
    done = subprocess.run([node, "--test", *files], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "# fail 0" in done.stdout or "ℹ fail 0" in done.stdout


if __name__ == "__main__":
    for file, value in ((GOLDEN, golden()), (REFUSALS, refusals())):
        file.write_text(json.dumps(rounded(value), ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
