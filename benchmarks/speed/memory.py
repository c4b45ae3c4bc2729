"""How much memory a run holds at its peak."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from unittest.mock import patch


def peak(run: Callable[[], object]) -> int:
    """The most bytes that tensors hold at once, beside those that are there before."""
    return held(run)[0]


def held(run: Callable[[], object]) -> tuple[int, list[int]]:
    """The same, and how many bytes each tensor takes that is made."""
    from torch.profiler import ProfilerActivity, profile

    gc.collect()  # else what was left behind earlier, freed in between, would count as less than nothing
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = profiled.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    sizes = [size for _, size in changes]
    return max(accumulate(sizes)), [size for size in sizes if size > 0]


@contextmanager
def attention_as_on_a_gpu() -> Iterator[None]:
    """PyTorch's own attention, as on a GPU. On a CPU ComfyUI takes one whose memory depends on what is free."""
    import comfy.ldm.modules.attention as attention

    with (
        patch.object(attention, "optimized_attention", attention.attention_pytorch),
        patch.object(attention, "optimized_attention_masked", attention.attention_pytorch),
    ):
        yield


@contextmanager
def room_for_all_conds() -> Iterator[None]:
    """ComfyUI finds all the memory that it asks for. Else it splits a batch of conds by what is free at that moment."""
    import comfy.model_management

    plenty = 2**50
    with patch.object(
        comfy.model_management,
        "get_free_memory",
        lambda dev=None, torch_free_too=False: (plenty, plenty) if torch_free_too else plenty,
    ):
        yield
