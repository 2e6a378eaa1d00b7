"""A question to a system that has just started: it serves when each model has written something."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import Any

from deployments.progress import StartError

QUESTION = "Tom has 3 boxes with 4 apples each. How many apples does he have?"


BOUNDED = (400, 403, 413, 429)
"""With a key: its tenant's bounds, which say nothing against the system."""


def ask_both(url: str) -> str:
    """Has each model write something through the served stack. Returns a line about it; raises `StartError`."""
    import httpx

    key = os.environ.get("GLIMPROUTER_API_KEY")
    asked = time.monotonic()
    written = {"small": 0, "large": 0}
    headers = {"authorization": f"Bearer {key}"} if key else {}
    # It is this machine, with a certificate for others if it has one.
    with httpx.Client(base_url=url, timeout=600, headers=headers, trust_env=False, verify=False) as server:
        for model in ("glimpse", *written):
            if written.get(model):
                continue
            # A threshold of 0 escalates every step; who has not written after that is asked alone.
            body = {
                "model": model,
                "messages": [{"role": "user", "content": QUESTION}],
                "max_tokens": 64,
                "temperature": 0,
                "glimpse": {"include_steps": True} | ({"threshold": 0} if model == "glimpse" else {}),
            }
            reply = post(server, body)
            if reply.status_code == 401:
                return "Not asked: the server wants a key (set GLIMPROUTER_API_KEY to have it tried)"
            if key and reply.status_code in BOUNDED:
                return f"Not asked: GLIMPROUTER_API_KEY's tenant may not ({said(reply.text)})"
            if reply.status_code != 200:
                raise StartError(f"asked model `{model}`, the server answered {reply.status_code}: {said(reply.text)}")
            answer = reply.json()
            if model in written:
                written[model] += answer["usage"]["completion_tokens"]
            for step in (answer.get("glimpse") or {}).get("steps", ()) if model == "glimpse" else ():
                written[step["model"]] += step["tokens"]
    if idle := [model for model, tokens in written.items() if not tokens]:
        raise StartError(f"asked, but model {' and '.join(idle)} wrote nothing")
    counts = ", ".join(f"{model} wrote {tokens} tokens" for model, tokens in written.items())
    return f"Asked a question: {counts} in {time.monotonic() - asked:.1f} s"


def post(server: Any, body: Mapping[str, Any]) -> Any:
    """Asks, and asks again while the proxy has not heard of the application's routes yet."""
    import httpx

    for patience in range(60, -1, -1):
        try:
            reply = server.post("/v1/chat/completions", json=body)
        except httpx.ConnectError:
            reply = None
        except httpx.HTTPError as error:
            raise StartError(f"asked a question, but no answer came back: {error!r}") from None
        unknown = reply is not None and reply.status_code == 404 and '"error"' not in reply.text
        if reply is not None and not unknown and (reply.status_code != 503 or not patience):
            return reply
        if not patience:
            raise StartError("asked a question, but the server did not take it within 30 s")
        time.sleep(0.5)


def said(body: str) -> str:
    """The message of an OpenAI error body, or the beginning of whatever it is."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return " ".join(body.split())[:300]
