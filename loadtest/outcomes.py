"""What came of a problem set: ways to answer it, and what each one got right and cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from loadtest.client import Reply
from loadtest.intervals import Estimate, paired_difference, share
from router.answers import Answer


@dataclass(frozen=True, slots=True)
class Way:
    """A way to answer. `threshold`, `token_threshold`: routed: the gates in nats; random: those of the routed run whose
    share it matches."""

    mode: str
    threshold: float | None = None
    token_threshold: float | None = None
    random_share: float | None = None

    @property
    def alone(self) -> bool:
        return self.mode in ("small", "large")

    @property
    def by_step(self) -> bool:
        return self.mode in ("routed", "random")

    @property
    def gates(self) -> tuple[float | None, float | None]:
        return self.threshold, self.token_threshold

    @property
    def label(self) -> str:
        tokens = "" if self.token_threshold is None else f", tokens at {self.token_threshold:g}"
        return self.mode if self.threshold is None else f"{self.mode} at {self.threshold:g}{tokens}"

    def fields(self, seed: int) -> dict[str, object]:
        if self.alone:
            return {"model": self.mode}
        told = {"threshold": self.threshold} if self.random_share is None else {"random_share": self.random_share}
        if self.random_share is None and self.token_threshold is not None:
            told["token_threshold"] = self.token_threshold
        return {"model": "glimpse", "glimpse": {"include_steps": True, **told}, "seed": seed}


@dataclass(frozen=True, slots=True)
class Outcome:
    """A way's replies, in the order of the problems, and the answers found in them."""

    way: Way
    replies: tuple[Reply, ...]
    answers: tuple[Answer | None, ...]
    right: tuple[bool, ...]

    @property
    def accuracy(self) -> Estimate:
        return share(sum(self.right), len(self.right))

    @property
    def tokens(self) -> int:
        return sum(reply.tokens for reply in self.replies)

    @property
    def large_token_share(self) -> float:
        return sum(reply.large_tokens for reply in self.replies) / max(1, self.tokens)

    @property
    def cut(self) -> int:
        """Replies whose tokens were used up before they came to an end: right or wrong, they say little."""
        return sum(reply.cut for reply in self.replies)

    @property
    def hops(self) -> int | None:
        return sum(reply.hops or 0 for reply in self.replies) if self.way.by_step else None

    @property
    def escalations(self) -> int | None:
        return sum(reply.escalations or 0 for reply in self.replies) if self.way.mode == "routed" else None

    def row(self) -> dict[str, object]:
        accuracy, way = self.accuracy, self.way
        return {
            "mode": way.mode,
            "threshold": way.threshold if way.mode == "routed" else None,
            "token_threshold": way.token_threshold if way.mode == "routed" else None,
            "problems": len(self.replies),
            "accuracy": accuracy.value,
            "accuracy_interval": [accuracy.low, accuracy.high],
            "large_token_share": self.large_token_share,
            "mean_latency_s": fmean(reply.latency_s for reply in self.replies),
            "tokens": self.tokens,
            "cut": self.cut,
            "hops": self.hops,
            "escalations": self.escalations,
            **({"random_share": way.random_share, "matches_threshold": way.threshold} if way.mode == "random" else {}),
        }


def oracle(small: Outcome, large: Outcome) -> Outcome:
    """What a router that picks one model for a whole request can come to at best: the large model has every problem
    that only it gets right, and no other. It has to know that beforehand, so none does better."""
    needed = [its and not own for own, its in zip(small.right, large.right, strict=True)]
    chosen = [large if one else small for one in needed]
    return Outcome(
        Way("oracle"),
        tuple(one.replies[index] for index, one in enumerate(chosen)),
        tuple(one.answers[index] for index, one in enumerate(chosen)),
        tuple(one.right[index] for index, one in enumerate(chosen)),
    )


@dataclass(frozen=True, slots=True)
class Pairing:
    """Accuracy of one way minus another's on the same problems."""

    way: Way
    other: Way
    difference: Estimate


def pairings(outcomes: Sequence[Outcome]) -> list[Pairing]:
    """Every routed outcome against the models alone, the best choice of one of them for each request, and random
    routing at its own share."""
    return [
        Pairing(routed.way, other.way, paired_difference(routed.right, other.right))
        for routed in outcomes
        if routed.way.mode == "routed"
        for other in outcomes
        if not other.way.by_step or (other.way.mode == "random" and other.way.gates == routed.way.gates)
    ]
