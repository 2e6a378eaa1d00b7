"""What a client asks for and what it is told while the answer is written.

These are the words between the API (JSON, SSE) and the step loop (token IDs): the API turns a body into a
`Request` and turns the events below back into a body. Nothing here knows HTTP, Serve or vLLM.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from router.tenancy.tenant import Caller

Model = Literal["small", "large"]
Voice = Literal["reasoning", "content"]
FinishReason = Literal["stop", "length"]
ModelName = Literal["glimpse", "small", "large"]
MODELS: tuple[Model, Model] = ("small", "large")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. `None` means the model's own default (its generation_config.json).

    `stop` holds strings that end the answer; they never cut the reasoning (design rule 6).
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Routing:
    """Who writes which step.

    mode: `routed` asks the entropy gate, `small` and `large` are one model alone, `random` hands each step to
        the large model with probability `random_share` (the control in every comparison).
    threshold: the gate in nats; a step whose first-token entropy is above it is the large model's. None: the
        profile's.
    token_threshold: nats; a token whose entropy is above it, wherever it stands in a step, is the large model's, by
        itself. None: the profile's, which may have none.
    answer_by: who writes the answer after the thinking; None: the profile's.
    max_large_share: bound on the large model's share of the tokens committed so far, 0..1.
    """

    mode: Literal["routed", "small", "large", "random"] = "routed"
    threshold: float | None = None
    token_threshold: float | None = None
    answer_by: Model | None = None
    max_large_share: float | None = None
    random_share: float | None = None

    @property
    def model(self) -> ModelName:
        """The API's name for the mode, without a threshold."""
        return self.mode if self.mode in ("small", "large") else "glimpse"


@dataclass(frozen=True, slots=True)
class Request:
    """One generation. Exactly one of `messages` (a chat, rendered with each model's own template) and `prompt`
    (raw text or token IDs in the small model's vocabulary, continued as it is) is given.

    max_tokens: limit on committed tokens, reasoning and answer together; None: the profile's.
    streaming: whether the client reads pieces as they come (else hops answer once, which costs less).
    glimpses: whether entropies are wanted even where no gate needs them.
    timeout_s: seconds until the deadline; None: the profile's.
    tenant: whose prefix cache entries may be shared (`cache_salt`).
    conversation: key of the replica that should hold its prefix; empty: derived from the leading messages.
    special_tokens: whether a raw text begins with what its model was trained to see first.
    caller: who it comes from; None where nobody asked. most_tokens, context_tokens: bounds of its own that hold
        beside the profile's, on what it gets if it names no limit and on prompt and output together.
    """

    id: str
    routing: Routing = field(default_factory=Routing)
    sampling: Sampling = field(default_factory=Sampling)
    messages: Sequence[Mapping[str, object]] | None = None
    prompt: str | Sequence[int] | None = None
    special_tokens: bool = True
    max_tokens: int | None = None
    streaming: bool = False
    glimpses: bool = False
    timeout_s: float | None = None
    tenant: str = ""
    conversation: str = ""
    caller: Caller | None = None
    most_tokens: int | None = None
    context_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of text for the client, in order; never half a character."""

    voice: Voice
    text: str


@dataclass(frozen=True, slots=True)
class StepWritten:
    """A finished step. `model` wrote most of it. `entropy` is the small model's, in nats, at the step's first token;
    None where nobody glimpsed. `prefix_tokens` is the length of the prefix of the hop in which it ended;
    `cached_tokens` of these were in that replica's KV cache."""

    index: int
    model: Model
    entropy: float | None
    tokens: int
    cached_tokens: int
    prefix_tokens: int
    duration_ms: float
    text: str
    large_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ModelUsage:
    """Tokens of one model. Prompt tokens count once per model that was used; `cached_tokens` of them were found
    in its KV cache by its first hop (design rule 12)."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a request, with its account. `usage` has an entry for each model that was used; `large_share_spent`
    says that the small model wrote what was the large one's, `degraded` which model was not to be had."""

    finish_reason: FinishReason
    usage: Mapping[Model, ModelUsage]
    reasoning_tokens: int
    discarded_tokens: int
    threshold: float | None
    escalations: int
    hops: int
    resumed_hops: int
    pair: str
    large_share_spent: bool = False
    degraded: str | None = None
    token_threshold: float | None = None

    @property
    def prompt_tokens(self) -> int:
        return sum(used.prompt_tokens for used in self.usage.values())

    @property
    def completion_tokens(self) -> int:
        return sum(used.completion_tokens for used in self.usage.values())

    @property
    def cached_tokens(self) -> int:
        return sum(used.cached_tokens for used in self.usage.values())

    @property
    def large_token_share(self) -> float:
        large = self.usage.get("large", ModelUsage()).completion_tokens
        return large / self.completion_tokens if self.completion_tokens else 0.0


Event = Text | StepWritten | Finished


@dataclass(frozen=True, slots=True)
class Pair:
    """What /v1/models tells of the served pair."""

    fingerprint: str
    names: Mapping[Model, str]
    thinks: bool
    handover: Literal["ids", "mapped", "text"]
    context_tokens: int
    threshold: float
    answer_by: Model
    token_threshold: float | None = None


class Service(Protocol):
    """What the API needs of the router behind it."""

    @property
    def pair(self) -> Pair: ...

    def write(self, request: Request) -> AsyncGenerator[Event]:
        """Events in order, `Finished` last. Closing the generator cancels the request in both engines. Raises a
        `Refusal` before the first event if the request can't be served, or later if it fails half-way."""
        ...

    async def ready(self) -> str | None:
        """None when both pools can answer (or be woken), else one line that says what is missing."""
        ...


class Refusal(Exception):
    """A request that is not (or no longer) served, in the words the client gets.

    status: the HTTP status; param: the offending field, if one; code: a stable machine-readable word.
    retry_after_s: when trying again makes sense, for 429 and 503.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code
        self.retry_after_s = retry_after_s


def overdue() -> Refusal:
    """Of a request that took too long."""
    return Refusal("The request's deadline has passed.", status=504, code="deadline")


class Unavailable(Refusal):
    """A pool that can't answer now: no replica is up, or they keep failing."""

    def __init__(self, model: Model) -> None:
        self.model = model
        message = f"The {model} model can't answer at present; try again."
        super().__init__(message, status=503, code="no_capacity", retry_after_s=2.0)
