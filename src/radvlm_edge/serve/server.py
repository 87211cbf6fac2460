"""A service on a socket: TLS, and an orderly end on SIGTERM or SIGINT."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn

from radvlm_edge.errors import ServiceError
from radvlm_edge.runtime.reader import Reader
from radvlm_edge.serve.app import Service
from radvlm_edge.serve.settings import Settings

BACKLOG = 128


def listen(settings: Settings) -> socket.socket:
    """The socket to serve on; raises ServiceError where the address cannot be had."""
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)  # from here on clients wait instead of being refused
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ServiceError(
            f"{settings.host}:{settings.port}: cannot be listened on ({reason}); choose another --port"
        ) from error
    return listener


def address(settings: Settings, listener: socket.socket) -> str:
    """URL of the service."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    scheme = "https" if settings.tls_cert else "http"
    return f"{scheme}://{host}:{listener.getsockname()[1]}"


def make_server(service: Service, ready: Callable[[], None] | None = None) -> uvicorn.Server:
    """A server that is not running yet; its `run` and `serve` take the sockets of `listen`."""
    settings = service.settings
    config = uvicorn.Config(
        service.app(ready),
        http="h11",
        ws="none",
        lifespan="on",
        loop="asyncio",
        log_level="warning",
        access_log=False,  # paths hold study ids
        server_header=False,
        proxy_headers=False,
        limit_concurrency=settings.connections,
        backlog=BACKLOG,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_s)),
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=str(settings.tls_key) if settings.tls_key else None,
    )
    return uvicorn.Server(config)


def run(reader: Reader, settings: Settings, ready: Callable[[str], None]) -> None:
    """Serve until told to stop; `ready` is called with the address when requests are taken."""
    settings.check()
    with contextlib.closing(listen(settings)) as listener, _signals_end_quietly():
        url = address(settings, listener)
        make_server(Service(reader, settings), lambda: ready(url)).run(sockets=[listener])


@contextlib.contextmanager
def _signals_end_quietly() -> Iterator[None]:
    """uvicorn raises the signal that stopped it once more when all is done; that is no failure."""
    kept = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
