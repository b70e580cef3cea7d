"""What of the web server is reachable: the page's own addresses, and nothing that makes it read or fetch for others."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_OPEN = re.compile(
    r"/(config/?|theme\.css|favicon\.ico|manifest\.json|pwa_icon.*|robots\.txt|(static|assets|svelte)/.+"
    r"|gradio_api/(upload|upload_progress|queue/(join|data)|heartbeat/\w+|startup-events|info/?|cancel|reset/?"
    r"|theme\.css|app_id/?|file=/?(?P<file>.+)))?"
)
_JOIN = "/gradio_api/queue/join"
_MAX_CALL = 100_000  # bytes of the arguments of a call: paths and numbers

_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
)


class Guard:
    """ASGI middleware: refuses addresses that the page does not use, keeps the browser from asking other hosts.

    Files are given out, and taken as arguments of a call, only from below `root`: no other path, no address on the web.
    """

    def __init__(self, app: App, root: Path) -> None:
        """Wrap `app`; `root` is the folder of uploads and results."""
        self._app = app
        self._root = root.resolve()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        known = _OPEN.fullmatch(scope["path"])
        if known is None or (known["file"] and not self._is_given_out("/" + known["file"].lstrip("/"))):
            await _refuse(send, 404)
            return
        if scope["path"] == _JOIN:
            body = await _body(receive)
            if body is None or not all(self._is_ours(path) for path in _paths(body)):
                await _refuse(send, 400)
                return
            receive = _again(body, receive)
        await self._app(
            scope, receive, _with_headers(send, no_store=not scope["path"].startswith(("/static/", "/assets/")))
        )

    def _is_given_out(self, path: str) -> bool:
        return self._is_ours(path) and not os.path.isdir(unquote(path))

    def _is_ours(self, path: object) -> bool:
        try:
            return Path(unquote(str(path))).resolve().is_relative_to(self._root)
        except (OSError, ValueError):  # too long, or with a zero
            return False


def _paths(body: bytes) -> Iterator[object]:
    """All values of the key `path`, to any depth; a body that is no JSON has one that is never ours."""
    try:
        waiting: list[Any] = [json.loads(body)]
    except (ValueError, RecursionError):
        yield ""
        return
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if value.get("path") is not None:
                yield value["path"]
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


async def _body(receive: Receive) -> bytes | None:
    """The body of a request; `None` where it is too long or was broken off."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] != "http.request" or len(body) > _MAX_CALL:
            return None
        if not message.get("more_body"):
            return body


def _again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once more."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def give() -> Message:
        return messages.pop() if messages else await receive()

    return give


def _with_headers(send: Send, no_store: bool) -> Send:
    async def give(message: Message) -> None:
        if message["type"] == "http.response.start":
            extra = [pair for pair in _HEADERS if no_store or pair[0] != b"cache-control"]
            kept = [pair for pair in message["headers"] if pair[0].lower() not in {name for name, _ in extra}]
            message["headers"] = [*kept, *extra]
        await send(message)

    return give


async def _refuse(send: Send, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"refused\n"})
