"""Profiles for models too large to be tried here: everything about them that can be checked without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.config import AppConfig

PROFILES = Path(__file__).resolve().parents[2] / "deployments" / "profiles"
GIB = 1 << 30

# Layers, KV heads, head size, parameters in billions: the models' public configurations.
QWEN3_4B = (36, 8, 128, 4.02)
QWEN3_32B = (64, 8, 128, 32.76)


def read(name: str) -> AppConfig:
    """Without a look for folders: not every profile's models are on this machine."""
    return AppConfig.model_validate(raw(name)["applications"][0]["args"])


def raw(name: str) -> dict[str, Any]:
    return yaml.safe_load((PROFILES / name).read_text())


@pytest.mark.parametrize("name", sorted(path.name for path in PROFILES.glob("*.yaml")))
def test_is_a_serve_config_that_the_builder_takes(name):
    from ray.serve.config import AutoscalingConfig
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(raw(name))
    assert [application.import_path for application in config.applications] == ["deployments.app:build"]
    args = read(name)
    parts = {"small": args.small, "large": args.large, "router": args.router}
    scales = [(name, part.autoscaling) for name, part in parts.items()]
    scales += [(one.name, one.autoscaling_config) for one in config.applications[0].deployments]
    for part, scale in scales:
        if isinstance(scale, dict):
            AutoscalingConfig.model_validate(scale)
            assert scale.keys() <= AutoscalingConfig.model_fields.keys()
            assert scale["target_ongoing_requests"] <= parts[part].max_ongoing_requests


@pytest.mark.parametrize("name", sorted(path.name for path in PROFILES.glob("*.yaml")))
def test_engine_arguments_are_vllms(name):
    from vllm.engine.arg_utils import AsyncEngineArgs

    known = AsyncEngineArgs.__dataclass_fields__.keys()
    for pool in (read(name).small, read(name).large):
        assert pool.engine.keys() <= known


@pytest.mark.parametrize("name", ["qwen3-one-gpu.yaml", "qwen3-deepseek.yaml", "qwen3-deepseek-cluster.yaml"])
def test_the_builder_reads_hub_ids(name):
    config = AppConfig.read(raw(name)["applications"][0]["args"])
    assert config.small.path == "Qwen/Qwen3-4B-Thinking-2507"
    assert config.fingerprint


def test_two_engines_fit_on_one_gpu():
    config, usable = read("qwen3-one-gpu.yaml"), 139 * GIB
    assert (config.small.gpus or 0) + (config.large.gpus or 0) == pytest.approx(1)
    spare = 0.0
    for pool, (layers, heads, size, billions) in ((config.small, QWEN3_4B), (config.large, QWEN3_32B)):
        share = pool.engine["gpu_memory_utilization"] * usable
        kv = pool.engine["kv_cache_memory_bytes"]
        assert pool.dtype == "bfloat16"
        spare_here = share - billions * 2e9 - kv
        assert spare_here > 2 * GIB, "kernels, activations and CUDA graphs need room"
        per_token = layers * 2 * heads * size * 2
        assert kv % per_token == 0
        assert kv // per_token >= 4 * (pool.max_model_len or 0)
        spare += spare_here
    assert sum(pool.engine["gpu_memory_utilization"] for pool in (config.small, config.large)) <= 0.97


def test_one_machine_and_the_cluster_serve_the_same_pair():
    alone, many = read("qwen3-deepseek.yaml"), read("qwen3-deepseek-cluster.yaml")
    for one, other in ((alone.small, many.small), (alone.large, many.large)):
        placed = {"cpus": other.cpus, "resources": other.resources, "autoscaling": other.autoscaling}
        assert one.model_copy(update=placed) == other
    assert (alone.routing, alone.limits) == (many.routing, many.limits)
    assert alone.fingerprint == many.fingerprint


def test_the_embedded_pair_is_the_same_on_a_cluster():
    alone, many = read("pocket.yaml"), read("pocket-cluster.yaml")
    for one, other in ((alone.small, many.small), (alone.large, many.large)):
        for field in ("model", "revision", "dtype", "max_model_len", "engine", "sampling", "env"):
            assert getattr(one, field) == getattr(other, field), field
    assert (alone.routing, alone.limits) == (many.routing, many.limits)
