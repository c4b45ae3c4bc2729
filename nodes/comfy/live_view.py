"""Shows a run on its node while it goes on: the frames of ``asyndm_core/live.py``, sent to the browser that queued it."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Callable
from typing import Any

from ...asyndm_core.live import Frame, Live
from .browser import display_node, waiting_browser
from .latent_rgb import latent_to_rgb
from .sampling import Start

EVENT = "asyndm.frames"


def show_on(hidden: Any) -> Callable[[Start], Live | None] | None:
    """``Options.on_run`` that shows runs on the node with these hidden inputs (unique_id, dynprompt).

    None where a node is executed outside of ComfyUI's executor: it has no id then.
    """
    node = display_node(hidden)
    if node is None:
        return None

    def on_run(start: Start) -> Live | None:
        send = _sender(node, start)
        return None if send is None else Live(start.steps, send, latent_to_rgb(start.latent_format), part=start.part)

    return on_run


def legend(start: Start) -> list[dict[str, Any]]:
    """The names of the regions in the order of their colours, each with its place in the heat maps or None.

    The words, where no region was asked for.
    """
    if not start.regions:
        return [{"name": word, "heat": index} for index, word in enumerate(start.words)]
    place = {word: index for index, word in enumerate(start.words)}
    return [{"name": region.name, "heat": place.get(region.word)} for region in start.regions]


def parcel(node: str, start: Start, prompt: str | None, workflow: str | None, run: str) -> dict[str, Any]:
    """What every message of a run says of it."""
    about = {"node": node, "prompt": prompt, "workflow": workflow, "run": run}
    part = {"first": start.part.start, "last": start.part.stop - 1}
    return {**about, "steps": start.steps, **part, "batch": start.batch, "legend": legend(start)}


def packed(frame: Frame) -> dict[str, Any]:
    """A frame as JSON; its bytes as base64."""
    return {**frame._asdict(), "data": base64.b64encode(frame.data.numpy()).decode()}


def _sender(node: str, start: Start) -> Callable[[list[Frame]], None] | None:
    """Sends frames to the browser that queued the running prompt; None without a server or such a browser."""
    browser = waiting_browser()
    if browser is None:
        return None
    about = parcel(node, start, browser.prompt, _workflow(browser.server, browser.prompt), uuid.uuid4().hex)

    def send(frames: list[Frame]) -> None:
        browser.send(EVENT, {**about, "frames": [packed(frame) for frame in frames]})

    return send


def _workflow(server: Any, prompt: str | None) -> str | None:
    """The id of the workflow that a running prompt came from, if its sender said so."""
    running, _ = server.prompt_queue.get_current_queue_volatile()
    for _, prompt_id, _, extra, *_ in running:
        if prompt_id == prompt:
            return ((extra.get("extra_pnginfo") or {}).get("workflow") or {}).get("id")
    return None
