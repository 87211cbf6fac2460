"""Request bodies: bounded one by one, together, and in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect, Request

from radvlm_edge.errors import BusyError, RequestError

AT_ONCE = 4
"""Largest bodies held at once, whatever the number of clients; one more is answered 429."""


class Uploads:
    """Holds back clients whose bodies would not fit the memory set aside for them."""

    def __init__(self, *, limit_bytes: int, limit_s: float) -> None:
        self._limit_bytes, self._limit_s = limit_bytes, limit_s
        self.held_bytes = 0

    @asynccontextmanager
    async def body(self, request: Request, *, overhead: float = 1.0) -> AsyncIterator[bytes]:
        """The request's body, counted until the block is left.

        `overhead`: how much larger than a film the body may be (base64). Raises RequestError (413 too large,
        408 too slow, 400 broken off), BusyError (429) where too many are held already.
        """
        limit = int(self._limit_bytes * overhead)
        reserved = self._claimed(request, limit)
        if self.held_bytes + reserved > AT_ONCE * limit:
            raise BusyError("too many films are being uploaded; ask again later", 1)
        self.held_bytes += reserved
        try:
            yield await self._in_time(request, limit)
        finally:
            self.held_bytes -= reserved

    async def _in_time(self, request: Request, limit: int) -> bytes:
        try:
            return await asyncio.wait_for(self._read(request, limit), self._limit_s)
        except asyncio.TimeoutError:
            raise RequestError(f"the body did not come within {self._limit_s:g} s", 408) from None
        except ClientDisconnect:
            raise RequestError("the body broke off", 400) from None

    def _claimed(self, request: Request, limit: int) -> int:
        """Bytes the body may have: its Content-Length, or the limit where it does not say."""
        claimed = request.headers.get("content-length", "")
        if not claimed.isdecimal():
            return limit
        if int(claimed) > limit:
            raise RequestError(_too_large(limit), 413)
        return int(claimed)

    async def _read(self, request: Request, limit: int) -> bytes:
        content = bytearray()
        async for part in request.stream():
            content += part
            if len(content) > limit:
                raise RequestError(_too_large(limit), 413)
        return bytes(content)


def _too_large(limit: int) -> str:
    return f"the body is larger than the {limit} bytes read here; see --upload-limit"
