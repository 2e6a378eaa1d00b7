"""A tenant's own use."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, timedelta

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from router.api.openapi import answers
from router.request import MODELS, Refusal
from router.tenancy.database import DatabaseError, reported
from router.tenancy.ledger import Ledger, Use
from router.tenancy.reply import DayUse, UsageReply
from router.tenancy.tenant import Caller

LONGEST = timedelta(days=400)


def mount(app: FastAPI, ledger: Callable[[], Ledger | None]) -> None:
    """Add `GET /v1/usage` to `app`."""

    @app.get(
        "/v1/usage",
        responses=answers(UsageReply),
        openapi_extra={"parameters": [_day("since", "the first of the month"), _day("until", "today")]},
    )
    async def usage(request: Request) -> Response:
        caller: Caller = request.scope["state"]["caller"]
        accounts = ledger()
        if accounts is None:
            raise Refusal("This server keeps no accounts: it was started without a database.", status=404)
        since, until = period(request.query_params.get("since"), request.query_params.get("until"))
        try:
            used = await reported(accounts.use, caller.tenant, since, until)
        except DatabaseError as error:
            message = "Accounts can't be read at present; try again."
            raise Refusal(message, status=503, code="accounts_unavailable", retry_after_s=2.0) from error
        return Response(json.dumps(reply(caller.tenant, used)), media_type="application/json")


def reply(tenant: str, used: Iterable[Use]) -> UsageReply:
    return {"object": "usage", "tenant": tenant, "data": [_day_use(use) for use in used]}


def period(since: str | None, until: str | None) -> tuple[date, date]:
    """Both days included. Raises a `Refusal`."""
    today = datetime.now(UTC).date()
    first, last = _date("since", since, today.replace(day=1)), _date("until", until, today)
    if last < first or last - first > LONGEST:
        message = f"since: must not be later than until, nor more than {LONGEST.days} days before it."
        raise Refusal(message, param="since", code="invalid_value")
    return first, last


def _date(name: str, text: str | None, otherwise: date) -> date:
    if text is None:
        return otherwise
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).date()
    except ValueError:
        raise Refusal(f"{name}: must be a day like 2026-01-31.", param=name, code="invalid_value") from None


def _day_use(use: Use) -> DayUse:
    return {
        "date": use.day.isoformat(),
        "model": use.model,
        "requests": use.requests,
        "discarded_tokens": use.discarded_tokens,
        "cost": use.cost,
        "by_model": {
            model: {
                "prompt_tokens": use.tokens[f"{model}_prompt_tokens"],
                "cached_tokens": use.tokens[f"{model}_cached_tokens"],
                "completion_tokens": use.tokens[f"{model}_completion_tokens"],
            }
            for model in MODELS
        },
    }


def _day(name: str, default: str) -> dict[str, object]:
    return {
        "name": name,
        "in": "query",
        "required": False,
        "description": f"A day in UTC, included; by default {default}.",
        "schema": {"type": "string", "format": "date"},
    }
