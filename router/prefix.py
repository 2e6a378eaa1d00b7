"""A request's state: two prompts, one body, as token IDs (design rules 1 to 3).

Each model has its own prompt, rendered with its own chat template, and reads the shared body in its own
vocabulary. Who wrote what is remembered; a model's view of the body catches up when that model is next asked.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from router.request import MODELS, Model

SHARED_ENOUGH = 0.99
"""Share of a vocabulary that must have the same IDs in both models for IDs to be handed over."""


class Words(Protocol):
    """A vocabulary, as far as handing over is concerned."""

    @property
    def ids(self) -> Mapping[str, int]:
        """Token to ID, special tokens included."""
        ...

    @property
    def roles(self) -> Mapping[str, int]:
        """IDs of the tokens with a part to play, by part: `open` and `close` of the thinking, `end` of the text."""
        ...

    def encode(self, text: str) -> list[int]:
        """IDs of plain text; special tokens in it stay text."""
        ...

    def text(self, ids: Iterable[int]) -> str: ...


class Bridge(Protocol):
    """Carries token IDs from one model's vocabulary into the other's."""

    @property
    def handover(self) -> Literal["ids", "mapped", "text"]: ...

    def carry(self, ids: array[int], to: Model) -> array[int]: ...


@dataclass(frozen=True, slots=True)
class SameIds:
    """Both models have one vocabulary."""

    handover: Literal["ids"] = "ids"

    def carry(self, ids: array[int], to: Model) -> array[int]:
        return ids


@dataclass(frozen=True, slots=True)
class MappedIds:
    """All but a few IDs mean the same. `differing[to]` has, for each that does not, its IDs in `to`'s vocabulary."""

    differing: Mapping[Model, Mapping[int, Sequence[int]]] = field(repr=False)
    handover: Literal["mapped"] = "mapped"

    def carry(self, ids: array[int], to: Model) -> array[int]:
        differing = self.differing[to]
        if differing.keys().isdisjoint(ids):
            return ids
        carried = array("i")
        for token in ids:
            carried.extend(differing.get(token, (token,)))
        return carried


@dataclass(frozen=True, slots=True)
class ThroughText:
    """The vocabularies are strangers: what one wrote is decoded and encoded again, step by step. The one exception
    to "token IDs are the truth": a prefix may come out in other tokens than its writer's, never in other text."""

    words: Mapping[Model, Words] = field(repr=False)
    handover: Literal["text"] = "text"

    def carry(self, ids: array[int], to: Model) -> array[int]:
        source, target = self.words[other(to)], self.words[to]
        by_id = {token: part for part, token in source.roles.items()}
        carried, plain = array("i"), array("i")
        for token in ids:
            part = by_id.get(token)
            if part is None or part not in target.roles:
                plain.append(token)
                continue
            carried.extend(target.encode(source.text(plain)))
            carried.append(target.roles[part])
            plain = array("i")
        carried.extend(target.encode(source.text(plain)))
        return carried


def other(model: Model) -> Model:
    """The other one of the pair."""
    return "large" if model == "small" else "small"


def bridge(small: Words, large: Words) -> Bridge:
    """The cheapest faithful way between two vocabularies."""
    words: dict[Model, Words] = {"small": small, "large": large}
    same = sum(1 for token, i in small.ids.items() if large.ids.get(token) == i)
    if same == len(small.ids) == len(large.ids) and dict(small.roles) == dict(large.roles):
        return SameIds()
    if same < SHARED_ENOUGH * min(len(small.ids), len(large.ids)):
        return ThroughText(words)
    return MappedIds({to: _differing(words[other(to)], words[to]) for to in MODELS})


def _differing(source: Words, target: Words) -> dict[int, list[int]]:
    parts = {token: part for part, token in source.roles.items()}
    found: dict[int, list[int]] = {}
    for token, i in source.ids.items():
        part = parts.get(i)
        if part in target.roles:
            there = [target.roles[part]]  # type: ignore[index]
        elif token in target.ids:
            there = [target.ids[token]]
        else:
            there = target.encode(source.text([i]))
        if there != [i]:
            found[i] = there
    return found


class Prefix:
    """The prefix of a request, for each model in its own token IDs.

    prompts: each model's rendered prompt, its thinking opened exactly once.
    """

    def __init__(self, prompts: Mapping[Model, Iterable[int]], bridge: Bridge) -> None:
        self._bridge = bridge
        self._ids = {model: array("i", prompt) for model, prompt in prompts.items()}
        self.prompt_tokens = {model: len(ids) for model, ids in self._ids.items()}
        self._unread: dict[Model, array[int]] = {model: array("i") for model in self._ids}

    def commit(self, writer: Model, ids: array[int]) -> None:
        """Append what `writer` wrote."""
        self._catch_up(writer)
        self._ids[writer].extend(ids)
        if other(writer) in self._unread:
            self._unread[other(writer)].extend(ids)

    def insert(self, ids: Mapping[Model, Sequence[int]]) -> None:
        """Append what no model wrote, in each vocabulary (the router closing the thinking)."""
        for model, own in self._ids.items():
            self._catch_up(model)
            own.extend(ids[model])

    def ids(self, model: Model) -> array[int]:
        """Prompt and body as `model` reads them."""
        self._catch_up(model)
        return self._ids[model]

    def _catch_up(self, model: Model) -> None:
        unread = self._unread[model]
        if unread:
            self._ids[model].extend(self._bridge.carry(unread, model))
            self._unread[model] = array("i")
