"""The rest of the API: models, health, request ids, unknown paths, its documentation, and being pickled."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import httpx
import pytest
import ray.cloudpickle as cloudpickle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ray.serve.api import ensure_serialization_context

from router.api.routes import build
from router.api.schema import ChatCompletion
from router.request import Refusal


async def test_models_tell_of_the_pair(client):
    models = (await client.get("/v1/models")).json()
    assert models["object"] == "list"
    glimpse, small, large = models["data"]
    assert glimpse == {
        "id": "glimpse",
        "object": "model",
        "created": glimpse["created"],
        "owned_by": "glimprouter",
        "max_model_len": 4096,
        "glimpse": {
            "pair": "9f2c",
            "models": {"small": "pocket-small", "large": "pocket-large"},
            "thinks": True,
            "handover": "ids",
            "threshold": 1.0,
            "token_threshold": None,
            "max_model_len": 4096,
        },
    }
    assert (small["id"], small["glimpse"]["models"]) == ("small", {"small": "pocket-small"})
    assert (large["id"], large["glimpse"]["threshold"]) == ("large", None)


async def test_models_tell_of_the_token_threshold_where_they_are_routed(client, service):
    service.pair = replace(service.pair, token_threshold=0.5)
    cards = (await client.get("/v1/models")).json()["data"]
    assert [card["glimpse"]["token_threshold"] for card in cards] == [0.5, None, None]


async def test_a_model_can_be_asked_for_by_name(client):
    assert (await client.get("/v1/models/small")).json()["id"] == "small"
    assert (await client.get("/v1/models/glimpse-0.9")).json()["glimpse"]["threshold"] == 0.9
    missing = await client.get("/v1/models/org/gpt-5")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


async def test_health_and_readiness(client, service):
    assert (await client.get("/healthz")).status_code == 200
    assert (await client.get("/readyz")).status_code == 200
    service.missing = "the large pool has no replica"
    response = await client.get("/readyz")
    assert (response.status_code, response.text) == (503, "the large pool has no replica\n")
    assert (await client.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
    ],
)
async def test_unknown_paths_and_methods_have_the_same_shape(client, method, path, status):
    response = await client.request(method, path)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    if status == 405:
        assert response.headers["allow"]


@pytest.mark.parametrize("path", ["/healthz", "/v1/nothing", "/v1/chat/completions"])
async def test_the_clients_request_id_is_echoed(client, path):
    assert (await client.get(path, headers={"x-request-id": "abc 1"})).headers["x-request-id"] == "abc 1"
    assert (await client.get(path)).headers["x-request-id"] != (await client.get(path)).headers["x-request-id"]


@pytest.mark.parametrize("id", ["", "x" * 201, "é".encode("latin-1"), "日".encode()])
async def test_unusable_request_ids_are_replaced(client, id):
    response = await client.get("/healthz", headers={"x-request-id": id})
    assert len(response.headers["x-request-id"]) == 32


async def test_behind_a_proxy_that_stamps_there_is_no_second_id(service):
    app = build(lambda: service, stamp_request_id=False)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://router") as client:
        assert "x-request-id" not in (await client.get("/healthz")).headers


@pytest.mark.parametrize("stream", [False, True])
async def test_the_unforeseen_is_logged_and_not_told(client, service, chat, caplog, stream):
    service.script = [RuntimeError("secret")]
    with caplog.at_level(logging.ERROR):
        response = await client.post(
            "/v1/chat/completions", json=chat(stream=stream), headers={"x-request-id": "find-me"}
        )
    assert response.status_code == 500
    assert response.headers["x-request-id"] == "find-me"
    assert response.json()["error"]["type"] == "server_error"
    assert "secret" not in response.text
    assert "secret" in caplog.text
    assert "find-me" in caplog.text


@pytest.mark.parametrize(
    ("status", "type"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "invalid_request_error"),
        (429, "rate_limit_error"),
        (503, "server_error"),
        (504, "server_error"),
    ],
)
async def test_refusals_keep_their_words(client, service, chat, status, type):
    service.script = [Refusal("No.", status=status, param="p", code="c", retry_after_s=2.1)]
    response = await client.post("/v1/chat/completions", json=chat())
    assert response.status_code == status
    assert response.headers["retry-after"] == "3"
    assert response.json() == {"error": {"message": "No.", "type": type, "param": "p", "code": "c"}}


async def test_openapi_documents_the_bodies(client):
    document = (await client.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    body = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"] == {"$ref": "#/components/schemas/ChatCompletion"}
    assert schemas["ChatCompletion"]["required"] == ["model", "messages"]
    assert schemas["ChatCompletion"]["additionalProperties"] is False
    assert schemas["ChatReply"]["properties"]["usage"] == {"$ref": "#/components/schemas/Usage"}
    assert references(document) <= {f"#/components/schemas/{name}" for name in schemas}


def references(node: object) -> set[str]:
    if isinstance(node, list):
        return set().union(*map(references, node))
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return own.union(*map(references, node.values()))
    return set()


async def test_the_app_survives_pickling_as_serve_does_it(chat):
    ensure_serialization_context()
    app = cloudpickle.loads(cloudpickle.dumps(build(absent)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://router") as client:
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/openapi.json")).status_code == 200
        refused = await client.post("/v1/chat/completions", json=chat(temperature=9))
        assert refused.json()["error"]["param"] == "temperature"
        assert (await client.post("/v1/chat/completions", json=chat())).status_code == 503


def absent():
    raise Refusal("No service yet.", status=503)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["none", "text", "user"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(field=st.sampled_from(sorted(ChatCompletion.model_fields)), value=ANYTHING)
async def test_no_value_of_any_field_is_a_500(client, chat, field, value):
    body = json.dumps(chat(**{field: value}))
    response = await client.post("/v1/chat/completions", content=body.encode())
    assert response.status_code in {200, 400, 404}
    if response.status_code == 400:
        assert (response.json()["error"]["param"] or field).startswith(field)
