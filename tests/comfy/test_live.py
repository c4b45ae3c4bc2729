"""A run that is watched: the same picture, bit for bit; and its messages go to the browser that queued it, only."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch
from asyndm_pack.asyndm_core.live import Frame, Live
from asyndm_pack.asyndm_core.regions import TimestepMap
from asyndm_pack.nodes.comfy import notices
from asyndm_pack.nodes.comfy.latent_rgb import latent_to_rgb
from asyndm_pack.nodes.comfy.live_view import EVENT, legend
from asyndm_pack.nodes.comfy.sampling import Options, Start, apply
from comfy_process import Server, start
from tiny import FOX_AND_HAT, LEFT, flat, ksampler, latent, model, painted, same

import nodes

COMFYUI = Path(nodes.__file__).parent


class Audience:
    """Watches runs and keeps what it is told."""

    def __init__(self) -> None:
        self.starts: list[Start] = []
        self.frames: list[Frame] = []

    def on_run(self, start: Start) -> Live:
        """``Options.on_run``."""
        self.starts.append(start)
        return Live(start.steps, self.frames.extend, latent_to_rgb(start.latent_format))


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m_sde", "euler_ancestral", "ddim"])
@pytest.mark.parametrize("changes", [{}, {"mode": "synchronous"}, {"mode": "concave"}], ids=str)
def test_watched_is_the_same_picture(sampler: str, changes: dict[str, str]) -> None:
    audience = Audience()
    timestep_map = TimestepMap(FOX_AND_HAT, **changes)
    image = latent(batch=2)
    alone = ksampler(apply(flat(), timestep_map), sampler, image=image)
    watched = ksampler(apply(flat(), timestep_map, Options(on_run=audience.on_run)), sampler, image=image)
    assert same(watched, alone)
    assert [frame.step for frame in audience.frames] == list(range(4))


def test_on_step_and_on_run_are_both_told() -> None:
    audience, steps = Audience(), []
    options = Options(on_run=audience.on_run, on_step=lambda snapshot: steps.append(snapshot.step))
    ksampler(apply(flat(), TimestepMap(FOX_AND_HAT), options))
    assert steps == [0, 1, 2, 3] == [frame.step for frame in audience.frames]


def test_what_is_known_before_a_run() -> None:
    audience = Audience()
    ksampler(apply(flat(), TimestepMap(FOX_AND_HAT), Options(on_run=audience.on_run)), image=latent(batch=3))
    ksampler(apply(flat(), TimestepMap(painted(LEFT)), Options(on_run=audience.on_run)))
    ksampler(apply(flat(), TimestepMap(FOX_AND_HAT, mode="synchronous"), Options(on_run=audience.on_run)))
    first, second, third = audience.starts
    assert (first.steps, first.batch) == (4, 3)
    assert legend(first) == [{"name": "fox", "heat": 0}, {"name": "hat", "heat": 1}]
    assert legend(second) == [{"name": "painted", "heat": None}]
    assert legend(third) == []  # attention is not read for the screen alone: it would cost time
    both = third._replace(words=("hat", "fox"))
    assert legend(both) == [{"name": "hat", "heat": 0}, {"name": "fox", "heat": 1}]


def test_one_model_in_several_samplers_is_several_runs() -> None:
    audience = Audience()
    patched = apply(model(), TimestepMap(FOX_AND_HAT), Options(on_run=audience.on_run))
    ksampler(patched, steps=2)
    ksampler(patched, steps=3)
    assert [start.steps for start in audience.starts] == [2, 3]
    assert [frame.step for frame in audience.frames] == [0, 1, 0, 1, 2]


# --- on a server ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests of this file."""
    with start(COMFYUI, tmp_path_factory.mktemp("comfyui")) as running:
        yield running


def graph(seed: int, preview: bool | None, node: str = "3:7") -> dict[str, Any]:
    """The demo model with AsynDM KSampler as ``node``; preview None leaves the input out, as old workflows do."""
    off = {} if preview is None else {"preview": preview}
    sampler = {"seed": seed, "steps": 5, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    words = {"text": "a green boat on the sea", "targets": "green boat", "threshold": 1.0, "update": "every step"}
    curve = {"curve": "piecewise linear", "strength": 0.7, "mode": "asynchronous"}
    sockets = {"positive": ["words", 0], "negative": ["negative", 0], "latent_image": ["latent", 0]}
    return {
        "demo": {"class_type": "AsynDM_DemoModel", "inputs": {}},
        "words": {"class_type": "AsynDM_CrossAttentionMask", "inputs": {"clip": ["demo", 1], **words}},
        "map": {"class_type": "AsynDM_TimestepMap", "inputs": {"regions": ["words", 1], **curve}},
        "negative": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["demo", 1], "text": ""}},
        "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 2}},
        node: {
            "class_type": "AsynDM_KSampler",
            "inputs": {"model": ["demo", 0], "timestep_map": ["map", 0], **sampler, **sockets, **off},
        },
        "see": {"class_type": "PreviewImage", "inputs": {"images": [node, 2]}},
    }


def graph_of_apply(seed: int, preview: bool | None) -> dict[str, Any]:
    """The same with Apply AsynDM as "3:7" and the stock KSampler."""
    prompt = graph(seed, None)
    stock = prompt.pop("3:7")["inputs"]
    prompt["3:7"] = {"class_type": "AsynDM_Apply", "inputs": {name: stock[name] for name in ("model", "timestep_map")}}
    if preview is not None:
        prompt["3:7"]["inputs"]["preview"] = preview
    prompt["stock"] = {"class_type": "KSampler", "inputs": {**stock, "model": ["3:7", 0]}}
    del prompt["stock"]["inputs"]["timestep_map"]
    prompt["decode"] = {"class_type": "VAEDecode", "inputs": {"samples": ["stock", 0], "vae": ["demo", 2]}}
    prompt["see"]["inputs"]["images"] = ["decode", 0]
    return prompt


def told(
    server: Server, prompt: dict[str, Any], client: str | None = "one", event: str = EVENT
) -> tuple[list[dict], list[dict]]:
    """What two browsers, "one" and "two", are told of a run that ``client`` queues: the messages of ``event``, in order."""

    async def run() -> tuple[list[dict], list[dict]]:
        async with aiohttp.ClientSession() as session:
            one = await session.ws_connect(f"{server.url}/ws?clientId=one")
            two = await session.ws_connect(f"{server.url}/ws?clientId=two")
            body = {"prompt": prompt, "extra_data": {"extra_pnginfo": {"workflow": {"id": "the workflow"}}}}
            answer = await session.post(f"{server.url}/prompt", json={**body, "client_id": client} if client else body)
            number = (await answer.json())["prompt_id"]
            while number not in (history := await (await session.get(f"{server.url}/history/{number}")).json()):
                await asyncio.sleep(0.1)
            assert history[number]["status"]["status_str"] == "success", history[number]["status"]
            return await _ours(one, event), await _ours(two, event)

    return asyncio.run(run())


async def _ours(socket: aiohttp.ClientWebSocketResponse, event: str) -> list[dict]:
    """The messages of ``event`` that wait at a socket, until it is silent."""
    found = []
    while True:
        try:
            message = await socket.receive(timeout=0.5)
        except TimeoutError:
            return found
        if message.type == aiohttp.WSMsgType.TEXT and json.loads(message.data)["type"] == event:
            found.append(json.loads(message.data)["data"])


@pytest.mark.parametrize("make", [graph, graph_of_apply])
def test_only_the_browser_that_queued_is_told(make: Any, server: Server) -> None:
    """Of a node in a subgraph, by its full id."""
    mine, others = told(server, make(1, None))
    assert mine and others == []
    about = {key: mine[0][key] for key in ("node", "workflow", "steps", "batch")}
    assert about == {"node": "3:7", "workflow": "the workflow", "steps": 5, "batch": 2}
    assert mine[0]["legend"] == [{"name": "green boat", "heat": 0}]
    frames = [frame for message in mine for frame in message["frames"]]
    assert [frame["step"] for frame in frames] == list(range(5)) and len({message["run"] for message in mine}) == 1
    assert frames[-1]["planes"] == {"image": [16, 16, 3], "owner": [16, 16], "progress": [16, 16], "heat": [1, 8, 8]}
    data = torch.frombuffer(bytearray(base64.b64decode(frames[2]["data"])), dtype=torch.uint8)
    assert data.numel() == 16 * 16 * 5 + 8 * 8 and data[: 16 * 16 * 3].float().std() > 10


@pytest.mark.parametrize("make", [graph, graph_of_apply])
def test_switched_off_nothing_is_sent(make: Any, server: Server) -> None:
    assert told(server, make(2, False)) == ([], [])


def test_without_a_browser_nothing_is_sent(server: Server) -> None:
    assert told(server, graph(3, True), client=None) == ([], [])


@pytest.mark.parametrize("preview", [True, False])
@pytest.mark.parametrize("make", [graph, graph_of_apply])
def test_the_node_is_told_what_the_log_says(make: Any, preview: bool, server: Server) -> None:
    """Where it is probably a slip, with the preview off too; the browser that queued it, and no other."""
    prompt = make(6, preview)
    prompt["words"]["inputs"]["threshold"] = 0.0
    mine, others = told(server, prompt, event=notices.EVENT)
    ((text, node),) = {(message.pop("text"), message.pop("node")) for message in mine}
    assert node == "3:7" and text.startswith("Only 0.0 % of the picture can run ahead") and others == []
    assert len(mine) == 1 and list(mine[0]) == ["prompt"] and len(mine[0]["prompt"]) == 36
    assert f"AsynDM: {text}" in server.log
    assert told(server, make(6, preview), event=notices.EVENT) == ([], [])


def test_the_node_is_told_of_a_skipped_target(server: Server) -> None:
    """Cross-Attention Mask itself, which is not the node that samples."""
    prompt = graph(7, False)
    prompt["words"]["inputs"] |= {"targets": "wolf, green boat", "lost_targets": "skip"}
    mine, others = told(server, prompt, event=notices.EVENT)
    text = "Targets: green boat (not in the prompt, skipped: wolf)"
    assert [(message["node"], message["text"]) for message in mine] == [("words", text)] and others == []
    assert f"AsynDM: {text}" in server.log


def test_what_is_cached_tells_the_browser_of_now(server: Server) -> None:
    """Apply AsynDM is not executed again, yet its runs are shown where they are queued."""
    told(server, graph_of_apply(4, True), "one")
    mine, others = told(server, graph_of_apply(5, True), "two")
    assert mine == [] and others
