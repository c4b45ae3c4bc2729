"""Words, a painted region added to them, and chained maps through the nodes: a batch is what its pictures are alone."""

from __future__ import annotations

import pytest
import torch
from asyndm_pack.asyndm_core.regions import TimestepMap
from asyndm_pack.nodes.apply import Apply
from asyndm_pack.nodes.cross_attention_mask import CrossAttentionMask
from asyndm_pack.nodes.timestep_map import TimestepMapNode
from tiny import clip, difference, ksampler, latent, model, painted
from torch import Tensor

TEXT = "a red fox with a hat"
MASKS = torch.zeros(2, 64, 64)
MASKS[0, 8:40, 24:] = 1
MASKS[1, :, :24] = 0.6


def chained(words_mask: Tensor, over: Tensor, update: str) -> tuple[list, TimestepMap]:
    """Cross-Attention Mask with a painted region beside its words, and a second painted map after it."""
    conditioning, regions = CrossAttentionMask.execute(
        clip(), TEXT, "fox, hat:0.4", 1.0, update, mask=words_mask, mask_mode="add"
    ).result
    first = TimestepMapNode.execute(regions, "quadratic", 0.6, "asynchronous").result[0]
    second = painted(*over, strength=0.9)
    return conditioning, TimestepMapNode.execute(second, "exponential", 0.9, "asynchronous", first).result[0]


@pytest.mark.parametrize("update", ["every step", "fixed"])
def test_a_batch_item_equals_its_solo_run(update: str) -> None:
    def run(rows: list[int]) -> Tensor:
        conditioning, timestep_map = chained(MASKS[rows], MASKS[rows].flip(-1, -2), update)
        patched = Apply.execute(model(), timestep_map, preview=False).result[0]
        image = latent(16, 16, batch=2)
        image = {"samples": image["samples"][rows], "batch_index": rows}
        return ksampler(patched, positive=conditioning, image=image)

    together = run([0, 1])
    assert difference(together[:1], together[1:]) > 0.01
    for index in range(2):
        assert difference(together[index : index + 1], run([index])) < 1e-4
