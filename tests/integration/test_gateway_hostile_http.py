"""What no well-meaning client sends: each is refused by the protocol's rules, and the gateway serves on."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from typing import Any

import pytest

from services.gateway.http_server import MAX_HEAD_BYTES, MAX_REQUEST_BYTES
from tests.integration.gateway_harness import Client, plain

PATIENCE_S = 10.0
_LAST = b"GET /healthz HTTP/1.1\r\nHost: wallet\r\nX-Request-ID: the-last\r\nConnection: close\r\n\r\n"
BODY = json.dumps(plain()).encode()

SIZES = [MAX_HEAD_BYTES + 300_000, 3 * MAX_REQUEST_BYTES]
FRAMINGS = [
    b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n-5\r\n{}\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: identity\r\n\r\n",
    b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    b"Content-Length: -5\r\n\r\nhello",
    b"Content-Length: +5\r\n\r\nhello",
    b"Content-Length: 99999999999999999999999999\r\n\r\nhello",
]
TARGETS = [
    *(b"/v1/transfers/\xff\xfe", b"/v1/transfers/%ff%fe", b"/v1/transfers/a%00b", b"/v1/transfers/a\x00b"),
    *(b"/v1/transfers/%ed%a0%80", b"/v1/transfers/a%0a", b"/v1/transfers/%zz", b"/v1/links/a%00b/bundle"),
    *(b"/v1/transfers?cursor=a%00", b"/v1/transfers?account_id=%00", b"/v1/transfers?cursor=%ff"),
    *(b"/v1/transfers?limit=" + b"9" * 5_000, b"/v1/transfers?limit=\xff", b"/v1/traces/%00"),
    *(b"/v1/wallets/a%00b", b"/v1/accounts/a%00b"),
]
SINGLE_HEADERS = [b"Idempotency-Key", b"Authorization", b"Host", b"Content-Type", b"Last-Event-ID"]
NO_REQUESTS = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 100,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /healthz HTTP/9.9\r\n\r\n",
    b"FROB /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\n\r\n",
    b"GET /healthz HTTP/1.1\nHost: x\n\n",
    b"GET /healthz HTTP/1.1\r\nHost : x\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n",
]
NO_TRANSFERS = [
    *(BODY.decode().encode("utf-16"), BODY.decode().encode("utf-32"), b"\xef\xbb\xbf" + BODY, b'{"name":"\xff"}'),
    *(b"[" * 400_000, b'{"to":' * 50_000, b'{"value_wei":' + b"9" * 10_000 + b"}", b'{"value_wei":1e999}'),
    *(
        b'{"account_id":"\\ud800"}',
        b'{"account_id":"\\u0000"}',
        b'{"\\ud800":1}',
        b'{"to":"0x\\u0000"}',
        b"",
        b"nul",
    ),
]


class Wire:
    """Raw bytes to a gateway, and what comes back until it is silent or closes."""

    def __init__(self, client: Client) -> None:
        self._port = client.port
        self.head = b"Host: wallet\r\nAuthorization: " + client.http.headers["authorization"].encode() + b"\r\n"
        self.json = self.head + b"Content-Type: application/json\r\n"

    def get(self, target: bytes, headers: bytes = b"") -> bytes:
        return b"GET " + target + b" HTTP/1.1\r\n" + self.head + headers + b"\r\n"

    def post(self, headers: bytes, body: bytes = b"") -> bytes:
        return b"POST /v1/transfers HTTP/1.1\r\n" + self.json + headers + b"\r\n" + body

    def post_body(self, body: bytes, headers: bytes = b"Idempotency-Key: k-1\r\n") -> bytes:
        return self.post(headers + b"Content-Length: %d\r\n" % len(body), body)

    async def ask(self, data: bytes) -> Answers:
        """The answers to `data` on a connection of its own, up to its end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        received = bytearray()
        try:
            async with asyncio.timeout(PATIENCE_S):
                writer.write(data + _LAST)
                await writer.drain()
                while piece := await reader.read(65_536):
                    received += piece
        except ConnectionError:
            pass  # what it had to say may have come before
        finally:
            writer.close()
        return Answers(bytes(received))


class Answers:
    """Without the answer to the last request, which is there to end the connection."""

    def __init__(self, received: bytes) -> None:
        starts = [match.start() for match in re.finditer(rb"HTTP/1\.1 \d{3} ", received)]
        found = [received[start:end] for start, end in itertools.pairwise([*starts, len(received)])]
        self.each = [answer for answer in found if b"x-request-id: the-last" not in answer.lower()]
        self.statuses = [int(answer[9:12]) for answer in self.each]

    @property
    def last(self) -> dict[str, Any]:
        head, _, body = self.each[-1].partition(b"\r\n\r\n")
        assert b"application/problem+json" in head, head
        problem: dict[str, Any] = json.loads(body)
        return problem


@pytest.fixture
def wire(client: Client) -> Wire:
    return Wire(client)


async def serves_on(client: Client) -> None:
    assert (await client.http.get("/readyz")).status_code == 200


async def refused(wire: Wire, data: bytes, status: int = 400) -> dict[str, Any]:
    answers = await wire.ask(data)
    assert answers.statuses == [status], answers.each
    return answers.last


async def test_a_head_without_end_is_not_collected(client: Client, wire: Wire) -> None:
    for size in SIZES:
        for data in (wire.get(b"/v1/transfers")[:-2] + b"X: " + b"a" * size, b"GET /" + b"a" * size):
            # A connection that is closed over unread bytes may lose the answer; it never becomes a request.
            assert (await wire.ask(data)).statuses in ([431], [])
    await serves_on(client)


async def test_trailers_are_no_headers_and_have_an_end(client: Client, wire: Wire) -> None:
    chunk = b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n"
    chunked = wire.post(b"Transfer-Encoding: chunked\r\n", chunk)
    smuggled = await refused(wire, chunked + b"Idempotency-Key: k-1\r\n\r\n")
    assert smuggled["reason"] == "IDEMPOTENCY_KEY_MISSING"
    endless = wire.post(b"Idempotency-Key: k-1\r\nTransfer-Encoding: chunked\r\n", chunk)
    answers = await wire.ask(endless + b"X: " + b"a" * 2 * MAX_REQUEST_BYTES)
    assert answers.statuses in ([400], [])
    await serves_on(client)


async def test_a_body_whose_length_is_in_doubt_is_no_request(client: Client, wire: Wire) -> None:
    for framing in FRAMINGS:
        headers, _, body = framing.partition(b"\r\n\r\n")
        problem = await refused(wire, wire.post(b"Idempotency-Key: k-1\r\n" + headers + b"\r\n", body))
        assert problem["reason"] == "INVALID_REQUEST", framing
    assert (await client.http.get("/v1/transfers")).json()["transfers"] == []


async def test_chunks_of_one_byte_are_a_body_like_any(client: Client, wire: Wire) -> None:
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"
    answers = await wire.ask(wire.post(b"Idempotency-Key: k-1\r\nTransfer-Encoding: chunked\r\n", chunks))
    assert answers.statuses == [202]


async def test_text_that_is_no_name_is_refused_before_anybody_is_asked(wire: Wire) -> None:
    for target in TARGETS:
        assert (await refused(wire, wire.get(target)))["reason"] == "INVALID_REQUEST", target


async def test_a_header_that_stands_twice_is_refused(wire: Wire) -> None:
    for name in SINGLE_HEADERS:
        twice = name + b": 1\r\n" + name + b": 2\r\n"
        host = b"" if name == b"Host" else b"Host: wallet\r\n"
        problem = await refused(wire, b"POST /v1/transfers HTTP/1.1\r\n" + host + twice + b"\r\n")
        assert problem["errors"] == [{"field": name.decode(), "rule": "stands once"}]
    lengths = b"Content-Length: 1\r\nContent-Length: 1\r\n"
    await refused(wire, b"POST /v1/transfers HTTP/1.1\r\nHost: wallet\r\n" + lengths + b"\r\n1")


async def test_what_is_no_request_is_refused_as_problem_details(wire: Wire) -> None:
    for data in NO_REQUESTS:
        assert (await refused(wire, data))["reason"] == "INVALID_REQUEST", data


async def test_bodies_that_are_no_transfer(wire: Wire) -> None:
    for body in NO_TRANSFERS:
        await refused(wire, wire.post_body(body))


async def test_a_name_that_no_database_keeps_is_refused(client: Client) -> None:
    for name in ("a\0b", "\x1b[31m", "\u009b", "a\n"):
        response = await client.http.post("/v1/wallets", json={"name": name})
        assert (response.status_code, response.json()["errors"][0]["field"]) == (400, "name")
    assert (await client.http.post("/v1/wallets", json={"name": "Großmütterchens Sparbuch 🐷"})).status_code == 201


async def test_pipelined_requests_are_answered_in_order(client: Client, wire: Wire) -> None:
    posts = b"".join(wire.post_body(BODY, b"Idempotency-Key: p-%d\r\n" % number) for number in range(3))
    answers = await wire.ask(posts + wire.get(b"/v1/transfers/none") + wire.get(b"/healthz"))
    assert answers.statuses == [202, 202, 202, 404, 200]


async def test_an_accepted_request_is_answered_though_nonsense_follows(client: Client, wire: Wire) -> None:
    answers = await wire.ask(wire.post_body(BODY) + b"nonsense\r\n\r\n")
    assert answers.statuses == [202]


async def test_names_and_headers_past_ascii_are_no_error_of_ours(wire: Wire) -> None:
    assert (await wire.ask(wire.post_body(BODY, b"Idempotency-Key: k\r\nUser-Agent: \xff\xfe\r\n"))).statuses == [202]
    await refused(wire, wire.post_body(BODY, b"Idempotency-Key: \xe9\r\n"))
    for token in (b"\xe9\xff", "gl_é".encode()):
        await refused(
            wire, b"GET /v1/transfers HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + token + b"\r\n\r\n", 401
        )
