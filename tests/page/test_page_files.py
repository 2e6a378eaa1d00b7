"""What the server sends for the page, without a browser."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from importlib.resources import files

import httpx
import pytest
from shopping import Shopping

from deployments.pocket.problems import EXAMPLES
from router.api.routes import build
from router.page import routes

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(build(Shopping))
    async with httpx.AsyncClient(transport=transport, base_url="http://router") as client:
        yield client


@pytest.mark.parametrize("path", ["/", *(f"/page/{name}" for name in routes.FILES)])
async def test_every_file_comes_with_its_type_and_the_policy(client: httpx.AsyncClient, path: str) -> None:
    reply = await client.get(path)
    assert reply.status_code == 200
    assert reply.headers["content-type"].split(";")[0] == routes.FILES.get(path.removeprefix("/page/"), "text/html")
    assert reply.headers["content-security-policy"] == POLICY
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["cache-control"] == "no-cache"
    head = await client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(reply.content))


async def test_a_file_that_is_known_is_not_sent_again(client: httpx.AsyncClient) -> None:
    tag = (await client.get("/page/app.js")).headers["etag"]
    for known in (tag, f'"other", W/{tag}'):
        reply = await client.get("/page/app.js", headers={"if-none-match": known})
        assert (reply.status_code, reply.content, reply.headers["etag"]) == (304, b"", tag)
    assert (await client.get("/page/app.js", headers={"if-none-match": '"other"'})).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/page/",
        "/page/routes.py",
        "/page/index.html",
        "/page/../routes.py",
        "/page/%2e%2e/routes.py",
        "/page/..%2froutes.py",
        "/page/%2fetc%2fpasswd",
        "/page/app.js/",
        "/page/App.js",
        "/page/app.js%00",
    ],
)
async def test_nothing_else_is_there(client: httpx.AsyncClient, path: str) -> None:
    reply = await client.get(path)
    assert reply.status_code == 404
    assert reply.json()["error"]["code"] == "not_found"


async def test_the_api_is_documented_without_the_page(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    assert "/" not in paths
    assert not [path for path in paths if path.startswith("/page")]


def test_every_file_of_the_folder_is_served() -> None:
    there = {file.name for file in files("router.page").iterdir() if file.is_file() and not file.name.endswith(".py")}
    assert there == {routes.INDEX, *routes.FILES}


def test_the_page_names_no_other_place() -> None:
    for name in (routes.INDEX, *routes.FILES):
        text = files("router.page").joinpath(name).read_text()
        assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)[^\s\"']+", text) == [], name


def test_no_script_writes_markup() -> None:
    """Model output may become a document only as text."""
    dangerous = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc|DOMParser"
    )
    for name in routes.FILES:
        assert not dangerous.search(files("router.page").joinpath(name).read_text()), name


def test_the_examples_are_the_embedded_pairs() -> None:
    script = files("router.page").joinpath("examples.js").read_text()
    missing = [question for question, _ in EXAMPLES if f'"{question}"' not in script]
    assert missing == [], "copy EXAMPLES of deployments/pocket/problems.py to POCKET of router/page/examples.js"
