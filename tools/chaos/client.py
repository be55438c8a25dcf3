"""A client as the suite asks for: it repeats a request with the same key, at another gateway, until it is answered."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Sequence
from typing import Any

import aiohttp

_PAUSE_S = 0.2
_RETRIED = frozenset({429, 500, 502, 503, 504})


class GaveUp(Exception):
    """Not answered within the time that the harness allows; the last answer is the text."""


class Client:
    def __init__(self, gateway_urls: Sequence[str], tokens: dict[str, str], give_up_s: float) -> None:
        """`tokens` by holder; the first one's holder asks, where nobody else is named."""
        self._urls = itertools.cycle(gateway_urls)
        self._tokens = tokens
        self._first = next(iter(tokens))
        self._give_up_s = give_up_s
        self._http = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=10.0), connector=aiohttp.TCPConnector(limit=0)
        )
        self.repeated = 0
        # Answers of 500: each is a defect, whatever the fault.
        self.internal_errors: list[str] = []

    async def close(self) -> None:
        await self._http.close()

    async def post(
        self, path: str, body: dict[str, Any], key: str | None = None, holder: str | None = None
    ) -> tuple[int, dict[str, Any]]:
        headers = {"Idempotency-Key": key} if key else {}
        status, answer = await self._ask("POST", path, holder or self._first, json=body, headers=headers)
        return status, json.loads(answer)

    async def get_bytes(self, path: str) -> bytes:
        """The body of a 200; any other answer is raised as GaveUp."""
        status, body = await self._ask("GET", path, self._first, headers={})
        if status != 200:
            raise GaveUp(f"GET {path}: {status} {body[:300]!r}")
        return body

    async def _ask(
        self, method: str, path: str, holder: str, *, headers: dict[str, str], **body: Any
    ) -> tuple[int, bytes]:
        """(status, body) of the first answer that is not "try again".

        Raises:
            GaveUp: there was none in time.
        """
        headers = {**headers, "Authorization": f"Bearer {self._tokens[holder]}"}
        last = "no answer"
        deadline = asyncio.get_running_loop().time() + self._give_up_s
        while asyncio.get_running_loop().time() < deadline:
            try:
                async with self._http.request(method, next(self._urls) + path, headers=headers, **body) as reply:
                    answer = await reply.read()
                    if reply.status not in _RETRIED:
                        return reply.status, answer
                    last = f"{reply.status} {answer[:300]!r}"
                    if reply.status == 500:
                        self.internal_errors.append(f"{method} {path}: {last}")
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                last = repr(error)
            self.repeated += 1
            await asyncio.sleep(_PAUSE_S)
        raise GaveUp(f"{method} {path}: {last}")
