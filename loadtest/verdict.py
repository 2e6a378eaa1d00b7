"""Whether a load test was passed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

OURS = ("glimpse", "refused")
"""Lines of the statistics that are no requests."""

FIRST_TOKEN = "time to first token"


@dataclass(frozen=True, slots=True)
class Bounds:
    """What may be, at most. Seconds, of which 0 means any; shares 0..1."""

    p95_s: float = 0.0
    ttft_p95_s: float = 0.0
    failed: float = 0.0
    refused: float = 1.0


@dataclass(frozen=True, slots=True)
class Seen:
    """A line of the statistics."""

    kind: str
    name: str
    count: int
    failures: int
    p95_s: float

    @classmethod
    def of(cls, kind: str, name: str, entry: Any) -> Seen:
        """From locust's `StatsEntry`."""
        p95 = entry.get_response_time_percentile(0.95) if entry.num_requests else 0
        return cls(kind, name, entry.num_requests, entry.num_failures, (p95 or 0) / 1000.0)


def broken(seen: Sequence[Seen], bounds: Bounds) -> list[str]:
    """A line for every bound that was broken."""
    requests = [one for one in seen if one.kind not in OURS]
    refused = sum(one.count for one in seen if one.kind == "refused")
    answered = sum(one.count for one in requests)
    failed = sum(one.failures for one in requests)
    if answered == failed:
        return ["nothing was answered"]
    said = []
    if failed > bounds.failed * (answered + refused):
        said.append(f"{failed} of {answered + refused} requests failed; {bounds.failed:.1%} may")
    if refused > bounds.refused * (answered + refused):
        said.append(f"{refused} of {answered + refused} requests were refused; {bounds.refused:.1%} may be")
    for one in requests:
        if bounds.p95_s and one.p95_s > bounds.p95_s:
            said.append(f"p95 of {one.kind}, {one.name} is {one.p95_s:.2f} s; {bounds.p95_s:g} s is the bound")
    for one in seen:
        if one.name == FIRST_TOKEN and bounds.ttft_p95_s and one.p95_s > bounds.ttft_p95_s:
            said.append(f"p95 of the {one.name} is {one.p95_s:.2f} s; {bounds.ttft_p95_s:g} s is the bound")
    return said
