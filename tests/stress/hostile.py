"""Input that nobody means well: values of every kind in every input of every node, and prompts that are none.

Each must be refused with words that help, or end in a picture; soon, and without a trace.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

from .graphs import Maker, Prompt, inputs_of
from .runner import Runner
from .verdicts import Ending

MEGABYTE = 10**6
WORDS = "a red boat and "
VALUES: dict[str, Any] = {
    "null": None, "true": True, "empty": "", "space": " \n\t", "word": "boat", "path": "../../../etc/passwd",
    "windows path": "C:\\Windows\\..\\*", "control": "\x00\x01\x1b[31m\x7f boat", "right to left": "قارب \u202eboat\u202c",
    "emoji": "👩‍👩‍👧 boat 🦊", "combining": "b" + "\u0301" * 50 + "oat", "lone surrogate": "boat \ud800",
    "format": "{0} %s ${x} boat", "html": "<script>alert(1)</script>", "zero": 0,
    "minus one": -1, "one and a half": 1.5, "huge": 10**30, "minus huge": -(10**30),
    "largest float": 1.7e308, "smallest float": 5e-324, "nan": float("nan"), "infinity": float("inf"),
    "minus infinity": float("-inf"), "seed + 1": 2**64, "list": [], "one": [1], "three": ["1", 0, 0], "dict": {},
    "value": {"__value__": [1, 2]}, "missing node": ["999", 0], "slot 99": ["1", 99], "slot -1": ["1", -1],
    "slot name": ["1", "model"], "slot null": ["1", None], "nested": [[[[[[]]]]]],
}  # fmt: skip
TEXTS: dict[str, str] = {
    "1 MB of words": (WORDS * (MEGABYTE // len(WORDS) + 1))[:MEGABYTE],
    "1 MB of one letter": "a" * MEGABYTE,
    "1 MB of digits": ":" + "1" * MEGABYTE,
    "1 MB of colons": ": " * (MEGABYTE // 2),
    "1 MB of brackets": "(" * MEGABYTE,
    "1 MB of commas": "," * MEGABYTE,
    "10,000 words": ", ".join(f"boat{n}" for n in range(10_000)),
    "19,000 brackets": "(" * 19_000,
    "15 kB of digits": "boat:" + "1" * 15_000 + "x",
    "15 kB of words": (WORDS * 1000)[:15_000],
    "250 words": ", ".join(f"boat{n}" for n in range(250)),
    "embeddings": "embedding:../../etc/passwd embedding: embedding:" + "x" * 300,
}
OURS = ("AsynDM_CrossAttentionMask", "AsynDM_TimestepMap", "AsynDM_KSampler", "AsynDM_Apply", "AsynDM_Compare")
STOCK_SOCKETS = ("MODEL", "CLIP", "CONDITIONING", "LATENT", "IMAGE")
"""What comes out of these is ComfyUI's own; where it is no such thing (but not nothing), its nodes fail as ours do."""


def graph(info: dict[str, Any]) -> tuple[Prompt, dict[str, str]]:
    """A small valid prompt with every node of the pack; and the name of each node in it."""
    maker = Maker(info, "hostile")
    demo = maker.add("AsynDM_DemoModel")
    clip, vae = maker.output(demo, 1), maker.output(demo, 2)
    mask = maker.add("Stress_Mask", kind="noisy")
    text = maker.add("CLIPTextEncode", clip=clip, text="a red boat")
    words = maker.add("AsynDM_CrossAttentionMask", clip=clip, text="a red boat", targets="boat", conditioning=text, mask=mask,
                      mask_mode="add")  # fmt: skip
    first = maker.add("AsynDM_TimestepMap", regions=maker.output(words, 1))
    table = maker.add("BasicScheduler", model=demo, steps=1)
    timestep_map = maker.add("AsynDM_TimestepMap", regions=maker.output(words, 1), previous=first, sigmas=table)
    latent = maker.add("EmptyLatentImage", width=64, height=64, batch_size=1)
    common = {"steps": 1, "positive": words, "negative": text, "latent_image": latent}
    ours = maker.add("AsynDM_KSampler", model=demo, timestep_map=timestep_map, sampler_name="ddim", **common)
    applied = maker.add("AsynDM_Apply", model=demo, timestep_map=timestep_map)
    stock = maker.add("KSampler", model=applied, **common)
    images = [maker.add("VAEDecode", samples=sampled, vae=vae) for sampled in (ours, stock)]
    compare = maker.add("AsynDM_Compare", image_a=images[0], image_b=images[1])
    for sampled, image in zip((ours, stock), images, strict=True):
        maker.add("Stress_Result", latent=sampled, image=image)
    maker.add("AsynDM_DemoModel", network="transformer")  # see Maker.demos
    links = dict(zip(OURS, (words, timestep_map, ours, applied, compare), strict=True))
    return maker.graph.prompt, {kind: link[0] for kind, link in links.items()}


def _linked(inputs: dict[str, Any]) -> set[str]:
    return {value[0] for value in inputs.values() if isinstance(value, list) and value and isinstance(value[0], str)}


def without(prompt: Prompt, gone: set[str]) -> Prompt:
    """The prompt without some nodes, and without what depends on them."""
    while more := {node for node, about in prompt.items() if node not in gone and _linked(about["inputs"]) & gone}:
        gone |= more
    return {node: about for node, about in prompt.items() if node not in gone}


def changed(info: dict[str, Any], kind: str, name: str, value: Any) -> Prompt:
    """The small prompt with one input of one node changed."""
    prompt, names = graph(info)
    inputs = prompt[names[kind]]["inputs"]
    if kind == "AsynDM_CrossAttentionMask" and name == "text":
        del inputs["conditioning"]  # else it is only annotated
    inputs[name] = value
    # What does not depend on that node need not run.
    away = {"AsynDM_Apply": ("AsynDM_KSampler",), "AsynDM_Compare": ()}.get(kind, ("AsynDM_Apply", "AsynDM_Compare"))
    return without(prompt, {names[other] for other in away})


def cases(info: dict[str, Any]) -> Iterator[tuple[str, Prompt, bool]]:
    """What is wrong, the prompt, and whether an error of ComfyUI's kind is to be expected."""
    anything = inputs_of(info["Stress_Anything"])["kind"][0]
    for kind in OURS:
        for name, spec in inputs_of(info[kind]).items():
            socket = spec[0] in STOCK_SOCKETS  # what passes for one is ComfyUI's to judge
            for label, value in VALUES.items():
                excused = socket and label in ("one", "value", "dict")
                yield f"{kind}.{name} = {label}", changed(info, kind, name, value), excused
            if spec[0] == "STRING":
                for label, value in TEXTS.items():
                    yield f"{kind}.{name} = {label}", changed(info, kind, name, value), False
            for wrong in anything:
                prompt = changed(info, kind, name, ["any", 0])
                prompt["any"] = {"class_type": "Stress_Anything", "inputs": {"kind": wrong}}
                yield f"{kind}.{name} <- {wrong}", prompt, socket and wrong != "nothing"
            for label, source in (("wrong socket", ["3", 0]), ("itself", [graph(info)[1][kind], 0])):
                yield f"{kind}.{name} <- {label}", changed(info, kind, name, source), False
            prompt, names = graph(info)
            del prompt[names[kind]]["inputs"][name]
            yield f"{kind}.{name} is missing", prompt, False
        yield f"{kind} with an unknown input", changed(info, kind, "unknown", "../../etc/passwd"), False


def bodies(info: dict[str, Any]) -> dict[str, bytes]:
    """Requests that are no prompts.

    No request has a valid output beside an invalid one: ComfyUI's worker ends where a node that it need not run has no
    inputs.
    """
    prompt, names = graph(info)
    prompt = without(prompt, {names["AsynDM_KSampler"]})

    def with_class(kind: Any) -> Any:
        return {"prompt": {**prompt, names["AsynDM_Apply"]: {"class_type": kind, "inputs": {}}}}

    def next_map(previous: str) -> dict[str, Any]:
        inputs = prompt[names["AsynDM_TimestepMap"]]["inputs"]
        return {"class_type": "AsynDM_TimestepMap", "inputs": {**inputs, "previous": [previous, 0]}}

    cycle = {"a": next_map("b"), "b": next_map("a")}
    chain = {**prompt}
    for n in range(200):
        chain[f"chain {n}"] = next_map(f"chain {n - 1}" if n else names["AsynDM_TimestepMap"])
    chain[names["AsynDM_Apply"]] = {"class_type": "AsynDM_Apply", "inputs": {
        **prompt[names["AsynDM_Apply"]]["inputs"], "timestep_map": ["chain 199", 0]}}  # fmt: skip
    told = {
        "empty": b"", "half": b'{"prompt": {"1"', "list": b"[]", "null": b"null", "number": b"1e999", "bytes": b"\xff\xfe\x00",
        "100,000 brackets": b"[" * 100_000, "100,000 nested": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    }  # fmt: skip
    others: dict[str, Any] = {
        "no prompt": {}, "prompt null": {"prompt": None}, "prompt list": {"prompt": []}, "prompt text": {"prompt": "x"},
        "node list": {"prompt": {"1": []}}, "node null": {"prompt": {"1": None}}, "no class": {"prompt": {"1": {"inputs": {}}}},
        "class null": with_class(None), "class number": with_class(5), "class list": with_class([]),
        "class path": with_class("../../AsynDM_Apply"), "class unknown": with_class("AsynDM_KSampler2"),
        "inputs list": {"prompt": {**prompt, names["AsynDM_Apply"]: {"class_type": "AsynDM_Apply", "inputs": []}}},
        "inputs missing": {"prompt": {**prompt, names["AsynDM_Apply"]: {"class_type": "AsynDM_Apply"}}},
        "cycle": {"prompt": {**prompt, **cycle, names["AsynDM_Apply"]: {
            "class_type": "AsynDM_Apply", "inputs": {"model": ["1", 0], "timestep_map": ["a", 0]}}}},
        "chain of 200 maps": {"prompt": chain},
        "extra data text": {"prompt": prompt, "extra_data": {"extra_pnginfo": {"workflow": {"id": ["../.."]}}}},
    }  # fmt: skip
    return {**told, **{label: json.dumps(body).encode() for label, body in others.items()}}


def run(runner: Runner, every: int = 1) -> list[str]:
    """All cases (or every n-th), all requests; the finds. Prints how many ended how, and the slowest."""
    finds: list[str] = []
    endings: dict[str, int] = {}
    slowest: list[tuple[float, str]] = []
    runner.check("before hostile input")

    def judge(what: str, ending: Ending, seconds: float, excused: bool) -> None:
        how = ending.how
        if how == "error" and excused:
            how = "error as in ComfyUI's own nodes"
        endings[how] = endings.get(how, 0) + 1
        slowest.append((seconds, what))
        if how in ("error", "injected", "cancelled"):
            finds.append(f"{what}: {ending.text}")
        elif how == "invalid" and ending.kind not in ("400", "500"):
            finds.append(f"{what}: {ending}")
        elif how == "picture" and not all(v["finite"] for told in ending.told.values() for v in told.values()):
            finds.append(f"{what}: a picture that is no numbers")
        elif how == "refused" and len(ending.text) > 1500:
            finds.append(f"{what}: a message of {len(ending.text)} characters")

    for number, (what, prompt, excused) in enumerate(cases(runner.info)):
        if number % every:
            continue
        began = time.monotonic()
        ending = runner.run(prompt)
        judge(what, ending, time.monotonic() - began, excused)
        if ending.how == "invalid" and ending.kind == "500":
            finds.append(f"{what}: the server fails: {ending.text[:300]}")
        if number % (50 * every) == 0:
            runner.check(what)
    for what, body in bodies(runner.info).items():
        began = time.monotonic()
        status, answer = runner.send("/prompt", body)
        ending = Ending("invalid", str(status), str(answer)[:300])
        if "prompt_id" in answer:
            ending = runner.wait(answer["prompt_id"])
        judge(f"request: {what}", ending, time.monotonic() - began, False)
        runner.check(f"request: {what}")
    lines = [f"hostile input, {sum(endings.values())} cases: " + ", ".join(f"{how} {n}" for how, n in sorted(endings.items()))]
    lines += ["slowest: " + ", ".join(f"{what} {seconds:.1f} s" for seconds, what in sorted(slowest)[:-6:-1])]
    print("\n".join([*lines, f"finds: {len(finds)}", *finds]), flush=True)
    return finds
