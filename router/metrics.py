"""What the router counts. Ray's Prometheus port puts `ray_` in front of every name.

Label values are few: pools, models and codes by nature, tenants because only the first 200 have a name of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from ray.util.metrics import Counter, Gauge, Histogram

if TYPE_CHECKING:
    from router.shadow import Comparison

MOST_TENANTS = 200

_STEP_S = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]
_HOP_S = [*_STEP_S, 120.0, 300.0, 600.0]
_REQUEST_S = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0]
_FIRST_TOKEN_S = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]
_NATS = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.5, 1.8, 2.1, 2.4, 2.7, 3.0]


class Metrics:
    """The metrics of one process; times are in seconds, entropies in nats.

    target, spared: what `large_share_target` and `spared_share` are set to with every request. Ray forgets a gauge that
    is set only once.
    """

    def __init__(self) -> None:
        self.requests = Counter("glimpse_requests_total", "Requests by their end.", ("tenant", "model", "code"))
        self.steps = Counter("glimpse_steps_total", "Steps committed.", ("model",))
        self.tokens = Counter(
            "glimpse_tokens_total",
            "Tokens: prompt, cached (of the prompt), completion, discarded.",
            ("tenant", "model", "kind"),
        )
        self.resumed_hops = Counter("glimpse_resumed_hops_total", "Hops whose replica was lost.", ("pool",))
        self.shed = Counter("glimpse_shed_total", "Requests refused for want of room or rights.", ("reason",))
        self.uncounted = Counter("glimpse_uncounted_total", "Calls to Redis for a tenant's limits that failed.")
        self.step_seconds = Histogram("glimpse_step_seconds", "Time a step was written in.", _STEP_S, ("model",))
        self.hop_seconds = Histogram(
            "glimpse_hop_seconds", "Time of a call from router to pool.", _HOP_S, ("pool", "hop")
        )
        self.entropy = Histogram("glimpse_entropy_nats", "Entropy of the glimpse at a step's first token.", _NATS)
        self.first_token_seconds = Histogram(
            "glimpse_time_to_first_token_seconds", "Until the first text is there.", _FIRST_TOKEN_S
        )
        self.request_seconds = Histogram("glimpse_request_seconds", "Time of a finished request.", _REQUEST_S)
        self.large_share_target = Gauge(
            "glimpse_large_share_target",
            "Bound on the large model's share of the tokens, 0..1.",
        )
        self.spared_share = Gauge("glimpse_spared_share", "Of the escalations, those that the controller spares, 0..1.")
        self.shadow = Counter(
            "glimpse_shadow_total", "Routed requests asked of the large model too.", ("tenant", "agree")
        )
        self.shadow_seconds = Counter("glimpse_shadow_seconds_total", "Time of those requests, by way.", ("way",))
        self.shadow_tokens = Counter(
            "glimpse_shadow_large_tokens_total", "Tokens that the large model wrote for those, by way.", ("way",)
        )
        self.target = 1.0
        self.spared: Callable[[], float] = lambda: 0.0
        self._tenants: set[str] = set()

    def compared(self, found: Comparison) -> None:
        """Counts a shadow run."""
        self.shadow.inc(tags={"tenant": self.tenant(found.tenant or "anonymous"), "agree": str(found.agree).lower()})
        routed = found.routed.get("large")
        for way, seconds, tokens in (
            ("routed", found.routed_s, routed.completion_tokens if routed else 0),
            ("large", found.large_s, found.large.completion_tokens),
        ):
            self.shadow_seconds.inc(seconds, {"way": way})
            if tokens:
                self.shadow_tokens.inc(tokens, {"way": way})

    def tenant(self, id: str) -> str:
        """The label's value for a tenant."""
        if id not in self._tenants:
            if len(self._tenants) >= MOST_TENANTS:
                return "other"
            self._tenants.add(id)
        return id


@cache
def metrics() -> Metrics:
    """This process's. Made on first use: what is pickled on its way to a replica must not hold them."""
    return Metrics()
