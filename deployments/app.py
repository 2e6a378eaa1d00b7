"""Builds the Serve application from a profile: `serve run deployments/profiles/pocket.yaml`."""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from deployments.config import AppConfig, PoolConfig
from deployments.engine import Engine
from router.deployment import Settings, Shadow, ingress
from router.request import MODELS, Model
from router.service import Defaults

AFFINITY = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
"""Hops of one conversation meet in one replica, where its prefix is cached; a full one passes them to the next."""


def build(args: dict[str, Any]) -> Application:
    """The application: a router in front of two pools. Raises `ConfigError`."""
    return application(args, Engine)


def application(args: dict[str, Any], engine: type) -> Application:
    """The same with pools of `engine`, a class that has `Engine`'s methods."""
    config = AppConfig.read(args)
    pair = config.fingerprint
    pools: dict[Model, PoolConfig] = {"small": config.small, "large": config.large}
    settings = Settings(
        pair=pair,
        models={model: pools[model].path for model in MODELS},
        names={model: pools[model].model for model in MODELS},
        revisions={model: pools[model].revision for model in MODELS},
        think_tags=config.routing.think_tags,
        context_tokens=min(_context_tokens(pool) for pool in pools.values()),
        hop_attempts=config.limits.hop_attempts,
        patience_s={model: config.limits.patience_s for model in MODELS if config.routing.impatient(model)},
        body_bytes=config.limits.body_bytes,
        messages=config.limits.messages,
        max_requests=config.max_requests,
        access=config.access.settings(max_waiting=config.limits.max_waiting, max_wait_s=config.limits.max_wait_s),
        shadow=Shadow(config.shadow.share, config.shadow.idle),
        defaults=Defaults(
            threshold=config.routing.threshold,
            answer_by=config.routing.answer_by,
            max_large_share=config.routing.max_large_share,
            max_tokens=config.limits.max_tokens,
            answer_reserve=config.limits.answer_reserve,
            max_steps=config.limits.max_steps,
            step_tokens=config.limits.step_tokens,
            deadline_s=config.limits.deadline_s,
            dispensable=config.routing.dispensable,
            warm_up_tokens=config.limits.warm_up_tokens,
            target=config.routing.target,
            drafting=frozenset(model for model in MODELS if pools[model].drafts),
            token_threshold=config.routing.token_threshold,
        ),
    )
    engines = {model: _pool(engine, model, pools[model], pair, config.routing.think_tags) for model in MODELS}
    router = serve.deployment(
        name="router",
        max_ongoing_requests=config.router.max_ongoing_requests,
        ray_actor_options={
            "num_cpus": config.router.cpus,
            "resources": config.router.resources,
            "runtime_env": {"env_vars": config.router.env},
        },
        # A router that is replaced ends its requests first.
        graceful_shutdown_timeout_s=config.limits.deadline_s + 30,
        max_surge_percent=100,
        **_scale(config.router.replicas, config.router.autoscaling),
    )(ingress(settings))
    return router.bind(settings, engines["small"], engines["large"])


def _pool(engine: type, model: Model, pool: PoolConfig, pair: str, think_tags: tuple[str, str] | None) -> Application:
    actor: dict[str, Any] = {
        "num_cpus": pool.cpus,
        "num_gpus": pool.gpus_per_replica,
        "resources": pool.resources,
        "runtime_env": {"env_vars": pool.env},
    }
    deployment = serve.deployment(
        name=model,
        max_ongoing_requests=pool.max_ongoing_requests,
        max_queued_requests=pool.max_queued_requests,
        request_router_config=RequestRouterConfig(**_hop_routing(pool)),
        ray_actor_options=actor,
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=30,
        max_surge_percent=pool.surge_percent,
        **_scale(pool.replicas, pool.autoscaling),
    )(engine)
    return deployment.bind(model, pool, pair, think_tags)


def _hop_routing(pool: PoolConfig) -> dict[str, Any]:
    return {"request_router_class": AFFINITY} if pool.affinity else {}


def _scale(replicas: int, autoscaling: dict[str, Any] | None) -> dict[str, Any]:
    return {"autoscaling_config": autoscaling} if autoscaling else {"num_replicas": replicas}


def _context_tokens(pool: PoolConfig) -> int:
    if pool.max_model_len:
        return pool.max_model_len
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(pool.path, revision=pool.revision).max_position_embeddings)
