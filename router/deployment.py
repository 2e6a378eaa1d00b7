"""The router as a Serve deployment: many alike, none of which remembers anything."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve._private.logging_utils import get_serve_logs_dir
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle

from router.api.routes import build
from router.metrics import metrics
from router.observation import write_requests_to
from router.pools import ServedPool
from router.request import MODELS, Model, Service
from router.service import Defaults, StepRouter
from router.shadow import Comparison, Shadowed
from router.telemetry import Observed
from router.tenancy.settings import Access
from router.tenancy.tenancy import Tenancy
from router.tenancy.tenanted import Tenanted
from router.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Shadow:
    """What share of the routed requests the large model is asked as well, while its load is no higher than `idle`."""

    share: float
    idle: float


@dataclass(frozen=True, slots=True)
class Settings:
    """What a router replica is told. `models` are folders or hub IDs, `names` what clients see of them.

    context_tokens: the shorter context of the two models. patience_s: for pools that need not be waited for.
    """

    pair: str
    models: Mapping[Model, str]
    names: Mapping[Model, str]
    revisions: Mapping[Model, str | None]
    think_tags: tuple[str, str] | None
    context_tokens: int
    hop_attempts: int
    patience_s: Mapping[Model, float]
    body_bytes: int
    messages: int
    max_requests: int
    access: Access
    shadow: Shadow
    defaults: Defaults


class Tuning(BaseModel):
    """What may change while the system runs: the router's `user_config` in a profile. What is left out is as in
    `args`; requests under way keep what they began with."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    threshold: float | None = Field(default=None, ge=0)
    token_threshold: float | None = Field(default=None, ge=0)
    answer_by: Literal["large", "small"] | None = None
    max_large_share: float | None = Field(default=None, ge=0, le=1)


def ingress(settings: Settings) -> type:
    """The router class, its HTTP routes bound to `settings`' limits."""

    def app() -> FastAPI:
        # Serve's proxy stamps x-request-id on every response itself.
        return build(
            lambda: _replica().service,
            max_body_bytes=settings.body_bytes,
            max_messages=settings.messages,
            stamp_request_id=False,
            gate=lambda: _replica().tenancy.gate,
            ledger=lambda: _replica().tenancy.ledger,
        )

    @serve.ingress(app)
    class Router:
        def __init__(self, settings: Settings, small: DeploymentHandle, large: DeploymentHandle) -> None:
            handles: dict[Model, DeploymentHandle] = {"small": small, "large": large}
            write_requests_to(get_serve_logs_dir(), serve.get_replica_context().replica_id.unique_id)
            self.tenancy = Tenancy.open(settings.access, host=_http_host(), places=settings.max_requests)
            pools = {
                model: ServedPool(
                    model,
                    handles[model],
                    attempts=settings.hop_attempts,
                    patience_s=settings.patience_s.get(model),
                )
                for model in MODELS
            }
            self.router = StepRouter(
                settings.pair, _vocabularies(settings), pools, settings.context_tokens, settings.defaults
            )
            self.service: Service = Observed(self._shadowed(Tenanted(self.router, self.tenancy), pools["large"]))
            metrics().target = settings.defaults.max_large_share
            if (controller := self.router.controller) is not None:
                metrics().spared = lambda: controller.spared

        def _shadowed(self, service: Service, large: ServedPool) -> Service:
            if not settings.shadow.share:
                return service
            return Shadowed(
                service,
                self.router,
                share=settings.shadow.share,
                idle=lambda: large.idle(settings.shadow.idle),
                busy=lambda: large.wanted,
                keep=self._keep,
            )

        async def _keep(self, compared: Comparison) -> None:
            metrics().compared(compared)
            if (accounts := self.tenancy.accounts) is not None:
                await asyncio.to_thread(accounts.comparisons.add, compared)

        async def check_health(self) -> None:
            """Called by Serve on the event loop, from the start on: what runs beside requests begins here."""
            self.tenancy.start()

        async def pair(self) -> str:
            """The fingerprint of the models that it was started with, which may have changed on disk since."""
            return self.router.pair.fingerprint

        async def __del__(self) -> None:
            """Called by Serve when the router's last request has ended."""
            if (tenancy := getattr(self, "tenancy", None)) is not None:
                await tenancy.stop()

        def reconfigure(self, user_config: Mapping[str, Any] | None, rank: object = None) -> None:
            """rank: not wanted, but where it is taken Serve calls this when there is no `user_config` any more, too."""
            tuning = Tuning.model_validate(user_config or {})
            defaults = replace(settings.defaults, **tuning.model_dump(exclude_none=True))
            self.router.tune(defaults)
            metrics().target = defaults.max_large_share

    return Router


def _replica() -> Any:
    return serve.get_replica_context().servable_object


def _http_host() -> str | None:
    """Where Serve's proxies listen; None if they don't."""
    client = _get_global_client()
    return None if client is None else client.http_config.host


def _vocabularies(settings: Settings) -> dict[Model, Vocabulary]:
    return {
        model: Vocabulary.load(
            settings.models[model],
            name=settings.names[model],
            revision=settings.revisions[model],
            think_tags=settings.think_tags,
        )
        for model in MODELS
    }
