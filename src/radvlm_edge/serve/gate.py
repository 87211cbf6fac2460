"""What every request passes: who may ask, security headers, and that no fault's text gets into a log."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders

from radvlm_edge.errors import RequestError
from radvlm_edge.faults import where
from radvlm_edge.listening import is_loopback
from radvlm_edge.serve.metrics import Metrics
from radvlm_edge.serve.replies import complaint
from radvlm_edge.serve.settings import Settings, same_token

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("radvlm_edge.serve")

OPEN = ("/", "/healthz", "/docs", "/openapi.json", "/favicon.ico")
"""Paths that need no token: they hold nothing of any film."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), usb=()",
}


class Gate:
    """Outermost layer of the service."""

    def __init__(self, app: App, settings: Settings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def guarded(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            self._admit(scope)
            await self._app(scope, receive, guarded)
        except RequestError as error:
            await _refuse(guarded, error)
        except Exception as error:  # noqa: BLE001 - its text may quote a film's header, so it is not logged
            log.error("a request failed: %s", where(error))
            if not status:
                await _refuse(guarded, RequestError("the service failed; its log says where", 500))
        finally:
            endpoint = getattr(scope.get("endpoint"), "__name__", "none")
            self._metrics.count("radvlm_requests_total", endpoint=endpoint, status=str(status or 499))
            self._metrics.time("radvlm_request_seconds", time.monotonic() - began, endpoint=endpoint)

    def _admit(self, scope: Scope) -> None:
        """Raise RequestError unless the client may ask."""
        headers, path = Headers(scope=scope), scope["path"]
        host, origin = headers.get("host", ""), headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise RequestError("a page of another origin may not ask this service", 403)
        if self._settings.token is None:
            # Without it a page whose name is made to point at 127.0.0.1 could read films (DNS rebinding).
            if not is_loopback(_name(host)):
                raise RequestError(
                    "without a token the service answers to 127.0.0.1 and localhost alone", 403
                )
            return
        if path in OPEN or path.startswith("/page/"):
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not same_token(given.strip(), self._settings.token):
            raise RequestError("a token is needed: send the header `Authorization: Bearer TOKEN`", 401)


def _name(host: str) -> str:
    """Host header without port and brackets."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


async def _refuse(send: Send, error: RequestError) -> None:
    body = json.dumps(complaint(str(error), error.status)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
