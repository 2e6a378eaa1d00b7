"""The paths of the web page.

The page is a handful of files, named here and read once: a path that is not in the list does not exist, so none can
lead out of the folder. Nothing is cached without asking again, because a page of one version must not talk to a
server of another; asking costs an empty 304.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

HTML, STYLE, SCRIPT, JSON, ICON = "text/html", "text/css", "text/javascript", "application/json", "image/svg+xml"
INDEX = "index.html"
FILES = {
    "style.css": STYLE,
    "app.js": SCRIPT,
    "server.js": SCRIPT,
    "sse.js": SCRIPT,
    "lane.js": SCRIPT,
    "tally.js": SCRIPT,
    "view.js": SCRIPT,
    "transcript.js": SCRIPT,
    "examples.js": SCRIPT,
    "example.json": JSON,
    "icon.svg": ICON,
}

# Nothing from anywhere else, nothing inline, nothing framed. A form is sent by script, so none may be sent without.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "cache-control": "no-cache",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True, slots=True)
class File:
    """A file of the page, as it is sent."""

    body: bytes
    media_type: str
    etag: str

    @classmethod
    def load(cls, name: str, media_type: str) -> File:
        body = files(__package__).joinpath(name).read_bytes()
        return cls(body, media_type, f'"{hashlib.sha256(body).hexdigest()[:32]}"')

    def response(self, request: Request) -> Response:
        headers = {**HEADERS, "etag": self.etag}
        known = request.headers.get("if-none-match", "")
        if self.etag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
            return Response(status_code=304, headers=headers)
        # A charset is added to what is text; JSON and SVG are UTF-8 anyway.
        return Response(self.body, headers=headers, media_type=self.media_type)


def mount(app: FastAPI) -> None:
    """Add the page to `app`: `/`, and its files under `/page/`."""
    index = File.load(INDEX, HTML)
    parts = {name: File.load(name, media_type) for name, media_type in FILES.items()}

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page(request: Request) -> Response:
        return index.response(request)

    @app.api_route("/page/{name}", methods=["GET", "HEAD"], include_in_schema=False)
    async def part(name: str, request: Request) -> Response:
        if name not in parts:
            raise HTTPException(404)
        return parts[name].response(request)
