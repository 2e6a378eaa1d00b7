"""The router: a client's request in, events out. Between them: prompts, the step loop, text."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import math
import time
from array import array
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace

from router.budget import Budget
from router.controller import Controller, Heeded, Target
from router.hop import ReadAhead
from router.loop import Pool, write
from router.policy import Alone, EntropyGate, Policy, RandomShare
from router.pools import ServedPool
from router.prefix import Bridge, Prefix, bridge
from router.reader import Reader
from router.request import MODELS, Event, Finished, Model, Pair, Refusal, Request, Routing, overdue
from router.transcript import Task, Transcript
from router.vocabulary import TemplateError, Vocabulary

LONG = 20_000
"""Characters, which take some ten milliseconds to become tokens."""

WHOLE_STEPS = "these two models have different vocabularies, so they can hand each other whole steps only"


_readers = ThreadPoolExecutor(2, "prompts")


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a request gets that does not say otherwise, and the bounds of every request. drafting: the models in whose
    engines something drafts, where vLLM has no min_p."""

    threshold: float
    answer_by: Model
    max_large_share: float
    max_tokens: int
    answer_reserve: int
    max_steps: int
    step_tokens: int
    deadline_s: float
    dispensable: frozenset[Model] = frozenset()
    warm_up_tokens: int | None = None
    target: Target | None = None
    drafting: frozenset[Model] = frozenset()
    token_threshold: float | None = None


class StepRouter:
    """Serves one pair of models. Nothing of a request outlives it, but what the controller heard of entropies.

    controller: moves the thresholds of requests that name none, where the profile asks for that.
    """

    def __init__(
        self,
        fingerprint: str,
        vocabularies: Mapping[Model, Vocabulary],
        pools: Mapping[Model, ServedPool],
        context_tokens: int,
        defaults: Defaults,
    ) -> None:
        self._vocabularies, self._pools = vocabularies, pools
        small, large = vocabularies["small"], vocabularies["large"]
        self._bridge: Bridge = bridge(small, large)
        self._defaults = self._fitting(defaults)
        self._writers: Mapping[Model, Pool] = pools
        self.controller: Controller | None = None
        if defaults.target is not None:
            heeding = self.controller = Controller(defaults.target)
            self._writers = {
                "small": Heeded(pools["small"], heeding, loads=False, base=lambda: self._defaults.token_threshold),
                "large": Heeded(pools["large"], heeding, loads=True),
            }
        self._one_prompt = small.same_prompts(large)
        self.pair = Pair(
            fingerprint=fingerprint,
            names={model: vocabularies[model].name for model in MODELS},
            thinks=small.thinks and large.thinks,
            handover=self._bridge.handover,
            context_tokens=context_tokens,
            threshold=defaults.threshold,
            token_threshold=defaults.token_threshold,
            answer_by=defaults.answer_by,
        )

    def tune(self, defaults: Defaults) -> None:
        """From now on; requests under way keep what they began with."""
        self._defaults = self._fitting(defaults)
        self.pair = replace(
            self.pair,
            threshold=defaults.threshold,
            token_threshold=defaults.token_threshold,
            answer_by=defaults.answer_by,
        )

    def _fitting(self, defaults: Defaults) -> Defaults:
        if defaults.token_threshold is not None and self._bridge.handover == "text":
            raise ValueError(f"routing.token_threshold: {WHOLE_STEPS}")
        return defaults

    async def ready(self) -> str | None:
        """None when both pools answer, or rest at zero and can be woken; else what is missing."""
        for model in MODELS:
            try:
                # A busy pool would let the question wait for a place.
                if self._pools[model].heard_lately or await self._pools[model].rests():
                    continue
                told = await self._pools[model].ask("describe")
            except Exception as error:
                return f"the {model} pool does not answer ({type(error).__name__})"
            if told["pair"] != self.pair.fingerprint:
                return f"the {model} pool serves another pair"
        return None

    async def write(self, request: Request) -> AsyncGenerator[Event]:
        """See `router.request.Service`."""
        async with aclosing(self.run(await self.begin(request))) as events:
            async for event in events:
                yield event

    async def run(self, page: Transcript) -> AsyncGenerator[Event]:
        """The events of a request that was begun."""
        reader = Reader(page, self._vocabularies)
        async with self._reading_ahead(page), aclosing(write(page, self._writers)) as passages:
            async for passage in passages:
                for event in reader.read(passage):
                    yield event
                if reader.stopped:
                    # A stop string that straddles two hops is one that no engine could see.
                    page.finish("stop")
        for event in reader.rest():
            yield event
        yield _finished(page)

    @asynccontextmanager
    async def _reading_ahead(self, page: Transcript) -> AsyncGenerator[None]:
        """Have the large model read a long prompt while the small one writes its first steps, so that the first
        escalation does not pay for it; given up when the request ends."""
        least = self._defaults.warm_up_tokens
        if least is None or not _may_want_large(page.task) or page.prefix.prompt_tokens["large"] < least:
            yield
            return
        reading = asyncio.create_task(self._pools["large"].prefill(page.ahead("large")))
        try:
            yield
        finally:
            reading.cancel()
            (read,) = await asyncio.gather(reading, return_exceptions=True)
            if isinstance(read, ReadAhead):
                page.read_ahead("large", read)

    async def begin(self, request: Request) -> Transcript:
        """A request as it is before its first hop. Raises a `Refusal`."""
        chat = request.messages is not None
        plain = not (chat and self.pair.thinks)
        if plain and request.routing.answer_by is not None:
            message = "answer_by needs a pair that thinks: here everything is one text."
            raise Refusal(message, param="glimpse.answer_by")
        if request.routing.token_threshold is not None and self.pair.handover == "text":
            raise Refusal(f"{WHOLE_STEPS}.", param="glimpse.token_threshold")
        policy, answer_by, max_large_share = self._policy(request)
        defaults = self._defaults
        # Roll-outs, and routers that are to end, wait this long for requests, and no longer.
        deadline = time.monotonic() + min(request.timeout_s or math.inf, defaults.deadline_s)
        prompts = await self._read(request, deadline)
        if request.sampling.min_p and (drafting := self._defaults.drafting & prompts.keys()):
            message = f"the {max(drafting)} model's engine drafts, which leaves no min_p: use top_p or top_k."
            raise Refusal(message, param="min_p")
        tokens = self._tokens(request, [len(ids) for ids in prompts.values()], "messages" if chat else "prompt")
        task = Task(
            id=request.id,
            pair=self.pair.fingerprint,
            policy=policy,
            answer_by=answer_by,
            budget=Budget.of(
                tokens,
                reserve=0 if plain else defaults.answer_reserve,
                steps=defaults.max_steps,
                step_tokens=defaults.step_tokens,
            ),
            sampling=request.sampling,
            deadline=deadline,
            max_large_share=max_large_share,
            plain=plain,
            closing={model: self._vocabularies[model].closing for model in prompts},
            carries_lengths=self._bridge.handover != "text",
            streaming=request.streaming,
            glimpses=request.glimpses,
            tenant=request.tenant,
            conversation=_conversation(request),
            # Who asks for one model gets it or nothing, and the prompt was rendered for that one only.
            dispensable=frozenset() if request.routing.mode in MODELS else defaults.dispensable,
        )
        return Transcript(task, Prefix(prompts, self._bridge))

    def _policy(self, request: Request) -> tuple[Policy, Model, float]:
        routing, defaults = request.routing, self._defaults
        answer_by = routing.answer_by or defaults.answer_by
        match routing.mode:
            case "small" | "large" as alone:
                return Alone(alone), alone, 1.0
            case "random":
                return RandomShare(routing.random_share or 0.0, request.sampling.seed), answer_by, 1.0
        share = routing.max_large_share if routing.max_large_share is not None else defaults.max_large_share
        return EntropyGate(*self._thresholds(routing), share), answer_by, share

    def _thresholds(self, routing: Routing) -> tuple[float, float | None]:
        """Of steps and of tokens: the request's own, else the profile's, which the controller may move."""
        step, token, steering = routing.threshold, routing.token_threshold, self.controller
        if step is None:
            step = self._defaults.threshold
            step = steering.threshold(step) if steering else step
        if token is None and (token := self._defaults.token_threshold) is not None:
            token = steering.token_threshold(token) if steering else token
        return step, token

    async def _read(self, request: Request, deadline: float) -> dict[Model, array[int]]:
        if _length(request) <= LONG:
            return self._prompts(request)
        # It may take seconds, for which no other request should have to wait.
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await asyncio.get_running_loop().run_in_executor(_readers, self._prompts, request)
        except TimeoutError:
            raise overdue() from None

    def _prompts(self, request: Request) -> dict[Model, array[int]]:
        used: tuple[Model, ...] = MODELS
        if request.routing.mode in MODELS:
            used = (request.routing.mode,)
        if request.messages is not None:
            try:
                prompts = {used[0]: self._vocabularies[used[0]].render(request.messages)}
                for model in used[1:]:
                    rendered = self._vocabularies[model].render
                    prompts[model] = prompts[used[0]] if self._one_prompt else rendered(request.messages)
            except TemplateError as error:
                raise Refusal(str(error), param="messages") from error
            return prompts
        if isinstance(request.prompt, str):
            words, begins = self._vocabularies, request.special_tokens
            prompts = {model: array("i", words[model].encode_raw(request.prompt, begins=begins)) for model in used}
        else:
            prompts = self._given(request.prompt or (), used)
        for model, ids in prompts.items():
            # Behind its last row the engine would read, and die.
            if unknown := [i for i in ids if i >= self._vocabularies[model].rows]:
                raise Refusal(f"the {model} model has no token {unknown[0]}.", param="prompt")
        return prompts

    def _given(self, tokens: Sequence[int], used: tuple[Model, ...]) -> dict[Model, array[int]]:
        size = len(self._vocabularies["small"].visible)
        if any(not 0 <= i < size for i in tokens):
            raise Refusal(f"a token ID lies outside the vocabulary of {size}.", param="prompt")
        ids = array("i", tokens)
        return {model: ids if model == "small" else self._bridge.carry(ids, model) for model in used}

    def _tokens(self, request: Request, lengths: Sequence[int], prompt: str) -> int:
        longest = max(lengths)
        context = min(self.pair.context_tokens, request.context_tokens or self.pair.context_tokens)
        # Of one model's special tokens the other may have none.
        if not min(lengths):
            raise Refusal("the prompt is empty.", param=prompt)
        if longest >= context or longest + (request.max_tokens or 0) > context:
            asked = f" and {request.max_tokens} were asked for" if request.max_tokens else ""
            raise Refusal(
                f"The context is {context} tokens here; the prompt has {longest}{asked}.",
                param="max_tokens" if request.max_tokens and longest < context else prompt,
                code="context_length_exceeded",
            )
        default = min(self._defaults.max_tokens, request.most_tokens or self._defaults.max_tokens)
        return request.max_tokens or min(default, context - longest)


def _length(request: Request) -> int:
    """Of what has to be read, in characters or token IDs."""
    if request.messages is None:
        return len(request.prompt or ())
    return sum(len(part) for message in request.messages for part in message.values() if isinstance(part, str))


def _may_want_large(task: Task) -> bool:
    """Whether a request that begins with the small model may come to the large one."""
    policy = task.policy
    if not isinstance(policy, EntropyGate) or not task.max_large_share:
        return False
    return policy.gated or (task.answer_by == "large" and not task.plain)


def _conversation(request: Request) -> str:
    """Turns of one chat begin alike, so they find the replica that holds their history."""
    if request.conversation:
        # A tenant's own name for it: another's of that name is another.
        return hashlib.blake2b(f"{request.tenant}/{request.conversation}".encode(), digest_size=8).hexdigest()
    leading = list(itertools.takewhile(lambda m: m.get("role") != "assistant", request.messages or ()))
    if not leading:
        return request.id
    return hashlib.blake2b(f"{request.tenant}/{leading}".encode(), digest_size=8).hexdigest()


def _finished(page: Transcript) -> Finished:
    policy = page.task.policy
    return Finished(
        finish_reason=page.finish_reason or "stop",
        usage=dict(page.usage),
        reasoning_tokens=0 if page.task.plain else page.reasoning_tokens,
        discarded_tokens=page.discarded_tokens,
        threshold=policy.threshold if isinstance(policy, EntropyGate) else None,
        token_threshold=policy.token_threshold if isinstance(policy, EntropyGate) else None,
        escalations=page.escalations,
        hops=page.hops,
        resumed_hops=page.resumed_hops,
        pair=page.task.pair,
        large_share_spent=page.large_share_spent,
        degraded=f"without {page.degraded}" if page.degraded else None,
    )
