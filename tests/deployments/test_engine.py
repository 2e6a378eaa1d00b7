"""What an engine is started with; that it drives vLLM at all is tests/e2e's business."""

from typing import Any

import pytest

pytest.importorskip("vllm")

from deployments.config import PoolConfig
from deployments.engine_args import SCHEDULER, engine_args


def pool(**fields: Any) -> PoolConfig:
    return PoolConfig(model="deployments/pocket/models/small", **fields)


def test_an_engine_with_sessions_has_places_for_them_and_ends_hops_by_itself() -> None:
    own = {"max_num_seqs": 8, "additional_config": {"theirs": 1}}
    args = engine_args(pool(sessions=4, engine=own), "small", ("<think>", "</think>"))
    assert (args.max_num_seqs, args.scheduler_cls) == (12, SCHEDULER)
    assert args.additional_config == {"theirs": 1, "think_tags": ("<think>", "</think>")}


def test_sessions_that_wait_take_no_place_in_the_queue() -> None:
    args = engine_args(pool(sessions=4, engine={"max_num_queued_reqs": 8}), "small", ("<think>", "</think>"))
    assert args.max_num_queued_reqs == 12


def test_an_engine_without_has_vllms_own_scheduler() -> None:
    args = engine_args(pool(engine={"max_num_seqs": 8}), "small")
    assert (args.max_num_seqs, args.scheduler_cls, args.additional_config) == (8, None, {})
