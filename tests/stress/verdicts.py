"""How a prompt ended, told from what the server says of it: a picture, a refusal that helps, a fault that was put in."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

INJECTED = "injected by the stress test"

REFUSALS = {
    "sampler": r"^The sampler '\w+' has no formula for pixels .* Set sampler_name to one of: \w+, ",
    "unknown word": r"^The target '.*' is not in the prompt\. Words of the prompt: .* Correct the widget targets of Cross-Att",
    "twice": r"^The target '.*' is listed twice in the widget targets: name it once",
    "strength": r" is \S+: a strength is between 0 .* and 1 ",
    "empty prompt": r"^The prompt is empty.* Write one in the widget text of Cross-Attention Mask",
    "no content": r"^No content word was found in the prompt .* Name one in the widget targets",
    "unmarked": r"^The positive conditioning does not say which of its tokens are .* Connect the output conditioning of Cross-",
    "another text": r"^The conditioning does not have .* as the text of Cross-Attention Mask has: .* Give the node the same",
    "often": r"^The target '.*' is \d+ times in the prompt: at most \d+ are followed\. Name another word in the widget targets",
    "mask values": r"^The mask has values that are not numbers .* check the node that made it",
    "mask shape": r"^The mask has shape .*: expected \(height, width\) or \(batch, height, width\)",
    "tiles": r"^Another node samples the model on latents of .* Bypass that node, or switch AsynDM off",
    "paper": r"^The paper preset (needs at least 2 steps .* Set the scheduler to ddim_uniform|starts all pixels at the same"
    r"|knows nothing of clean pixels)",
    "several prompts": r"^The positive conditioning holds \d+ different prompts, .* Sample the prompts one after another",
    "chain": r"^Chained timestep maps disagree on \w+ .* Set the same on all of them",
    "noise": r"the sampler adds no noise .* Enable it, or set both to 1",
    "whole table": r"has a table of sigmas for several samplers, .* set the greater to 1 .*, or disconnect sigmas\.$",
    "uncond": r"^The sampler \w+ needs the unconditional prediction, and the guider gives none\. Use a guider with a negative",
    "rises": r"^The table of sigmas rises in step \d+ .* Sort the sigmas downwards",
    "no numbers": r"^The table of sigmas has values that are not numbers .* Set more steps or another scheduler, or ",
    "another table": r"^The table of sigmas begins at .* end at 1: .* Use a scheduler node that takes the model, .*, or ",
    "option": r"^The sampler \w+ has no per-pixel option .* It has: ",
    "model": r"^AsynDM does not support .* Use another checkpoint, or switch AsynDM off",
    "number": r"^\w+ of [\w\- ]+ is .*: it is a number between \S+ and \S+$",
    "choice": r"^\w+ of [\w\- ]+ is .*: it is one of [\w ]+, ",
    "socket": r"^The input \w+ of [\w\- ]+ got .*: (check (the node that is linked to it|its link)|connect a table of sigmas)",
    "long": r"^The widget \w+ of Cross-Attention Mask holds \d+ characters: at most \d+ are taken\. Shorten it",
    "half a character": r"^The widget \w+ of Cross-Attention Mask holds half a character .* type it anew",
    "many": r"^There are \d+ targets: at most \d+ can be followed\. Name the 1 to 3 things that matter in the widget targets",
    "no clip": r"^The input clip is empty: .* Load CLIP",
}
"""What AsynDM refuses, by kind. Each message says what came and what was expected, and which node or widget to change."""


@dataclass(frozen=True)
class Ending:
    """How a prompt ended.

    how: "picture", "refused" (by AsynDM), "invalid" (by ComfyUI, before it ran), "injected" (the fault that was put in),
    "cancelled", or "error" (anything else). kind: of a refusal. text: of an error. told: what the Result nodes told.
    cached: the nodes that were not executed.
    """

    how: str
    kind: str = ""
    text: str = ""
    told: dict[str, dict[str, Any]] = field(default_factory=dict)
    cached: frozenset[str] = frozenset()


def refusal(message: str) -> str | None:
    """The kind of a refusal by its message, or None if it is none that is known."""
    return next((kind for kind, pattern in REFUSALS.items() if re.search(pattern, message, re.DOTALL)), None)


def ending_of(entry: dict[str, Any]) -> Ending:
    """How a prompt ended, by its entry in /history."""
    messages = {name: data for name, data in entry["status"]["messages"]}
    cached = frozenset(messages.get("execution_cached", {}).get("nodes", ()))
    if "execution_interrupted" in messages:
        return Ending("cancelled", cached=cached)
    if "execution_error" in messages:
        error = messages["execution_error"]
        message, kind = error["exception_message"].strip(), error["exception_type"]
        if INJECTED in message:
            return Ending("injected", "oom" if "OutOfMemory" in kind else "error", message)
        known = refusal(message)
        if known and kind.endswith(("ValueError", "UnknownWordError", "UnsupportedSampler", "UnsupportedModelError")):
            return Ending("refused", known, message)
        where = "".join(error["traceback"][-2:])
        return Ending("error", text=f"{error['node_type']}: {kind}: {message[:600]}\n{where}")
    told = {node: output["stress"][0] for node, output in entry["outputs"].items() if "stress" in output}
    return Ending("picture", told=told, cached=cached)
