"""What the engine makes of vLLM's outputs; that it drives vLLM at all is tests/e2e's business."""

import itertools
import math

import pytest

from router.glimpse import TOP, entropy

pytest.importorskip("vllm")

from vllm.logprobs import FlatLogprobs

from deployments.glimpses import candidates

WEIGHTS = [1 / 2**rank for rank in range(1, TOP + 1)]
RANKED = [math.log(weight) for weight in WEIGHTS]


def told(sampled_rank: int) -> FlatLogprobs:
    """What vLLM tells of one position: the sampled token, then those of rank 1 to 20. A token's ID is its rank."""
    sampled = RANKED[sampled_rank - 1] if sampled_rank <= TOP else -40.0
    one = FlatLogprobs()
    ranks = [sampled_rank, *range(1, TOP + 1)]
    one.append_fast(ranks, [sampled, *RANKED], itertools.chain(ranks), [None] * len(ranks))
    return one


@pytest.mark.parametrize("sampled_rank", [1, 2, TOP, TOP + 1, 500])
def test_the_entropy_is_the_same_however_many_outputs_were_merged(sampled_rank: int) -> None:
    merged = told(3)
    for _ in range(2):
        merged.extend(told(sampled_rank))
    alone = candidates(told(sampled_rank), 0)
    assert sorted(alone) == sorted(RANKED)
    for position in (1, 2):
        assert sorted(candidates(merged, position)) == sorted(alone)
        assert entropy(candidates(merged, position)) == pytest.approx(entropy(RANKED))
