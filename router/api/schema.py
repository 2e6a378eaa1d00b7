"""What clients may send: OpenAI's bodies, the samplers vLLM adds, and the `glimpse` extension.

Strict on purpose. A field that is silently ignored changes an experiment without anybody noticing, so an unknown one
is an error, and so is a known one that routed models can't honour, unless it has a value that changes nothing.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema
from pydantic_core.core_schema import ValidationInfo

from router.request import Model, Pair, Refusal, Request, Routing, Sampling

Mode = Literal["routed", "small", "large"]

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1
DAY_S = 86_400.0


class Neutral:
    """Marks a parameter that can't be honoured: only null and `values`, which ask for nothing, are let through."""

    def __init__(self, *values: object) -> None:
        self.values = (None, *values)

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, object]:
        return {"enum": list(self.values), "description": "Not supported; accepted where it changes nothing."}

    def _check(self, value: object) -> object:
        for neutral in self.values:
            # 0 == False in Python, but not to a client.
            if value == neutral and isinstance(value, bool) == isinstance(neutral, bool):
                return value
        accepted = " or ".join(map(json.dumps, self.values))
        raise PydanticCustomError(
            "unsupported",
            "this server can't honour it; leave it out (accepted: {accepted})",
            {"accepted": accepted},
        )


def _wrong(message: str) -> PydanticCustomError:
    # As context rather than as template, because a client's braces may be in it.
    return PydanticCustomError("invalid_value", "{message}", {"message": message})


def _content(value: object, info: ValidationInfo) -> str:
    """A message's text: a string, or text parts, which are joined by a newline as vLLM does."""
    if isinstance(value, str):
        return value
    if value is None and info.data.get("role") == "assistant":
        return ""
    if not isinstance(value, list) or not value:
        raise _wrong('has to be a string or a non-empty list of {"type": "text"} parts')
    return "\n".join(_part(index, part) for index, part in enumerate(value))


def _part(index: int, part: object) -> str:
    if not isinstance(part, dict):
        raise _wrong(f"part {index} has to be an object")
    if part.get("type") != "text":
        raise _wrong(f"part {index} is not of type 'text'; the models here read nothing else")
    text = part.get("text")
    if not isinstance(text, str):
        raise _wrong(f"part {index} has no string as 'text'")
    if unknown := part.keys() - {"type", "text"}:
        raise _wrong(f"part {index} has an unknown field {min(unknown)[:100]!r}")
    return text


def _stop(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > 4:
        raise _wrong("has to be a string or a list of up to 4 strings")
    if not all(isinstance(stop, str) and stop for stop in stops):
        raise _wrong("every stop has to be a non-empty string")
    return tuple(stops)


def _prompt(value: object) -> str | tuple[int, ...]:
    """One prompt. A list of one prompt, which some clients always send, is that prompt."""
    if isinstance(value, list) and value and isinstance(value[0], str | list):
        if len(value) > 1:
            raise _wrong("only one prompt at a time is accepted")
        value = value[0]
    if not isinstance(value, str | list):
        raise _wrong("has to be a string or a list of token IDs")
    if not value:
        raise _wrong("is empty")
    if isinstance(value, str):
        return value
    if not all(type(token) is int and 0 <= token <= INT32_MAX for token in value):
        raise _wrong("token IDs have to be integers from 0")
    return tuple(value)


_STRING = {"type": "string"}
_ID = {"type": "integer", "minimum": 0, "maximum": INT32_MAX}
_TEXT_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": _STRING},
    "required": ["type", "text"],
    "additionalProperties": False,
}
_STOP = {"type": "string", "minLength": 1}

Content = Annotated[
    str,
    PlainValidator(_content),
    WithJsonSchema(
        {
            "anyOf": [_STRING, {"type": "array", "items": _TEXT_PART, "minItems": 1}, {"type": "null"}],
            "description": "Null is for assistant messages only.",
        }
    ),
]
Stop = Annotated[
    tuple[str, ...],
    PlainValidator(_stop),
    WithJsonSchema({"anyOf": [_STOP, {"type": "array", "items": _STOP, "maxItems": 4}, {"type": "null"}]}),
]
Prompt = Annotated[
    str | tuple[int, ...],
    PlainValidator(_prompt),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": _ID, "minItems": 1},
                {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1, "maxItems": 1},
            ],
            "description": "One prompt: text, or token IDs in the small model's vocabulary.",
        }
    ),
]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Message(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: str | None = None
    reasoning_content: str | None = Field(default=None, description="Dropped: old thoughts are not given back.")

    # A client that sends our own answer back sends these along.
    refusal: Annotated[object, Neutral("")] = None
    tool_calls: Annotated[object, Neutral([])] = None
    function_call: Annotated[object, Neutral()] = None
    audio: Annotated[object, Neutral()] = None
    annotations: Annotated[object, Neutral([])] = None

    def rendered(self) -> dict[str, object]:
        """As chat templates expect it; `developer` is a newer word for what they all call `system`."""
        role = "system" if self.role == "developer" else self.role
        named = {} if self.name is None else {"name": self.name}
        return {"role": role, "content": self.content, **named}


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: Annotated[object, Neutral(False)] = None
    continuous_usage_stats: Annotated[object, Neutral(False)] = None


class Glimpse(Body):
    """How the request is routed, and how much is told of it."""

    threshold: float | None = Field(default=None, ge=0, description="Nats; steps above it are the large model's.")
    token_threshold: float | None = Field(
        default=None, ge=0, description="Nats; a token above it, wherever in a step, is the large model's, by itself."
    )
    answer_by: Model | None = None
    max_large_share: float | None = Field(default=None, ge=0, le=1, description="Of the tokens committed so far.")
    include_steps: bool | None = None
    random_share: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Instead of the gate: each step is the large model's with this probability, as a control.",
    )


class Generation(Body):
    """What chat completions and completions have in common."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=INT32_MAX, description="Reasoning and answer together.")
    stop: Stop = Field(default=(), description="Ends the answer; reasoning is not searched.")
    seed: int | None = Field(default=None, ge=-INT64_MAX - 1, le=INT64_MAX)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=INT32_MAX)
    min_p: float | None = Field(default=None, ge=0, le=1)
    glimpse: Glimpse | None = None
    timeout: float | None = Field(
        default=None, gt=0, le=DAY_S, description="Seconds; the server's own deadline holds as well."
    )

    # Labels and hints for whoever runs the service: nothing that changes the text.
    user: str | None = None
    metadata: dict[str, str] | None = Field(default=None, max_length=16)
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    service_tier: Annotated[object, Neutral("auto", "default")] = None

    n: Annotated[object, Neutral(1)] = None
    presence_penalty: Annotated[object, Neutral(0)] = None
    frequency_penalty: Annotated[object, Neutral(0)] = None
    repetition_penalty: Annotated[object, Neutral(1)] = None
    logit_bias: Annotated[object, Neutral({})] = None
    logprobs: Annotated[object, Neutral(False)] = None

    @property
    def includes_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def includes_steps(self) -> bool:
        return bool(self.glimpse and self.glimpse.include_steps)


class ChatCompletion(Generation):
    """Body of `POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=INT32_MAX, description="`max_tokens`, renamed.")

    store: Annotated[object, Neutral(False)] = None
    top_logprobs: Annotated[object, Neutral(0)] = None
    tools: Annotated[object, Neutral([])] = None
    tool_choice: Annotated[object, Neutral("none")] = None
    parallel_tool_calls: Annotated[object, Neutral(False)] = None
    functions: Annotated[object, Neutral([])] = None
    function_call: Annotated[object, Neutral("none")] = None
    response_format: Annotated[object, Neutral({"type": "text"})] = None
    modalities: Annotated[object, Neutral([], ["text"])] = None
    audio: Annotated[object, Neutral()] = None
    prediction: Annotated[object, Neutral()] = None
    reasoning_effort: Annotated[object, Neutral()] = None
    verbosity: Annotated[object, Neutral("medium")] = None
    web_search_options: Annotated[object, Neutral()] = None
    moderation: Annotated[object, Neutral()] = None
    prompt_cache_options: Annotated[object, Neutral()] = None
    prompt_cache_retention: Annotated[object, Neutral("in_memory")] = None

    def request(self, id: str, pair: Pair) -> Request:
        messages = tuple(message.rendered() for message in self.messages)
        return _request(self, id, pair, messages=messages, max_tokens=self._max_tokens())

    def _max_tokens(self) -> int | None:
        old, new = self.max_tokens, self.max_completion_tokens
        if old is not None and new is not None and old != new:
            raise Refusal(
                "max_completion_tokens: differs from max_tokens, which means the same; give one of them.",
                param="max_completion_tokens",
                code="invalid_value",
            )
        return old if new is None else new


class Completion(Generation):
    """Body of `POST /v1/completions`."""

    prompt: Prompt
    add_special_tokens: bool | None = Field(
        default=None, description="Whether a text begins with what its model was trained to see first. Default: true."
    )

    best_of: Annotated[object, Neutral(1)] = None
    echo: Annotated[object, Neutral(False)] = None
    suffix: Annotated[object, Neutral("")] = None

    def request(self, id: str, pair: Pair) -> Request:
        asked = _request(self, id, pair, prompt=self.prompt, max_tokens=self.max_tokens)
        return replace(asked, special_tokens=self.add_special_tokens is not False)


def _request(
    body: Generation,
    id: str,
    pair: Pair,
    *,
    max_tokens: int | None,
    messages: tuple[dict[str, object], ...] | None = None,
    prompt: str | tuple[int, ...] | None = None,
) -> Request:
    if body.stream_options and not body.stream:
        raise Refusal(
            "stream_options: is only allowed where 'stream' is true.", param="stream_options", code="invalid_value"
        )
    return Request(
        id=id,
        routing=routing(body.model, body.glimpse or Glimpse(), pair),
        sampling=Sampling(
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=body.top_k,
            min_p=body.min_p,
            seed=body.seed,
            stop=body.stop,
        ),
        messages=messages,
        prompt=prompt,
        max_tokens=max_tokens,
        streaming=bool(body.stream),
        glimpses=body.includes_steps,
        timeout_s=body.timeout,
        conversation=body.prompt_cache_key or "",
    )


_THRESHOLD_IN_NAME = re.compile(r"glimpse-([0-9]{1,9}(?:\.[0-9]{1,17})?)")


def model_named(name: str) -> tuple[Mode, float | None]:
    """The mode a model id stands for, and the threshold if the id carries one."""
    if name == "glimpse":
        return "routed", None
    if name == "small":
        return "small", None
    if name == "large":
        return "large", None
    if found := _THRESHOLD_IN_NAME.fullmatch(name):
        return "routed", float(found[1])
    raise Refusal(
        f"The model {name[:100]!r} does not exist here: there are 'glimpse', 'glimpse-<threshold>', "
        "'small' and 'large'.",
        status=404,
        param="model",
        code="model_not_found",
    )


def routing(model: str, glimpse: Glimpse, pair: Pair) -> Routing:
    """The body's threshold beats the one in the model's name. A field that would have no effect is refused."""
    mode, named_threshold = model_named(model)

    def refuse_if_given(reason: str, *names: str) -> None:
        for name in names:
            if getattr(glimpse, name) is not None:
                raise Refusal(f"glimpse.{name}: {reason}.", param=f"glimpse.{name}", code="unsupported_parameter")

    if mode != "routed":
        reason = f"model {mode!r} is one model alone, so nothing is routed"
        refuse_if_given(reason, "threshold", "token_threshold", "answer_by", "max_large_share", "random_share")
        return Routing(mode=mode)
    if not pair.thinks:
        refuse_if_given("the models served here don't think before they answer", "answer_by")
    if glimpse.random_share is not None:
        reason = "has no effect beside glimpse.random_share"
        refuse_if_given(reason, "threshold", "token_threshold", "max_large_share")
        if named_threshold is not None:
            refuse_if_given("is for model 'glimpse', without a threshold", "random_share")
    return Routing(
        mode="routed" if glimpse.random_share is None else "random",
        threshold=named_threshold if glimpse.threshold is None else glimpse.threshold,
        token_threshold=glimpse.token_threshold,
        answer_by=glimpse.answer_by,
        max_large_share=glimpse.max_large_share,
        random_share=glimpse.random_share,
    )
