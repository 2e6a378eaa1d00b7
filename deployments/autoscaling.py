"""How many replicas a pool needs, from what its engines report.

Serve's default policy counts ongoing calls. An engine knows more: how many requests wait for room in its batch, how
full its KV cache is, how many prompt tokens are still to be read. The pool gets as many replicas as the most pressing
of these asks for. In a profile:

    autoscaling:
      min_replicas: 0
      max_replicas: 8
      policy: {policy_function: "deployments.autoscaling:EnginePressure", policy_kwargs: {requests: 16}}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from deployments.config import problem


@dataclass(frozen=True, slots=True)
class Pressure:
    """What one engine reports. requests: running and waiting; kv_use: 0..1 of its KV cache; queued_tokens: of
    prompts not read yet."""

    requests: float = 0.0
    kv_use: float = 0.0
    queued_tokens: float = 0.0


class EnginePressure:
    """An autoscaling policy for Serve.

    requests: running and waiting requests that one replica serves well. kv_use: how full its KV cache may be.
    queued_tokens: prompt tokens that may wait for one replica.
    """

    def __init__(self, requests: float = 16.0, kv_use: float = 0.8, queued_tokens: float = 16_384.0) -> None:
        """Raises `ValueError` for what is no positive number."""
        for name, value in (("requests", requests), ("kv_use", kv_use), ("queued_tokens", queued_tokens)):
            if not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"{name}: has to be a number above 0")
        self.good = Pressure(requests, kv_use, queued_tokens)

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        engines = reported(context.aggregated_metrics or {})
        # Hops that no replica has taken yet wait in the routers; without them nobody would wake a pool at rest.
        waiting = float(context.total_queued_requests or 0.0)
        # Replicas that got this policy while they ran report nothing; what the routers count is there all the same.
        unreported = float(context.total_num_requests or 0.0) - sum(engine.requests for engine in engines) - waiting
        return wanted(self.good, engines, waiting + max(0.0, unreported)), {}


def wanted(good: Pressure, engines: list[Pressure], waiting: float) -> float:
    """Replicas that bring every engine down to `good`, given its fellows' load is shared evenly."""
    requests = sum(engine.requests for engine in engines) + waiting
    kv_use = sum(engine.kv_use for engine in engines)
    queued_tokens = sum(engine.queued_tokens for engine in engines)
    most = max(requests / good.requests, kv_use / good.kv_use, queued_tokens / good.queued_tokens)
    return math.ceil(most - 1e-9)


def reported(metrics: Mapping[str, Mapping[Any, float]]) -> list[Pressure]:
    """One `Pressure` per replica from Serve's metrics, which are grouped by name."""
    replicas = {replica for values in metrics.values() for replica in values}
    return [
        Pressure(*(float(metrics.get(name, {}).get(replica, 0.0)) for name in ("requests", "kv_use", "queued_tokens")))
        for replica in replicas
    ]


def check_scaling(told: dict[str, Any]) -> dict[str, Any]:
    """An `autoscaling_config` as it is. Raises `ValueError` in one line: Serve leaves out what it does not know, and a
    policy that it cannot make stops its controller."""
    policy = told.get("policy") or {}
    if not isinstance(policy, dict):
        raise ValueError("policy: has to be a mapping, with `policy_function`")
    for given, known in (told, AutoscalingConfig), (policy, AutoscalingPolicy):
        if unknown := sorted(given.keys() - known.model_fields.keys()):
            raise ValueError(f"{unknown[0]}: no such field of Serve's {known.__name__}")
    for name in "min_replicas", "max_replicas":
        if not isinstance(told.get(name, 1), int):
            raise ValueError(f"{name}: has to be a whole number")
    if policy.get("policy_function") == "deployments.autoscaling:EnginePressure":
        try:
            EnginePressure(**(policy.get("policy_kwargs") or {}))
        except (TypeError, ValueError) as error:
            raise ValueError(f"policy.policy_kwargs: {error}") from None
    try:
        # Without the policy, which Serve would import for it, perhaps from where only a replica finds it.
        AutoscalingConfig.model_validate({name: value for name, value in told.items() if name != "policy"})
    except ValidationError as error:
        raise ValueError(problem(error)) from None
    return told
