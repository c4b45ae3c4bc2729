"""Sends prompts to a server, and after them a fixed one: whatever happened, it must give what it gave at first."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.comfy.comfy_process import Server, start

from .graphs import Graph, Maker, Prompt, inputs_of, make, options_of, without_asyndm
from .verdicts import Ending, ending_of

FAULTS = Path(__file__).parent / "faults"
CLIENT = "stress"
SECONDS = 180
"""A prompt that takes longer hangs."""
EVERY = 5
"""After how many pictures the fixed prompt is run; after anything else it always is."""


@contextmanager
def stress_server(comfyui: Path, base: Path) -> Iterator[Server]:
    """A server with the pack and the nodes of ``faults``."""
    with start(comfyui, base, custom_nodes=(FAULTS,)) as server:
        yield server


@dataclass
class Report:
    """What happened. of: how the graphs of a kind of model ended. finds: what should not have."""

    of: dict[str, Counter[str]] = field(default_factory=dict)
    refusals: Counter[str] = field(default_factory=Counter)
    finds: list[str] = field(default_factory=list)
    checks: int = 0
    stock: int = 0
    memory: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    alive: list[dict[str, int]] = field(default_factory=list)
    left: list[dict[str, Any]] = field(default_factory=list)
    frames: int = 0
    seconds: float = 0.0

    @property
    def endings(self) -> Counter[str]:
        """How all graphs ended."""
        return sum(self.of.values(), Counter())

    def find(self, what: str) -> None:
        """Note, and tell at once, what should not have happened."""
        self.finds.append(what)
        print(what, flush=True)

    def __str__(self) -> str:
        refusals = ", ".join(f"{kind} {count}" for kind, count in self.refusals.most_common())
        memory = [_memory(number, held) for number, held in self.memory]
        lines = [
            f"{self.endings.total()} graphs in {self.seconds:.0f} s: {_counts(self.endings)}",
            *(f"of these with a {model}, {counts.total()}: {_counts(counts)}" for model, counts in sorted(self.of.items())),
            f"refused by kind: {refusals}",
            f"the same as with stock ComfyUI, bit for bit, where nothing may lag: {self.stock}",
            f"fixed prompt after them, unchanged bit for bit: {self.checks} times",
            "memory of the server (Python's objects without the keys that ComfyUI's cache of results remembers):",
            *memory,
            f"left on the models at the end: {self.left[-1] if self.left else '-'}",
            f"runs alive, at start and end: {self.alive[:1]} {self.alive[-1:]}",
            f"live frames that arrived: {self.frames}",
            f"finds: {len(self.finds)}",
        ]
        return "\n".join([*lines, *self.finds])


class Audience:
    """A browser that listens while the prompts run. It counts the frames of the live view."""

    def __init__(self, url: str) -> None:
        self.frames = 0
        self._url = url.replace("http", "ws", 1) + f"/ws?clientId={CLIENT}"
        self._open = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._listen()), daemon=True)

    def __enter__(self) -> Audience:
        self._thread.start()
        assert self._open.wait(30), "the server takes no websocket"
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(10)

    async def _listen(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        try:
            async with aiohttp.ClientSession() as session, session.ws_connect(self._url, max_msg_size=0) as socket:
                self._open.set()
                async for message in socket:
                    if message.type is aiohttp.WSMsgType.TEXT:
                        event = json.loads(message.data)
                        if event["type"] == "asyndm.frames":
                            self.frames += len(event["data"]["frames"])
        except asyncio.CancelledError:
            pass


class Runner:
    """One server under stress."""

    def __init__(self, server: Server) -> None:
        self.server, self.report = server, Report()
        self.info = server.json("/object_info")
        self.first: dict[str, Any] | None = None
        self._nonce = 0

    # --- prompts

    def post(self, prompt: Prompt, preview: bool = False, listened: bool = True) -> str | Ending:
        """Queue a prompt: its id, or how ComfyUI refused it."""
        extra = {"preview_method": "latent2rgb" if preview else "none"}
        message = {"prompt": prompt, "extra_data": extra, **({"client_id": CLIENT} if listened else {})}
        status, answer = self.send("/prompt", json.dumps(message).encode())
        if "prompt_id" in answer:
            return answer["prompt_id"]
        return Ending("invalid", str(status), json.dumps(answer)[:2000])

    def send(self, path: str, body: bytes) -> tuple[int, Any]:
        """POST: status and answer; the answer as text where it is no JSON."""
        request = urllib.request.Request(self.server.url + path, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as refused:
            status, text = refused.code, refused.read()
        try:
            return status, json.loads(text)
        except ValueError:
            return status, {"text": text.decode(errors="replace")}

    def wait(self, prompt_id: str) -> Ending:
        """How a queued prompt ends. Its entry in the server's history is deleted, so that it does not grow."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            try:
                entry = self.server.json(f"/history/{prompt_id}").get(prompt_id)
            except urllib.error.HTTPError as failed:
                return Ending("error", text=f"the server cannot tell how it ended: {failed}\n{self.server.log[-1500:]}")
            if entry:
                self.send("/history", json.dumps({"delete": [prompt_id]}).encode())
                return ending_of(entry)
            time.sleep(0.02)
        return Ending("error", text=f"no end after {SECONDS} s")

    def run(self, prompt: Prompt, preview: bool = False, listened: bool = True) -> Ending:
        """Queue a prompt and wait for its end."""
        posted = self.post(prompt, preview, listened)
        return posted if isinstance(posted, Ending) else self.wait(posted)

    # --- the fixed prompt

    def fixed(self, count: bool) -> Prompt:
        """Stock KSampler on a model of each kind, AsynDM KSampler on those that ship; and the models' state after it."""
        self._nonce += 1
        maker = Maker(self.info, "fixed")
        picture = maker.add("EmptyLatentImage", width=64, height=88, batch_size=1)
        frames = maker.add("Stress_Frames", latent=picture, frames=3)
        unet, transformer = maker.demos().values()
        models = [(unet, unet, picture), (transformer, transformer, picture)]
        models += [(maker.add("Stress_TinySDXL", model=unet), unet, picture)]
        for tiny, latent in (("Stress_TinyTransformer", picture), ("Stress_TinyClip", frames)):
            kinds = options_of(inputs_of(self.info[tiny])["kind"])
            models += [(maker.add(tiny, model=transformer, kind=kind), transformer, latent) for kind in kinds]
        for number, (model, demo, latent) in enumerate(models):
            clip, vae = maker.output(demo, 1), maker.output(demo, 2)
            negative = maker.add("CLIPTextEncode", clip=clip, text="")
            words = maker.add("AsynDM_CrossAttentionMask", clip=clip, text="a green boat under two moons", targets="boat")
            timestep_map = maker.add("AsynDM_TimestepMap", regions=maker.output(words, 1))
            again = maker.add("Stress_Again", model=model, nonce=self._nonce)
            common = {"seed": 7, "steps": 2, "cfg": 4.0, "positive": words, "negative": negative, "latent_image": latent}
            for kind in ("KSampler", "AsynDM_KSampler") if model is demo else ("KSampler",):
                ours = {"timestep_map": timestep_map, "preview": False} if kind == "AsynDM_KSampler" else {}
                sampled = maker.add(kind, model=again, **common, **ours)
                image = {"image": maker.add("VAEDecode", samples=sampled, vae=vae)} if kind == "KSampler" else {}
                maker.add("Stress_Result", latent=sampled, **image)
            maker.add("Stress_State", model=model, after=sampled, count=count and number == len(models) - 1)
        return maker.graph.prompt

    def check(self, what: str, number: int | None = None) -> None:
        """Run the fixed prompt; a find if anything differs from the first time, or if it was not executed.

        number: after so many graphs, to note what is in memory then; None: it is not looked at.
        """
        prompt = self.fixed(number is not None)
        ending = self.run(prompt, listened=False)
        if ending.how != "picture":
            self.report.find(f"{what}: the fixed prompt after it: {ending}")
            return
        samplers = {name for name, node in prompt.items() if "KSampler" in node["class_type"]}
        assert not samplers & ending.cached, "the fixed prompt was not sampled again"
        told = {node: dict(values) for node, values in ending.told.items()}
        self.report.alive += [values.pop("alive") for values in told.values() if "alive" in values]
        self.report.memory += [(number, values.pop("held")) for values in told.values() if "held" in values]
        self.report.left.append({name: values["model"] for name, values in told.items() if "model" in values})
        self.first = self.first or told
        self.report.checks += 1
        changed = {node: (self.first.get(node), values) for node, values in told.items() if values != self.first.get(node)}
        if changed or len(told) != len(self.first):
            self.report.find(f"{what}: the fixed prompt gives something else after it: {changed}")

    # --- random graphs

    def graphs(self, seed: int, numbers: Iterable[int]) -> Report:
        """Run random graphs, three of them queued at a time."""
        numbers = list(numbers)
        began = time.monotonic()
        with Audience(self.server.url) as audience:
            for n in range(3):
                self.check(f"warming up {n}", number=0 if n == 2 else None)
            queued: list[tuple[int, Graph, str | Ending]] = []
            for count, number in enumerate([*numbers, *[None] * 2]):
                if number is not None:
                    graph = make(self.info, seed, number)
                    queued.append((number, graph, self.post(graph.prompt, graph.preview, listened=number % 2 == 0)))
                if len(queued) > 2 or (number is None and queued):
                    self._judge(seed, *queued.pop(0))
                if number is not None and (count + 1) % 100 == 0:
                    self.check(f"graph {number}", count + 1)
                    memory = "".join(f"{_memory(*last)}, " for last in self.report.memory[-1:])
                    print(f"{time.monotonic() - began:.0f} s, {memory}{dict(self.report.endings)}, "
                          f"finds: {len(self.report.finds)}", flush=True)  # fmt: skip
            self.check("the last graph", len(numbers))
            self.report.frames = audience.frames
        self.report.seconds = time.monotonic() - began
        return self.report

    def _judge(self, seed: int, number: int, graph: Graph, posted: str | Ending) -> None:
        ending = posted if isinstance(posted, Ending) else self.wait(posted)
        report, what = self.report, f"graph {number} of seed {seed}"
        how, find = ending.how, None
        if how == "picture":
            find = _unlike(ending, graph)
            if find and self._as_stock(graph, ending):
                how, find = "as stock ComfyUI", None
            elif graph.idle and not find:
                find = self._unlike_stock(graph, ending)
        elif how == "refused":
            report.refusals[ending.kind] += 1
            if ending.kind not in graph.reasons:
                find = f"refused without a reason ({ending.kind}): {ending.text[:300]}"
        elif (how == "cancelled" and graph.fault == "cancel") or (how == "injected" and graph.fault == ending.kind):
            how = {"cancel": "cancelled", "oom": "out of memory", "error": "another pack's error"}[graph.fault]
        elif self._as_stock(graph, ending):
            how = "as stock ComfyUI"
        else:
            find = f"{how}: {ending.text}"
        report.of.setdefault(graph.model, Counter())[how] += 1
        if find:
            report.find(f"{what}: {find}")
        if how != "picture" or find or number % EVERY == 0:
            self.check(what)

    def _as_stock(self, graph: Graph, ending: Ending) -> bool:
        """Whether the graph without AsynDM ends alike: then it is ComfyUI's own doing."""
        twin = self.run(without_asyndm(graph.prompt))
        if ending.how == "picture":
            return _told(twin) is not None and _unlike(twin, graph) is not None
        return twin.how == ending.how == "error" and _said(twin) == _said(ending)

    def _unlike_stock(self, graph: Graph, ending: Ending) -> str | None:
        twin = self.run(without_asyndm(graph.prompt))
        ours, stock = _told(ending), _told(twin)
        if stock is None:
            return f"stock ComfyUI gives no picture: {twin}"
        self.report.stock += 1
        same = ours["latent"] == stock["latent"]
        return None if same else f"nothing may lag, and it is not the stock picture: {ours} {stock}"


def _counts(endings: Counter[str]) -> str:
    return ", ".join(f"{how} {count}" for how, count in sorted(endings.items()))


def _memory(number: int, held: dict[str, float]) -> str:
    return f"after {number} graphs: " + ", ".join(f"{what} {value:,}" for what, value in held.items())


def _told(ending: Ending) -> dict[str, Any] | None:
    return next((told for told in ending.told.values() if "latent" in told), None)


def _said(ending: Ending) -> str:
    """The first line of an error, without the node."""
    return ending.text.split("\n")[0].partition(": ")[2]


def _unlike(ending: Ending, graph: Graph) -> str | None:
    """What is wrong with a picture: its size, or that it is no numbers."""
    told = _told(ending)
    if told is None:
        return "no result"
    batch, *frames, height, width = graph.size
    expected = {"latent": [batch, 12, *frames, height, width], "image": [batch, 8 * height, 8 * width, 3]}
    for name, shape in expected.items():
        if told[name]["shape"] != shape:
            return f"{name} of {told[name]['shape']} instead of {shape}"
    bad = [name for name, values in told.items() if not values["finite"]]
    return f"{' and '.join(bad)} not finite" if bad else None
