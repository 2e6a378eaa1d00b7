"""A request as its tenant's policy lets it be."""

from __future__ import annotations

from dataclasses import replace

from router.request import Refusal, Request, Routing
from router.tenancy.tenant import Policy


def permitted(request: Request, policy: Policy, *, by_token: bool = True) -> Request:
    """The request with the policy's defaults and bounds. Raises a `Refusal` where it asks for more.

    by_token: whether the pair can be routed so.
    """
    model = request.routing.model
    if policy.models is not None and model not in policy.models:
        allowed = ", ".join(sorted(policy.models))
        message = f"This key's tenant may not use model {model!r}; it may use {allowed}."
        raise Refusal(message, status=403, param="model", code="model_not_allowed")
    if policy.max_output is not None and (request.max_tokens or 0) > policy.max_output:
        message = f"max_tokens: up to {policy.max_output} are allowed for this key's tenant."
        raise Refusal(message, param="max_tokens", code="invalid_value")
    return replace(
        request,
        routing=_routing(request.routing, policy, policy.token_threshold if by_token else None),
        most_tokens=policy.max_output,
        context_tokens=policy.max_context,
    )


def _routing(routing: Routing, policy: Policy, token_threshold: float | None) -> Routing:
    bound = policy.max_large_share
    if routing.mode in ("large", "random") and bound is not None and bound < 1.0:
        what = "model 'large' alone" if routing.mode == "large" else "random routing"
        message = f"This key's tenant may have {bound:g} of its tokens from the large model, so {what} is not allowed."
        raise Refusal(message, status=403, param="model", code="model_not_allowed")
    if routing.mode != "routed":
        return routing
    asked = routing.max_large_share
    share = asked if bound is None else bound if asked is None else min(asked, bound)
    return replace(
        routing,
        max_large_share=share,
        threshold=policy.threshold if routing.threshold is None else routing.threshold,
        token_threshold=token_threshold if routing.token_threshold is None else routing.token_threshold,
    )
